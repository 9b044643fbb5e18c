"""The record of a job (results.json), read so that every part of it may be missing: quantities, networks, parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Results: TypeAlias = Mapping[str, Any]
Interval: TypeAlias = tuple[float, float]


# ----------------------------------------------------------------------------------------------------------- quantities
@dataclass(frozen=True)
class Quantity:
    """How a metric is shown: its name in words, and its unit after the stored value is multiplied by ``scale``."""

    key: str
    label: str
    unit: str = ""
    scale: float = 1.0

    @property
    def title(self) -> str:
        """For axes and table headers: ``latency (ms)``."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def plain(self, value: float) -> str:
        """The value in this quantity's unit, without the unit."""
        return digits(value * self.scale)

    def text(self, value: float) -> str:
        """The value with its unit."""
        return f"{self.plain(value)} {self.unit}".rstrip()

    def ranged(self, value: float, interval: Interval | None) -> str:
        """The value with its unit and, where there is one, its interval: ``6.21 % [5.10, 7.43]``."""
        return self.text(value) if interval is None else f"{self.text(value)} {self.span(interval)}"

    def span(self, interval: Interval) -> str:
        """The interval alone: ``[5.10, 7.43]``."""
        return f"[{self.plain(interval[0])}, {self.plain(interval[1])}]"


KNOWN = {q.key: q for q in (
    Quantity("test_error", "test error", "%", 100.0),
    Quantity("error", "validation error", "%", 100.0),
    Quantity("expected_error", "expected error", "%", 100.0),
    Quantity("loss", "training loss"),
    Quantity("latency_ms", "latency", "ms"),
    Quantity("latency_iqr_ms", "latency spread (IQR)", "ms"),
    Quantity("latency_onnx_ms", "latency, ONNX Runtime", "ms"),
    Quantity("memory_mb", "peak memory", "MB"),
    Quantity("params", "parameters", "thousand", 1e-3),
    Quantity("flops", "multiply-accumulates", "million", 1e-6),
    Quantity("size_mb", "size of the weights", "MB"),
    Quantity("epochs", "epochs"),
    Quantity("training_seconds", "training time", "s"),
)}
SUFFIXES = {"ms": "ms", "mb": "MB", "mj": "mJ", "s": "s", "seconds": "s", "j": "J", "mw": "mW", "w": "W"}


def quantity(key: str, unit: str = "") -> Quantity:
    """The quantity of a metric's key; an unknown key is named after itself, its unit read from its suffix."""
    if key in KNOWN:
        return KNOWN[key]
    stem, _, suffix = key.rpartition("_")
    if stem and suffix in SUFFIXES:
        return Quantity(key, stem.replace("_", " "), unit or SUFFIXES[suffix])
    return Quantity(key, key.replace("_", " "), unit)


def digits(value: float) -> str:
    """Three significant digits without an exponent, thousands separated; plain integers above a thousand."""
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -6:
        return f"{value:.2e}"
    return f"{value:,.{max(0, 2 - size)}f}"


def duration(seconds: float) -> str:
    """Seconds in words: ``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if seconds < 60:
        return f"{digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


# -------------------------------------------------------------------------------------------------------- reading parts
def part(results: Results, *names: str) -> Mapping[str, Any]:
    """The mapping below these names; empty if any is missing."""
    here: Any = results
    for name in names:
        here = here.get(name) if isinstance(here, Mapping) else None
    return here if isinstance(here, Mapping) else {}


def items(results: Results, name: str) -> Sequence[Any]:
    """The list of this name; empty if it is missing."""
    value = results.get(name)
    return value if isinstance(value, list | tuple) else ()


def number(value: object) -> float | None:
    """A finite number, or None for everything else (missing, NaN, infinite, text)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are finite numbers."""
    return {str(k): n for k, v in values.items() if (n := number(v)) is not None}


def interval(value: object) -> Interval | None:
    """A pair of finite numbers, low before high, or None."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None or low > high else (low, high)


# ------------------------------------------------------------------------------------------------------------- networks
FRONT, DOMINATED, DESIGNED = "front", "dominated", "designed"
GROUPS = {FRONT: "on the front", DOMINATED: "not on the front", DESIGNED: "designed by hand"}


@dataclass(frozen=True)
class Network:
    """One trained network of the record. ``metrics`` and ``predicted`` hold finite numbers only; ``breaks``: which constraints a
    hand-designed one does not meet."""

    name: str
    group: str
    architecture: Mapping[str, str]
    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval]
    predicted: Mapping[str, float]
    files: Mapping[str, str]
    breaks: Sequence[str] = ()

    def ranged(self, key: str) -> str:
        """A metric in words with its interval; call it only for a metric that is there."""
        return quantity(key).ranged(self.metrics[key], self.intervals.get(key))


def network(data: Mapping[str, Any], group: str, place: int) -> Network:
    """One entry of ``front``, ``dominated`` or ``designed``."""
    metrics = numbers(part(data, "metrics"))
    metrics |= numbers({name: data.get(name) for name in ("epochs", "training_seconds")})
    spans = {str(k): s for k, v in part(data, "intervals").items() if (s := interval(v)) is not None}
    return Network(
        name=str(data.get("name") or data.get("id") or f"{group} {place + 1}"), group=group,
        architecture={str(k): str(v) for k, v in part(data, "architecture").items()},
        metrics=metrics, intervals=spans, predicted=numbers(part(data, "predicted")),
        files={str(k): str(v) for k, v in part(data, "files").items() if v}, breaks=[str(c) for c in items(data, "breaks")])


def networks(results: Results, *groups: str) -> list[Network]:
    """The networks of these groups (all, if none is named), in the order of the record."""
    return [network(data, group, k) for group in groups or GROUPS
            for k, data in enumerate(items(results, group)) if isinstance(data, Mapping)]


def keys_of(records: Iterable[Mapping[str, float]]) -> list[str]:
    """All metrics that occur: the known ones in their usual order, then the others by name."""
    found = {key for record in records for key in record}
    return [k for k in KNOWN if k in found] + sorted(found - set(KNOWN))


# ----------------------------------------------------------------------------------------------------------- objectives
@dataclass(frozen=True)
class Axis:
    """An objective as it is judged on trained networks: the metric's key and the direction."""

    key: str
    minimise: bool = True

    def loss(self, metrics: Mapping[str, float]) -> float | None:
        """The value to minimise, or None where it was not measured."""
        value = metrics.get(self.key)
        return None if value is None else value if self.minimise else -value


def axes(results: Results, nets: Iterable[Network]) -> list[Axis]:
    """The objectives that all ``nets`` were measured on; ``error`` is judged by ``test_error`` where all have it."""
    nets = list(nets)
    out = []
    for data in items(results, "objectives"):
        key = str(part(data).get("name", ""))
        for candidate in (["test_error", "error"] if key == "error" else [key]):
            if nets and all(candidate in n.metrics for n in nets):
                out.append(Axis(candidate, bool(part(data).get("minimise", True))))
                break
    return out


def dominates(a: Network, b: Network, on: Sequence[Axis]) -> bool:
    """``a`` is no worse than ``b`` on every axis and better on one (Pareto dominance of the point values)."""
    pairs = [(axis.loss(a.metrics), axis.loss(b.metrics)) for axis in on]
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    return len(known) == len(pairs) > 0 and all(x <= y for x, y in known) and any(x < y for x, y in known)


def joined(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
