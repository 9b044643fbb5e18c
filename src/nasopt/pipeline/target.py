"""A run with a target: what error it expects of a network, how its final trainings are planned, when one of them meets it, and
what is said in the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nasopt import goals
from nasopt.pipeline.final import EXPORT_SECONDS, FEWEST_EPOCHS, LEAST_EPOCHS, MAX_EPOCHS
from nasopt.pipeline.setup import EXPECTED
from nasopt.protocols import Estimator
from nasopt.strategies.stopping import expected_gain, tenth
from nasopt.trial import Ask, Constraint, Metrics, Problem, Trial

FIRST, GROWTH = 1 / 4, 3
"""Of the time for final trainings, what the first one has at least, and how many times as much each further one has as the one
before, the last one all that is left: a target that is met soon costs little, and three quarters of the time are left for one
that is not."""

AGAIN = 2
"""How many times as many epochs a network learns for when it is trained again, at least. What is expected to need so much that
there would be no time for that has all of it at once."""

EPOCHS = "expected_epochs"
"""The epochs after which `EXPECTED` is expected."""

BREAK, EARLY, LATE = 2.0, 0.45, 0.2
"""The learning curve that is expected of every network: a broken power law (Caballero et al., arXiv 2210.14891, eq. 1, with a
sharp break). So many epochs are the break; before it and after it log error falls by so much where log epochs rise by 1. Ten
networks that runs on CIFAR-10 delivered (12 to 236 million multiply-accumulates, 6 to 46 epochs; in no record) had .98 to 1.17
times the error that this says; with a break at 5 epochs it would be 1.23 to 1.47 times. `benchmarks/brief.py` measures it."""


def curve(epochs: float) -> float:
    """The error after so many epochs, in units of that after one."""
    return float(min(epochs, BREAK) ** -EARLY * (max(epochs, BREAK) / BREAK) ** -LATE)


def inverse(value: float) -> float:
    """The epochs after which `curve` has fallen to this value; infinite for 0."""
    knee = curve(BREAK)
    if value <= 0:
        return math.inf
    return float(value ** (-1 / EARLY) if value >= knee else BREAK * (value / knee) ** (-1 / LATE))


def expected(error: float, brief: float, epochs: float) -> float:
    """The error after so many epochs, from that after ``brief`` ones.

    In a run with a target all networks have the same time, not the same epochs: one that learns twice as fast learns twice as
    long, and may be ahead of one that is better after equally many images.
    """
    return error * curve(epochs) / curve(brief)


def needed(error: float, epochs: float, target: Sequence[Constraint]) -> float:
    """The epochs after which a network meets what the target says of the error, if ``error`` is expected after ``epochs``; 0
    without such a bound."""
    return max((inverse(c.upper / max(error, 1e-9) * curve(epochs)) for c in target if c.name == "error"), default=0.0)


@dataclass(frozen=True)
class Expecting:
    """An estimator whose answers tell the expected error beside the error.

    Attributes:
        epochs: of an ask and its metrics, the epochs behind the error and those that the network would have in the end.
    """

    estimate: Estimator
    epochs: Callable[[Ask, Metrics], tuple[float, float]]

    def __call__(self, ask: Ask, /) -> Metrics:
        found = self.estimate(ask)
        if "error" not in found:
            return found
        brief, epochs = self.epochs(ask, found)
        return {**found, EXPECTED: expected(found["error"], brief, epochs), EPOCHS: epochs}


@dataclass(frozen=True)
class Dearer:
    """Stops a search for the least expected error when its time is better spent on the final training: when the next tenth of the
    networks are expected to lower the error by less than a training does that is longer by what they would cost.

    Attributes:
        problem: what is searched, with the one objective.
        seconds: for what is left of the search and the final training, before the first trial.
        seed: the run's seed.
        warmup: trials before the rule is first asked.
        every: trials between two answers.
    """

    problem: Problem
    seconds: float
    seed: int = 0
    warmup: int = 10
    every: int = 5

    def __call__(self, trials: Sequence[Trial]) -> str:
        """Why to stop, or an empty text."""
        found, more = [t for t in trials if self.problem.accepts(t)], tenth(len(trials), self.warmup, self.every)
        if not more or not found:
            return ""
        spent = sum(t.cost for t in trials)
        cost, left = more * spent / len(trials), max(self.seconds - spent, 1e-9)
        epochs = min(found, key=lambda t: t.metrics[EXPECTED]).metrics[EPOCHS]
        gain = expected_gain(self.problem, trials, more, self.seed)
        worth = 1 - curve(min(MAX_EPOCHS, epochs * left / max(left - cost, 1e-9))) / curve(epochs)
        if gain >= worth:
            return ""
        return (f"after {len(trials)} networks the next {more} were expected to lower the expected error by {gain:.2%} of it, "
                f"and their {cost:.0f} s in the final training by {worth:.2%}")


def ordered(trials: Sequence[Trial], target: Sequence[Constraint]) -> list[Trial]:
    """Those first that meet what the target says of costs, then by the error to expect, if that is known, or else the error."""
    costs = [c for c in target if c.name != "error"]
    return sorted(trials, key=lambda t: (sum(c.violation(t.metrics) for c in costs), t.metrics.get(EXPECTED, t.metrics["error"])))


def trainings(epoch: Sequence[float], seconds: float, share: float = 0.0) -> list[tuple[int, float]]:
    """Which network to train, and for how many epochs, one after the other until the target is met.

    Every training is that of the first network that can be trained for `final.LEAST_EPOCHS` in its time (`final.FEWEST_EPOCHS`,
    if it can have no more than that in all of the time) and that learns for `AGAIN` times as many epochs as it did before at
    least, if it did. If there is none, the training after it has its time too.

    Args:
        epoch: seconds an epoch of every network, the most promising first.
        seconds: for all trainings and exports together.
        share: of these seconds, what the most promising is expected to need.
    """
    left, part = seconds, (max(FIRST, share) if share <= 1 / (1 + AGAIN) else 1.0) * seconds
    plan, before = list[tuple[int, float]](), dict[int, float]()
    least = [LEAST_EPOCHS if LEAST_EPOCHS * e <= seconds - EXPORT_SECONDS else FEWEST_EPOCHS for e in epoch]
    while left > 0:
        part = left if left - part < part else part
        lengths = [min(MAX_EPOCHS, max(0.0, part - EXPORT_SECONDS) / e) for e in epoch]
        fit = [k for k, n in enumerate(lengths) if n >= max(least[k], AGAIN * before.get(k, 0.0))]
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
        found = " and ".join(f"{goals.named(c.name).title} {_ranged(c.name, best)}" for c in target)
        rest = f"; {left} more training{'s were' if left > 1 else ' was'} skipped" if left else ""
        return {**about, "met": True, "sentence": f"The target {wanted} was met by {best['id']}: {found}{rest}."}
    missed = " and ".join(f"{goals.named(c.name).title} {_ranged(c.name, best)}, {_excess(c, values)} above"
                          for c in (*target, *problem.constraints) if not c.met(values))
    return {**about, "sentence": f"The target {wanted} was missed: the nearest network, {best['id']}, has {missed}."}


def _ranged(name: str, record: Mapping[str, Any]) -> str:
    """What a network is judged by, an error with its interval."""
    text, span = goals.format_metric(name, judged(record)[name]), record.get("intervals", {}).get(name)
    if name != "error":
        again = goals.format_metric(name, record["metrics"].get(name, judged(record)[name]))
        return text if again == text else f"{text} in the search ({again} as delivered)"
    if span is None:
        return text
    return f"{text} [{', '.join(f'{100 * bound:.2f}' for bound in span)}]"


def _bound(c: Constraint) -> str:
    return f"{goals.named(c.name).name} <= {goals.format_metric(c.name, c.upper)}"


def _excess(c: Constraint, metrics: Metrics) -> str:
    """By how much a bound is exceeded; errors in points."""
    excess = metrics[c.name] - c.upper
    text = goals.format_metric(c.name, excess)
    return text.replace("%", "points") if goals.named(c.name).kind == "share" else text
