"""A run with a target: how its final trainings are planned, when one of them meets it, and what is said in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nasopt import goals
from nasopt.pipeline.final import EXPORT_SECONDS, LEAST_EPOCHS, MAX_EPOCHS
from nasopt.trial import Constraint, Metrics, Problem, Trial

FIRST, GROWTH = 1 / 4, 3
"""Of the time for final trainings, what the first one has, and how many times as much each further one has as the one before, the
last one all that is left: a target that is met soon costs little, and three quarters of the time are left for one that is not."""


def ordered(trials: Sequence[Trial], target: Sequence[Constraint]) -> list[Trial]:
    """Those first that meet what the target says of costs, then by error."""
    costs = [c for c in target if c.name != "error"]
    return sorted(trials, key=lambda t: (sum(c.violation(t.metrics) for c in costs), t.metrics["error"]))


def trainings(epoch: Sequence[float], seconds: float) -> list[tuple[int, float]]:
    """Which network to train, and for how many epochs, one after the other until the target is met.

    Every training is that of the first network that can be trained for `final.LEAST_EPOCHS` in its time and that learns for twice
    as many epochs as it did before at least, if it did. If there is none, the training after it has its time too.

    Args:
        epoch: seconds an epoch of every network, the most promising first.
        seconds: for all trainings and exports together.
    """
    left, part = seconds, FIRST * seconds
    plan, before = list[tuple[int, float]](), dict[int, float]()
    while left > 0:
        part = left if left - part < part else part
        lengths = [min(MAX_EPOCHS, max(0.0, part - EXPORT_SECONDS) / e) for e in epoch]
        fit = [k for k, n in enumerate(lengths) if n >= max(LEAST_EPOCHS, 2 * before.get(k, 0.0))]
        if fit:
            k = fit[0]
            plan.append((k, lengths[k]))
            before[k] = lengths[k]
            left -= EXPORT_SECONDS + lengths[k] * epoch[k]
        elif part == left:
            break
        part *= GROWTH
    if not plan:
        k = min(range(len(epoch)), key=lambda k: epoch[k])
        plan = [(k, max(0.5, min(MAX_EPOCHS, max(seconds - EXPORT_SECONDS, 0.25 * seconds) / epoch[k])))]
    return plan


def meets(target: Sequence[Constraint], problem: Problem, metrics: Metrics) -> bool:
    """Whether all of the target is measured and met, and no constraint is violated."""
    return all(c.met(metrics) for c in target) and problem.violation(metrics) == 0


def judged(record: Mapping[str, Any]) -> dict[str, float]:
    """What a trained network is judged by: its validation error, and costs as the search measured them. Nothing, if the training
    failed."""
    return {**record["predicted"], "error": record["metrics"]["error"]} if "metrics" in record else {}


def verdict(target: Sequence[Constraint], problem: Problem, records: Sequence[Mapping[str, Any]], left: int) -> dict[str, Any]:
    """What the report says: {bounds, met, network, sentence}.

    Args:
        records: of the trained networks.
        left: planned trainings that were skipped.
    """
    wanted = " and ".join(map(_bound, target))
    trained = [r for r in records if "metrics" in r]
    about: dict[str, Any] = {"bounds": [str(c) for c in target], "met": False, "network": None}
    if not trained:
        return {**about, "sentence": f"The target {wanted} was missed: no training succeeded."}
    best = min(trained, key=lambda r: (problem.violation(judged(r)) + sum(c.violation(judged(r)) for c in target)))
    about["network"], values = best["id"], judged(best)
    if meets(target, problem, values):
        found = " and ".join(f"{goals.named(c.name).title} {goals.format_metric(c.name, values[c.name])}" for c in target)
        rest = f"; {left} more training{'s were' if left > 1 else ' was'} skipped" if left else ""
        return {**about, "met": True, "sentence": f"The target {wanted} was met by {best['id']}: {found}{rest}."}
    missed = " and ".join(f"{goals.named(c.name).title} {goals.format_metric(c.name, values[c.name])}, {_excess(c, values)} above"
                          for c in (*target, *problem.constraints) if not c.met(values))
    return {**about, "sentence": f"The target {wanted} was missed: the nearest network, {best['id']}, has {missed}."}


def _bound(c: Constraint) -> str:
    return f"{goals.named(c.name).name} <= {goals.format_metric(c.name, c.upper)}"


def _excess(c: Constraint, metrics: Metrics) -> str:
    """By how much a bound is exceeded; errors in points."""
    excess = metrics[c.name] - c.upper
    text = goals.format_metric(c.name, excess)
    return text.replace("%", "points") if goals.named(c.name).kind == "share" else text
