"""What the report says in words. Every sentence carries its number, its interval and its baseline, or is not said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from nasopt.report import record
from nasopt.report.figures import RANDOM, curve, measured_as, pairs_of
from nasopt.report.record import DESIGNED, FRONT, Axis, Interval, Network, Results, joined, quantity


# ------------------------------------------------------------------------------------------------------------- headline
@dataclass(frozen=True)
class Fact:
    """A number of the headline: what it is, the value with its interval, and a line about it."""

    name: str
    value: str
    interval: str
    note: str


def summary(results: Results) -> str:
    """What was found, in one sentence."""
    found = record.networks(results, FRONT)
    if not found:
        return "This record holds no network on the front: nothing is claimed."
    judged = joined([quantity(axis.key).label for axis in record.axes(results, found)])
    judged = f" (objectives: {judged})" if judged else ""
    bounds = [str(c) for c in record.items(results, "constraints")]
    under = f", under {joined(bounds)}" if bounds else ""
    many = f"{len(found)} trained networks, none better than another in every respect"
    count = "one trained network" if len(found) == 1 else many
    return f"The search found {count}{judged}{under}."


def target(results: Results) -> str:
    """Whether the target was met, or by how much it was missed; empty without one."""
    return str(record.part(results, "target").get("sentence") or "")


def most_accurate(nets: Sequence[Network]) -> Network | None:
    """The network of the lowest validation error, else of the lowest test error (choosing by it flatters it)."""
    for key in ("error", "test_error"):
        if nets and all(key in n.metrics for n in nets):
            return min(nets, key=lambda n: n.metrics[key])
    return None


def lowest(nets: Sequence[Network], *keys: str) -> tuple[str, Network] | None:
    """The first of ``keys`` that a network has, and the network with its lowest value."""
    for key in keys:
        if having := [n for n in nets if key in n.metrics]:
            return key, min(having, key=lambda n: n.metrics[key])
    return None


def facts(results: Results) -> list[Fact]:
    """Most accurate, fastest and smallest of the networks found; those that the record allows."""
    nets = record.networks(results, FRONT)
    out = []
    if best := most_accurate(nets):
        key = "test_error" if "test_error" in best.metrics else "error"
        chosen = "chosen by validation error" if "error" in best.metrics else "chosen by test error"
        out.append(_fact("Most accurate", key, best, chosen))
    for name, keys in (("Fastest", ("latency_ms", "latency_onnx_ms")), ("Smallest", ("params", "size_mb"))):
        if pair := lowest(nets, *keys):
            out.append(_fact(name, pair[0], pair[1], _other_side(pair[1])))
    return out


def _fact(name: str, key: str, net: Network, note: str) -> Fact:
    q, span = quantity(key), net.intervals.get(key)
    value = f"{q.plain(net.metrics[key])} {q.unit}".rstrip()
    return Fact(name, value, "" if span is None else q.span(span), f"{net.name}: {q.label}{'; ' if note else ''}{note}")


def _other_side(net: Network) -> str:
    return f"test error {net.ranged('test_error')}" if "test_error" in net.metrics else ""


def trade_off(results: Results) -> str:
    """From the most accurate to the fastest network: what speed costs. Empty where it cannot be said."""
    nets = record.networks(results, FRONT)
    best, fast = most_accurate(nets), lowest(nets, "latency_ms")
    if best is None or fast is None or fast[1] == best or "latency_ms" not in best.metrics:
        return ""
    quick = fast[1]
    key = "test_error" if "test_error" in best.metrics and "test_error" in quick.metrics else "error"
    if key not in best.metrics or key not in quick.metrics:
        return ""
    moves = [f"the {quantity(k).label} goes from {best.ranged(k)} to {quick.ranged(k)}" for k in ("latency_ms", key)]
    return f"Trade-off: from {best.name} to {quick.name} {joined(moves)}."


# ----------------------------------------------------------------------------------------------------- designed by hand
def against_designed(results: Results) -> list[str]:
    """One sentence for every hand-designed network: who dominates whom on the measured objectives, in numbers."""
    found = record.networks(results, FRONT)
    return [_against(net, found, record.axes(results, [*found, net]))
            for net in record.networks(results, DESIGNED) if found] if found else []


def _against(designed: Network, found: Sequence[Network], on: Sequence[Axis]) -> str:
    if not on:
        return f"{designed.name}: no objective was measured on it and on all found networks, so no comparison is made."
    better = [n for n in found if record.dominates(n, designed, on)]
    worse = [n for n in found if record.dominates(designed, n, on)]
    own = joined([f"{quantity(a.key).label} {designed.ranged(a.key)}" for a in on])
    verdict = f"dominated by {len(better)} of the {len(found)} found networks, and dominates {len(worse)} of them"
    bounds = f" breaks {joined(designed.breaks)}, and" if designed.breaks else ""
    text = f"{designed.name} ({own}){bounds} is {verdict}."
    if better:
        top = min(better, key=lambda n: [axis.loss(n.metrics) or 0.0 for axis in on])
        text += f" {top.name} against it: {joined([_difference(top, designed, a) for a in on])}."
    elif worse:
        text += f" It dominates {joined([n.name for n in worse])}."
    return text


def _difference(net: Network, baseline: Network, axis: Axis) -> str:
    """``test error 1.20 points lower (6.2 % [..]; intervals overlap)``."""
    q, new, old = quantity(axis.key), net.metrics[axis.key], baseline.metrics[axis.key]
    if q.unit == "%":
        size = f"{abs(new - old) * 100:.2f} points"
    else:
        size = f"{100 * abs(new / old - 1):.0f} %" if old else record.digits(abs(new - old))
    way = "equal" if new == old else f"{size} {'lower' if new < old else 'higher'}"
    apart = _apart(net.intervals.get(axis.key), baseline.intervals.get(axis.key))
    return f"{q.label} {way} ({net.ranged(axis.key)}{apart})"


def _apart(a: Interval | None, b: Interval | None) -> str:
    if a is None or b is None:
        return ""
    return "; the intervals overlap" if a[0] <= b[1] and b[0] <= a[1] else "; the intervals do not overlap"


# ---------------------------------------------------------------------------------------------------------- hypervolume
def final_hypervolume(results: Results) -> str:
    """The hypervolume of the trained networks against the designed ones'. Empty if unknown."""
    values = record.numbers(record.part(results, "search", "front_hypervolume"))
    if "found" not in values:
        return ""
    text = f"Hypervolume of the trained networks, on logarithms of the measured metrics: found {record.digits(values['found'])}"
    if "designed" in values:
        change = _change(values["found"], values["designed"], "found ")
        text += f"; hand-designed networks {record.digits(values['designed'])}{change}"
    return f"{text}. One run: no interval."


