"""Bayesian optimisation: a model predicts the candidates, an acquisition weighs what each promises, the best is asked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from nasopt.errors import InputError, unknown
from nasopt.seed import rng
from nasopt.space import Arch, Rows, Space, at_most, connected, everything, layout, uniform
from nasopt.strategies.evolution import completed, pool_of
from nasopt.strategies.random import Unseen
from nasopt.surrogates.features import Groups, Hints, Scores, featuriser
from nasopt.surrogates.model import Acquisition, Fitter, Kind, Model
from nasopt.trial import Ask, Problem, Trial

Floats: TypeAlias = NDArray[np.float64]

DESIGN = 6
"""Architectures that a model begins with."""

ENUMERATE = 20_000
"""Spaces up to this many strings are searched whole for the best candidate, larger ones by sampling and climbing."""

DRAWN = 1000
"""Of the networks of such a space, how many a joint draw is made for (a random choice; it costs the cube)."""

PARENTS, MUTANTS, STRANGERS, CLIMBS = 10, 400, 400, 3
"""In large spaces: how many of the best trials are varied, into how many candidates, how many random ones there are besides, and
how often the neighbours of the most promising candidates join them."""


class BayesianOptimization:
    """Bayesian optimisation over architectures that are different networks (see `space.canonical`).

    The values of one objective become normal scores by rank, those of several are bent by powers (`surrogates.power`). What
    constraints bound and whether evaluations fail are learned, too. Asks that are pending count as told at their predictions.

    No regret bound holds: those that are known need a kernel and a noise that are not fitted.

    Args:
        problem: what to search.
        seed: the run's seed.
        surrogate: ``gp`` or ``forest``, see `surrogates.model.Fitter`.
        acquisition: what a candidate is chosen by: ``ei``, ``lcb`` or ``ts``, see `surrogates.model.Model.promise`.
        start: architectures asked before the first model: those of `space.uniform` in random order, what does not see its input
            last (a cell without operations teaches much, but is no good to begin with), then random ones; with several
            objectives, of which the uniform ones are no good compromises, random ones and those by turns.
        initial: architectures to ask first; they count for ``start``, as do others' trials.
        hints: what is known of architectures for nothing, such as zero-cost proxies: more features.
        ranks: judge a single objective by the ranks of its values, whatever their scale.
        unseen: what was seen, shared by strategies that search together, so that none asks what another did.

    Raises:
        InputError: a start below 2, or an unknown surrogate or acquisition.
    """

    def __init__(self, problem: Problem, seed: int = 0, surrogate: Kind = "gp", acquisition: Acquisition = "ei",
                 start: int = DESIGN, initial: Sequence[Arch] = (), hints: Hints | None = None, ranks: bool = True,
                 unseen: Unseen | None = None) -> None:
        if start < 2:
            raise InputError(f"Bayesian optimisation must start with at least 2 architectures, got {start}.")
        if acquisition not in get_args(Acquisition):
            raise unknown("acquisition", acquisition, get_args(Acquisition))
        if surrogate not in get_args(Kind):
            raise unknown("surrogate", surrogate, get_args(Kind))
        self.problem, self.seed, self.acquisition = problem, seed, acquisition
        self._name = f"{surrogate} {acquisition}"
        self._unseen, self._fit = unseen or Unseen(problem), Fitter(problem, surrogate, seed, ranks)
        self._scores = None if hints is None else Scores.of(problem.space, hints)
        self._initial = self._unseen.layout.rows(list(initial))
        self._uniform = self._unseen.layout.rows(_designs(problem, rng(seed, 0, "design")))
        self._start = start
        self._told: dict[int, Trial] = {}
        self._pending: dict[int, Rows] = {}

    def ask(self, n: int, first: int) -> list[Ask]:
        """Up to ``n``; fewer, in the end none, when the space is exhausted."""
        with _blas().limit(limits=1, user_api="blas"):
            return self._ask(n, first)

    def _ask(self, n: int, first: int) -> list[Ask]:
        asks: list[Ask] = []
        model: Model | None = None
        for number in range(first, first + n):
            generator = rng(self.seed, number, "bayes")
            row = self._design(generator)
            if row is None:
                model = model or self.model()
                row = self._best(model, generator)
            if not len(row):
                break
            self._unseen.add(row)
            self._pending[number] = row
            if model is not None and len(asks) < n - 1:
                model = model.believing(self._features(row))
            asks.append(Ask(number, self._unseen.layout.archs(row)[0], 1.0, self.seed, self._name))
        return asks

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes trials of full fidelity, others' included."""
        for trial in trials:
            self._pending.pop(trial.ask.number, None)
            if trial.ask.fidelity >= 1:
                self._unseen.add_archs([trial.ask.arch])
                self._told[trial.ask.number] = trial

    def _design(self, generator: np.random.Generator) -> Rows | None:
        """A row that no model chooses, or None."""
        self._initial = self._unseen.fresh(self._initial)
        if len(self._initial):
            return self._initial[:1]
        if self._told and len(self._told) + len(self._pending) >= self._start:
            return None
        self._uniform = self._unseen.fresh(self._uniform)
        return self._uniform[:1] if len(self._uniform) else self._unseen.draw(1, generator)

    def _features(self, rows: Rows) -> Groups:
        """The features of canonical rows."""
        return (*featuriser(self.problem.space)(rows), *([] if self._scores is None else [self._scores(rows)]))

    def model(self) -> Model:
        """The model of everything told and pending."""
        if self._fit.everywhere is None and at_most(self.problem.space, ENUMERATE):
            self._fit.everywhere = self._everywhere
        told = [self._told[k] for k in sorted(self._told)]
        lay = self._unseen.layout
        model = self._fit(told, self._features(lay.canonical(lay.rows([t.ask.arch for t in told]))))
        waiting = [self._pending[k] for k in sorted(self._pending)]
        return model.believing(self._features(np.concatenate(waiting))) if waiting else model

    def promises(self, model: Model, generator: np.random.Generator) -> tuple[Rows, Floats]:
        """Unseen rows (m, columns) and what they promise (m,): all there are, or in large spaces those that sampling and climbing
        come to. None if the space is exhausted."""
        if not at_most(self.problem.space, ENUMERATE):
            return self._climb(self._candidates(generator), model, generator)
        rows = _everything(self.problem.space)
        left = self._unseen.places(rows)
        if not len(left):
            return rows[left], np.empty(0)
        if self.acquisition != "ts":
            return rows[left], model.promise(self._everywhere, self.acquisition, generator)[left]
        drawn = generator.permutation(left)[:DRAWN]
        return rows[drawn], model.promise(tuple(group[drawn] for group in self._everywhere), "ts", generator)

    def _best(self, model: Model, generator: np.random.Generator) -> Rows:
        """The row that promises most, a random one among equals, or none."""
        rows, values = self.promises(model, generator)
        return rows[[generator.choice(np.flatnonzero(values == values.max()))]] if len(rows) else rows

    @cached_property
    def _everywhere(self) -> Groups:
        """The features of every different network of the space."""
        return self._features(_everything(self.problem.space))

    def _candidates(self, generator: np.random.Generator) -> Rows:
        """Unseen rows: variations of the best trials, and random ones."""
        lay = self._unseen.layout
        pool = pool_of(self.problem, lay, [self._told[k] for k in sorted(self._told)])
        best = pool.rows[np.lexsort((generator.random(len(pool)), pool.crowding * -1, pool.rank))[:PARENTS]]
        a, b = (best[generator.integers(len(best), size=MUTANTS)] for _ in range(2))
        a, b = completed(lay, a, b, generator)
        bred = lay.vary(np.where(generator.random((MUTANTS, 1)) < 0.5, lay.cross(a, b, generator), a), generator)
        rows = self._unseen.fresh(np.concatenate([bred, lay.random(generator, STRANGERS)]))
        return rows if len(rows) else self._unseen.draw(STRANGERS, generator)

    def _climb(self, rows: Rows, model: Model, generator: np.random.Generator) -> tuple[Rows, Floats]:
        """The rows, after the neighbours of the most promising ones have joined them a few times, and what all promise."""
        if not len(rows):
            return rows, np.empty(0)

        def promise(rows: Rows) -> Floats:
            return model.promise(self._features(rows), self.acquisition, generator)

        values = promise(rows)
        for _ in range(CLIMBS):
            top = rows[np.argsort(-values, kind="stable")[:PARENTS]]
            known = {row.tobytes() for row in rows}
            new = self._unseen.fresh(self._unseen.layout.neighbours(top))
            new = new[[row.tobytes() not in known for row in new]]
            if not len(new):
                break
            rows, values = np.concatenate([rows, new]), np.concatenate([values, promise(new)])
        return rows, values


def _designs(problem: Problem, generator: np.random.Generator) -> list[Arch]:
    """What a search begins with, see `BayesianOptimization`."""
    found = uniform(problem.space)
    mixed = [found[k] for k in generator.permutation(len(found))]
    ordered = sorted(mixed, key=lambda arch: not connected(problem.space, arch))
    if len(problem.objectives) == 1:
        return list(ordered)
    lay = layout(problem.space)
    return [arch for pair in zip(lay.archs(lay.random(generator, len(ordered))), ordered, strict=True) for arch in pair]


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    """Of the linear algebra's threads: its matrices are small, and several threads are slower than one."""
    return ThreadpoolController()


@lru_cache(maxsize=8)
def _everything(space: Space) -> Rows:
    """Every different network of a space, once."""
    lay = layout(space)
    return np.unique(lay.canonical(lay.rows(list(everything(space)))), axis=0)
