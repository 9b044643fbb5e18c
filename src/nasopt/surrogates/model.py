"""What a search knows, as surrogates: one for every objective and for what decides feasibility, and what is promised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import norm, rankdata

from nasopt.analysis.hypervolume import reference_point
from nasopt.seed import integer
from nasopt.surrogates import forest, gp
from nasopt.surrogates.acquisition import Region, expected_hypervolume_improvement, log_expected_improvement, region
from nasopt.surrogates.features import Groups
from nasopt.surrogates.power import Power, fit
from nasopt.trial import Problem, Trial, nondominated

Floats: TypeAlias = NDArray[np.float64]

QUANTILES = norm.ppf((np.arange(16) + 0.5) / 16)
"""Sixteen equally probable standard normal values, which carry a prediction over to another scale."""

WIDTH = 1.0
"""Standard deviations of the confidence bound."""

REFIT = 20
"""A process is fitted anew when one in so many of its observations is new; until then it keeps its lengths."""

MOST = 1000
"""Observations beyond which a forest takes the place of a process."""

TINY = 1e-300

Kind: TypeAlias = Literal["gp", "forest"]
Acquisition: TypeAlias = Literal["ei", "lcb", "ts"]


class Surrogate(Protocol):
    """Predicts one quantity of architectures from their features."""

    def predict(self, points: Groups) -> gp.Posterior:
        """Means and deviations of what an evaluation of m points would give, (m,)."""
        ...

    def sample(self, points: Groups, generator: np.random.Generator, n: int = 1) -> Floats:
        """``n`` joint draws, (n, m)."""
        ...

    def believing(self, points: Groups) -> Surrogate:
        """Itself as if the points had been evaluated to their predicted means."""
        ...


@dataclass(frozen=True, eq=False)
class Model:
    """What is known so far.

    Attributes:
        objectives: one surrogate an objective, of transformed values.
        powers: every objective's transformation; none if there is one objective by its ranks, whose surrogate is of their normal
            scores.
        feasibility: surrogates of what the constraints bound and of whether evaluations fail, and up to where that is feasible.
        front: of what is feasible: (p, objectives), or, by ranks, the best score (1, 1); no row if nothing is.
        reference: a little beyond the worst feasible values, to where hypervolume is measured, (objectives,): a front's own nadir
            would give nothing for what extends it. None by ranks.
        region: what this front leaves below the reference; None by ranks.
    """

    objectives: tuple[Surrogate, ...]
    powers: tuple[Power, ...]
    feasibility: tuple[tuple[Surrogate, float], ...]
    front: Floats
    reference: Floats | None = None
    region: Region | None = None

    def promise(self, points: Groups, kind: Acquisition, generator: np.random.Generator) -> Floats:
        """What the evaluation of each of m points promises, (m,): the logarithm of the probability that it is feasible (Gardner
        et al., ICML 2014) plus that of the acquisition.

        Args:
            kind: ``ei``: the expected improvement, of the hypervolume if there are several objectives; ``lcb``: the improvement
                if every value were `WIDTH` deviations better than its mean (Srinivas et al., ICML 2010; Ponweiser et al., PPSN
                2008); ``ts``: the improvement in one joint draw (Thompson sampling; O(m^3)).
            generator: for the draw.
        """
        chance = np.zeros(len(points[0]))
        for process, limit in self.feasibility:
            found = process.predict(points)
            chance += np.log(np.maximum(ndtr((limit - found.mean) / found.deviation), TINY))
        if not len(self.front):
            return chance
        if self.region is None and kind == "ei":
            return chance + log_expected_improvement(self.objectives[0].predict(points), float(self.front[0, 0]))
        draws = [_draws(process, points, kind, generator) for process in self.objectives]
        if self.region is None:
            return chance - draws[0][:, 0]
        values = [power.values(drawn) for drawn, power in zip(draws, self.powers, strict=True)]
        return chance + np.log(np.maximum(expected_hypervolume_improvement(values, self.region), TINY))

    def believing(self, points: Groups) -> Model:
        """This model as if the points had been evaluated to their predicted means (kriging believer: Ginsbourger, Le Riche &
        Carraro, 2010). What is best so far stays what it is."""
        objectives = tuple(process.believing(points) for process in self.objectives)
        feasibility = tuple((process.believing(points), limit) for process, limit in self.feasibility)
        return replace(self, objectives=objectives, feasibility=feasibility)


@dataclass(eq=False)
class Fitter:
    """Makes models of trials. It remembers the lengths of processes, from which the next fit starts.

    Attributes:
        problem: what is searched.
        kind: ``gp``: Gaussian processes, which cost the cube of the number of trials; ``forest``: ensembles of trees.
        seed: of the ensembles' randomness.
        ranks: judge a single objective by the ranks of its values, whatever their scale.
        everywhere: features of points that will be predicted again and again: of this very tuple processes keep what they can.
    """

    problem: Problem
    kind: Kind = "gp"
    seed: int = 0
    ranks: bool = True
    everywhere: Groups | None = None
    _lengths: dict[str, tuple[int, Floats]] = field(default_factory=dict)
    _grids: dict[str, gp.Grid] = field(default_factory=dict)

    def __call__(self, trials: Sequence[Trial], features: Groups) -> Model:
        """The model of n trials with these features, in groups (n, width)."""
        problem = self.problem
        values = np.array([problem.values(t.metrics) for t in trials]).reshape(len(trials), len(problem.objectives))
        failed = np.array([t.error is not None for t in trials], dtype=bool)
        measured = ~failed & np.isfinite(values).all(axis=1)
        met = np.array([problem.violation(t.metrics) == 0 for t in trials], dtype=bool)
        rows, feasible = values[measured], met[measured]
        x = _take(features, measured)
        limits = self._feasibility(trials, features, failed)
        if not len(rows):
            return Model((), (), limits, np.empty((0, values.shape[1])))
        if values.shape[1] == 1 and self.ranks:
            scores = _scores(rows[:, 0])
            best = scores[feasible].min(keepdims=True) if feasible.any() else np.empty(0)
            return Model((self._fit("objective", x, scores),), (), limits, best[:, None])
        powers = tuple(fit(column) for column in rows.T)
        processes = tuple(self._fit(f"objective {k}", x, power.scores(column))
                          for k, (column, power) in enumerate(zip(rows.T, powers, strict=True)))
        good = rows[feasible]
        if not len(good):
            return Model(processes, powers, limits, good)
        front, reference = good[nondominated(good)], reference_point(good.min(axis=0), good.max(axis=0))
        return Model(processes, powers, limits, front, reference, region(front, reference))

    def _feasibility(self, trials: Sequence[Trial], features: Groups, failed: NDArray[np.bool_]
                     ) -> tuple[tuple[Surrogate, float], ...]:
        """A surrogate for every constraint, and one for failure; none for what was always or never met."""
        found = []
        for constraint in self.problem.constraints:
            known = np.array([constraint.name in t.metrics for t in trials], dtype=bool)
            values = np.array([t.metrics[constraint.name] for t in trials if constraint.name in t.metrics], dtype=float)
            found.append((constraint.name, known, values, constraint.upper))
        found.append(("failure", np.ones(len(trials), dtype=bool), failed.astype(float), 0.0))
        pairs = []
        for name, known, values, upper in found:
            above, below = values[values > upper], values[values <= upper]
            if len(above) and len(below):
                limit = np.floor(upper) + 0.5 if (values % 1 == 0).all() else upper  # of what is counted or is yes or no
                pairs.append((self._fit(name, _take(features, known), values), float(limit)))
        return tuple(pairs)

    def _fit(self, name: str, x: Groups, y: Floats) -> Surrogate:
        """A surrogate; a process starts from the lengths of its last fit, or keeps them if little is new."""
        if self.kind == "forest" or len(y) > MOST:
            return forest.fit(x, y, integer(self.seed, len(y), name))
        n, theta = self._lengths.get(name, (0, None))
        if theta is not None and len(y) - n < len(y) / REFIT:
            process = gp.fit(x, y, theta, iterations=0)
        else:
            process = gp.fit(x, y, theta)
            self._lengths[name] = (len(y), process.theta)
        if self.everywhere is None:
            return process
        return gp.Everywhere(process, self._grids.setdefault(name, gp.Grid(self.everywhere)))


def _draws(process: Surrogate, points: Groups, kind: Acquisition, generator: np.random.Generator) -> Floats:
    """Equally probable values of every point on the process's scale, (m, q); a single one for ``lcb`` and ``ts``."""
    if kind == "ts":
        return process.sample(points, generator).T
    found = process.predict(points)
    return np.asarray(found.mean[:, None] + found.deviation[:, None] * (QUANTILES if kind == "ei" else -WIDTH * np.ones(1)))


def _take(features: Groups, which: NDArray[np.bool_]) -> Groups:
    return tuple(group[which] for group in features)


def _scores(values: Floats) -> Floats:
    """Normal scores of the ranks (Blom, 1958), ties sharing theirs."""
    return np.asarray(norm.ppf((rankdata(values) - 0.375) / (len(values) + 0.25)))