def _change(own: float, other: float, name: str = "") -> str:
    """`` (3.1% higher)``: ``own`` against ``other``; empty where a ratio means nothing."""
    if other <= 0:
        return ""
    way = "equal" if own == other else f"{100 * abs(own / other - 1):.1f} % {'higher' if own > other else 'lower'}"
    return f" ({name}{way})"


def at(data: Mapping[str, Any], cost: str, limit: float) -> float | None:
    """The hypervolume a strategy had reached at this cost (the last step at or before it); None before its first."""
    reached = [y for x, y in zip(*curve(data, cost), strict=True) if x <= limit]
    return reached[-1] if reached else None


def compared(curves: Mapping[str, Any]) -> bool:
    """Whether there is random search and another search beside it."""
    return RANDOM in curves and len(curves) > 1


def equal_cost(results: Results) -> list[str]:
    """Every strategy against random search at the largest cost that both reached, in seconds and in evaluations."""
    curves = record.part(results, "search", "curves")
    baseline = curves.get(RANDOM)
    if not isinstance(baseline, Mapping):
        return []
    return [sentence for name, data in curves.items() if name != RANDOM and isinstance(data, Mapping)
            for cost in ("seconds", "evaluations") if (sentence := _at_equal(str(name), data, baseline, cost))]


def _at_equal(name: str, data: Mapping[str, Any], baseline: Mapping[str, Any], cost: str) -> str:
    ends = [curve(d, cost)[0] for d in (data, baseline)]
    if not all(ends):
        return ""
    limit = min(max(e) for e in ends)
    own, other = at(data, cost, limit), at(baseline, cost, limit)
    if own is None or other is None:
        return ""
    when = record.duration(limit) if cost == "seconds" else f"{limit:g} evaluations"
    return (f"After {when} of each, {name} had reached a hypervolume of {record.digits(own)} and random search "
            f"{record.digits(other)}{_change(own, other, f'{name} ')}.")


# ----------------------------------------------------------------------------------------------- predicted and measured
@dataclass(frozen=True)
class Agreement:
    """How well predictions of one metric agree with measurements, in words."""

    metric: str
    count: int
    spearman: str
    interval: str
    median_error: str


def agreements(results: Results) -> list[Agreement]:
    """One entry for every metric that was predicted and measured on at least one network."""
    nets = record.networks(results)
    found = {key: pairs_of(nets, key) for key in record.keys_of(n.predicted for n in nets)}
    return [agreement(_compared(quantity(key).label, measured_as(nets, key).label), [p[1] for p in pairs], [p[2] for p in pairs])
            for key, pairs in found.items() if pairs]


