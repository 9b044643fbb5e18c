"""When a search is not worth its time any more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nasopt.analysis.hypervolume import hypervolume
from nasopt.seed import rng
from nasopt.strategies.bayes import BayesianOptimization
from nasopt.trial import Constraint, Problem, Trial


@dataclass(frozen=True)
class Reached:
    """Stops as soon as a trial meets a target: more than a longer training of that architecture is not needed.

    Attributes:
        problem: what is searched.
        target: bounds, all of which are to be met.
    """

    problem: Problem
    target: tuple[Constraint, ...]

    def __call__(self, trials: Sequence[Trial]) -> str:
        """Why to stop, or an empty text."""
        last = trials[-1]
        if not self.problem.accepts(last) or not all(c.met(last.metrics) for c in self.target):
            return ""
        return f"network {len(trials)} of the search meets {' and '.join(map(str, self.target))} already"


def tenth(trials: int, warmup: int, every: int) -> int:
    """How many trials the next tenth is, where a rule is asked: after ``warmup`` trials and then after every so many; else 0."""
    return 0 if trials < warmup or trials % every else math.ceil(trials / 10)


def expected_gain(problem: Problem, trials: Sequence[Trial], more: int, seed: int) -> float:
    """The share of the present hypervolume that ``more`` trials are expected to add; infinite while nothing feasible is known.

    It is what a model of all trials expects (`nasopt.surrogates.model`): the sum of the expected hypervolume improvements of the
    most promising architectures. Together they add at most that much. One objective has no volume: there it is the share of the
    best value.
    """
    asker = BayesianOptimization(problem, seed, start=2, ranks=False)
    asker.tell(trials)
    model = asker.model()
    if not len(model.front):
        return math.inf
    _, promised = asker.promises(model, rng(seed, len(trials), "stopping"))
    if len(problem.objectives) == 1 or model.reference is None:
        there = abs(float(model.front.min()))
    else:
        there = hypervolume(model.front, model.reference)
    return float(np.exp(np.sort(promised)[-more:]).sum() / max(there, 1e-12))


@dataclass(frozen=True)
class SmallGain:
    """Stops when the next tenth of the trials is expected to add too little to the hypervolume, whatever the strategy.

    The gain is `expected_gain`: an expectation under a fitted model, not a bound, and rather too large, so that the rule rather
    stops late.

    Attributes:
        problem: what is searched.
        least: share of the present hypervolume that this gain must be for the search to go on.
        seed: the run's seed.
        warmup: trials before the rule is first asked.
        every: trials between two answers.
    """

    problem: Problem
    least: float
    seed: int = 0
    warmup: int = 20
    every: int = 5

    def __call__(self, trials: Sequence[Trial]) -> str:
        """Why to stop, or an empty text."""
        more = tenth(len(trials), self.warmup, self.every)
        if not more:
            return ""
        gain = expected_gain(self.problem, trials, more, self.seed)
        if gain >= self.least:
            return ""
        what = "the hypervolume" if len(self.problem.objectives) > 1 else "the best value"
        return (f"after {len(trials)} networks the next {more} were expected to add {gain:.2%} to {what}, "
                f"less than {self.least:.2%}")
