"""What a user can name: metrics, objectives, constraints and durations, as text, with their units.

Inside nasopt a metric is a float under one key and in one unit (``latency_ms``); here stands how people write it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from nasopt.errors import InputError, unknown
from nasopt.trial import Constraint, Objective

Kind: TypeAlias = Literal["share", "time", "bytes", "count"]

# Factors from what a user writes (in lower case) to the unit of the key: share of 1, ms, MB (1 MB = 1e6 bytes), count.
UNITS: Mapping[Kind, Mapping[str, float]] = {
    "share": {"": 1.0, "%": 1e-2},
    "time": {"us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3},
    "bytes": {"b": 1e-6, "kb": 1e-3, "mb": 1.0, "gb": 1e3},
    "count": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9},
}
# From which value (in the key's unit) on a value is printed in which unit.
STEPS: Mapping[Kind, tuple[tuple[float, float, str], ...]] = {
    "share": ((0.0, 1e-2, "%"),),
    "time": ((1e3, 1e3, "s"), (1e-2, 1.0, "ms"), (0.0, 1e-3, "us")),
    "bytes": ((1e3, 1e3, "GB"), (1e-2, 1.0, "MB"), (1e-3, 1e-3, "KB"), (0.0, 1e-6, "B")),
    "count": ((1e9, 1e9, "G"), (1e5, 1e6, "M"), (1e3, 1e3, "K"), (0.0, 1.0, "")),
}
EXAMPLE: Mapping[Kind, str] = {"share": "5%", "time": "2ms", "bytes": "4MB", "count": "1.5M"}


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as users know it.

    Attributes:
        name: what users write.
        key: its key in the metrics of a trial.
        unit: the unit of the value under that key.
        kind: which units can be written for it.
        title: what it is, for tables and help.
        choosable: whether a search may aim at it (never at the test error).
    """

    name: str
    key: str
    unit: str
    kind: Kind
    title: str
    choosable: bool = True


METRICS: tuple[Metric, ...] = (
    Metric("error", "error", "", "share", "validation error"),
    Metric("test_error", "test_error", "", "share", "test error", choosable=False),
    Metric("expected_error", "expected_error", "", "share", "expected error", choosable=False),
    Metric("latency", "latency_ms", "ms", "time", "latency (PyTorch, one input)"),
    Metric("latency_iqr", "latency_iqr_ms", "ms", "time", "latency, interquartile range", choosable=False),
    Metric("latency_onnx", "latency_onnx_ms", "ms", "time", "latency (ONNX Runtime, one input)"),
    Metric("memory", "memory_mb", "MB", "bytes", "peak memory: weights and live activations"),
    Metric("params", "params", "", "count", "parameters"),
    Metric("flops", "flops", "", "count", "multiply-accumulates"),
    Metric("size", "size_mb", "MB", "bytes", "size of the weights"),
)
_BY_NAME: Mapping[str, Metric] = {n: m for m in METRICS for n in (m.key, m.name)}


def metric(name: str) -> Metric:
    """The metric that a search can aim at, by its name or its key.

    Raises:
        InputError: there is none of that name.
    """
    found = _BY_NAME.get(name.strip().lower())
    if found is None or not found.choosable:
        raise unknown("metric", name.strip(), [m.name for m in METRICS if m.choosable])
    return found


def parse_objectives(text: str) -> tuple[Objective, ...]:
    """Objectives, all to be minimised, from their names with commas between them.

    >>> [o.name for o in parse_objectives("error, latency")]
    ['error', 'latency_ms']

    Raises:
        InputError: no name, an unknown name, or one twice.
    """
    chosen = [metric(name) for name in text.split(",") if name.strip()]
    if not chosen:
        raise InputError(f"objectives {text!r} name no metric: write for example 'error,latency'.")
    for m in chosen:
        if chosen.count(m) > 1:
            raise InputError(f"objectives {text!r} name {m.name!r} twice: name each metric once.")
    return tuple(Objective(m.key, m.unit) for m in chosen)


_BOUND = re.compile(r"\s*(\w+)\s*(?:<=|<|≤)\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-zµμ%]*)\s*", re.IGNORECASE)


def named(key: str) -> Metric:
    """The metric of that name or key, whether or not a search can aim at it.

    Raises:
        KeyError: there is none.
    """
    return _BY_NAME[key]