def _compared(predicted: str, measured: str) -> str:
    return predicted if predicted == measured else f"{predicted}, against the {measured}"


def agreement(metric: str, guessed: Sequence[float], measured: Sequence[float]) -> Agreement:
    """Spearman's rank correlation with its interval, and the median of |predicted - measured| / |measured|."""
    x, y = np.asarray(guessed, float), np.asarray(measured, float)
    varied = len(x) > 2 and len(set(guessed)) > 1 and len(set(measured)) > 1
    rho = float(stats.spearmanr(x, y).statistic) if varied else math.nan
    span = spearman_interval(rho, len(x))
    known = y != 0
    median = f"{float(np.median(np.abs(x - y)[known] / np.abs(y[known]))) * 100:.1f} %" if known.any() else "–"
    return Agreement(metric, len(x), f"{rho:.2f}" if varied else "–",
                     f"[{span[0]:.2f}, {span[1]:.2f}]" if span else "–", median)


def spearman_interval(rho: float, n: int) -> Interval | None:
    """The 95 % interval by Fisher's z with variance 1.06 / (n - 3) (Fieller, Hartley & Pearson, Biometrika 1957).

    None for fewer than five pairs, for an undefined correlation and for |rho| = 1, where z is infinite.
    """
    if n < 5 or not abs(rho) < 1 - 1e-12:
        return None
    half = float(stats.norm.ppf(0.975)) * math.sqrt(1.06 / (n - 3))
    return math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)


# ---------------------------------------------------------------------------------------------------------------- trust
def trust(results: Results) -> list[str]:
    """Whether the supernet ranks architectures as stand-alone training does, what was done about it, and how well a search's
    tables predict costs."""
    data = record.part(results, "trust")
    value, limit = record.number(data.get("value")), record.number(data.get("threshold"))
    said = [str(data[name]) for name in ("sentence", "costs") if data.get(name)]
    if value is None:
        return said
    span, n = record.interval(data.get("interval")), record.number(data.get("n"))
    text = f"{data.get('statistic') or 'Rank correlation'} between the two errors: {value:.2f}"
    text += f", interval [{span[0]:.2f}, {span[1]:.2f}]" if span else ", no interval recorded"
    text += f", over {n:g} architectures." if n is not None else "."
    return [text, *_verdict(value, span, limit), *_consequence(data.get("fallback")), *said]


def _verdict(value: float, span: Interval | None, limit: float | None) -> list[str]:
    if limit is None:
        return []
    side = "reaches" if value >= limit else "stays below"
    doubt = span is not None and span[0] <= limit <= span[1]
    return [f"The value {side} the threshold of {limit:g} that was set for trusting the supernet"
            + (", but the interval contains the threshold: so few pairs do not settle it." if doubt else ".")]


def _consequence(fallback: object) -> list[str]:
    if not isinstance(fallback, bool):
        return []
    return ["The search therefore fell back to training each architecture alone." if fallback
            else "The search used the supernet's estimates; every network of this report was then trained."]


# ------------------------------------------------------------------------------------------------------------ checklist
def checklist(results: Results) -> list[tuple[str, str]]:
    """The NAS best-practice checklist (Lindauer & Hutter, JMLR 21:243, 2020): its points and what this record holds."""
    curves = record.part(results, "search", "curves")
    total = record.number(record.part(results, "provenance").get("total_seconds"))
    designed = len(record.networks(results, DESIGNED))
    return [
        ("Performance over time", "shown" if curves else "not recorded"),
        ("Random search in the same space at equal cost",
         "shown" if compared(curves) else "nothing else was run" if RANDOM in curves else "not run"),
        ("Networks designed by hand, same data", f"{designed} compared" if designed else "not compared"),
        ("Several seeds", "no: one seed, so no claim of significance"),
        ("Ablations", "none in a single job"),
        ("Total cost, end to end", record.duration(total) if total is not None else "not recorded"),
    ]


def caveats(results: Results) -> list[str]:
    """What this record cannot show."""
    found = record.networks(results)
    out = ["One run with one seed: another seed gives other networks. No statistical significance is claimed."]
    if any("test_error" in n.metrics for n in found):
        out.append(f"Test errors of {len(found)} networks are shown. The lowest of several is a little too good to be "
                   "true, and the intervals are not corrected for that.")
    if any("latency_ms" in n.metrics for n in found):
        out.append("Latency and memory hold for the machine named here; its interval is the spread of the timed runs "
                   "(median and half the interquartile range), not of repeated measurements on other days.")
    if record.part(results, "search", "curves"):
        out.append("The hypervolume curves rest on the search's own estimates, not on the final measurements.")
    return out