def parse_constraint(text: str, what: str = "constraint") -> Constraint:
    """An upper bound with its unit: ``latency<=2ms``, ``params < 1.5M``, ``memory <= 800 KB``, ``error<=5%``.

    ``<`` means the same as ``<=``. Units: us, ms, s; B, KB, MB, GB (1 MB = 1e6 bytes); K, M, G for counts; % or a share
    of 1 for errors. ``what`` it is called in a refusal.

    Raises:
        InputError: not of this form, an unknown metric or unit, a missing unit, or a bound that nothing can meet.
    """
    match = _BOUND.fullmatch(text)
    if match is None:
        raise InputError(f"{what} {text!r} is not an upper bound above 0: write for example "
                         f"'{'error<=6%' if what == 'target' else 'latency<=2ms'}'.")
    m = metric(match[1])
    upper = float(match[2]) * _factor(f"{what} {text!r}", m, match[3])
    if not 0 < upper < math.inf:
        raise InputError(f"{what} {text!r} has a bound outside the numbers above 0: write for example "
                         f"'{m.name}<={EXAMPLE[m.kind]}'.")
    if m.kind == "share" and upper > 1:
        raise InputError(f"{what} {text!r} allows more than 100%: write '{m.name}<={match[2]}%' or a share of 1.")
    return Constraint(m.key, upper, m.unit)


def parse_bound(text: str) -> Constraint:
    """An upper bound on a column of a table, in the column's own unit: ``c10__raspi4_latency<=20``, ``undeployable<=0``.

    Raises:
        InputError: not of this form.
    """
    name, sign, upper = text.partition("<=")
    try:
        bound = float(upper)
    except ValueError:
        bound = math.nan
    if not sign or not name.strip() or not math.isfinite(bound):
        raise InputError(f"constraint {text!r} is not an upper bound on a column: write for example 'raspi4_latency<=20'.")
    return Constraint(name.strip(), bound)


def _factor(bound: str, m: Metric, unit: str) -> float:
    """From the unit in a bound to that of the metric's key."""
    units = UNITS[m.kind]
    example = f"write for example '{m.name}<={EXAMPLE[m.kind]}'"
    if not unit and unit not in units:
        raise InputError(f"{bound} has no unit: {example}.")
    if unit.lower() not in units:
        valid = ", ".join(dict.fromkeys(s for _, _, s in reversed(STEPS[m.kind]) if s))
        raise InputError(f"{bound} has the unit {unit!r}, but {m.name!r} has {valid}: {example}.")
    return units[unit.lower()]


_NUMBER = r"([0-9]*\.?[0-9]+)"
_DURATION = re.compile(rf"{_NUMBER}|" + "".join(rf"(?:{_NUMBER}\s*{u}\s*)?" for u in "dhms"), re.IGNORECASE)
_SECONDS = (1, 86400, 3600, 60, 1)


def parse_duration(text: str) -> float:
    """Seconds, from ``90s``, ``30m``, ``1h30m``, ``2d`` or a plain number of seconds.

    Raises:
        InputError: not of this form, or not above 0.
    """
    match = _DURATION.fullmatch(text.strip())
    seconds = sum(float(n) * s for n, s in zip(match.groups(), _SECONDS, strict=True) if n) if match else 0.0
    if not 0 < seconds < math.inf:
        raise InputError(f"duration {text!r} is not a time above 0: write for example '90s', '30m' or '1h30m'.")
    return seconds


def parse_share(text: str) -> float:
    """A share between 0 and 1, from ``1%`` or ``0.01``.

    Raises:
        InputError: not of this form, or not between 0 and 1.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise InputError(f"share {text!r} is not between 0 and 1: write for example '1%' or '0.01'.")
    return share


def parse_size(text: str) -> tuple[int, int]:
    """Height and width in pixels, from ``64`` or ``48x64``.

    Raises:
        InputError: not of this form, or not above 0.
    """
    sides = [int(side) for side in text.strip().lower().split("x") if side.isascii() and side.isdigit()]
    if len(sides) != 1 + text.lower().count("x") or len(sides) > 2 or min(sides) < 1:
        raise InputError(f"image size {text!r} is not in pixels: write for example '64', or '48x64' for height and width.")
    return sides[0], sides[-1]


def format_metric(name: str, value: float | None) -> str:
    """A metric's value for people, with its unit and three significant digits: ``1.23 ms``, ``0.45 M``, ``4.17 %``.

    Args:
        name: the metric's name or key; any other metric is printed as a plain number.
        value: in the unit of the key; None or NaN (not measured) gives a dash.
    """
    if value is None or math.isnan(value):
        return "–"
    m = _BY_NAME.get(name)
    if m is None or math.isinf(value):
        return _digits(value)
    if m.kind == "share":
        return f"{100 * value:.2f} %"
    _, factor, unit = next(step for step in STEPS[m.kind] if abs(value) >= step[0])
    return f"{_digits(value / factor)} {unit}".rstrip()


def _digits(value: float) -> str:
    """Three significant digits, all digits before the point."""
    return f"{value:.3g}" if abs(value) < 999.5 or math.isinf(value) else f"{value:.0f}"
