"""Any sampler of Optuna (Akiba et al., KDD 2019) as a strategy: the one file of this room that imports it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from nasopt.errors import InputError
from nasopt.seed import integer, rng
from nasopt.space import Arch, Rows, walk
from nasopt.strategies.random import Unseen
from nasopt.trial import Ask, Problem, Trial

try:
    import cmaes  # noqa: F401  Optuna's CMA-ES needs it
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
    from optuna.trial import TrialState
except ImportError as missing:
    raise InputError(f"the strategies of Optuna need the package {missing.name!r}, which is not installed: "
                     "run pip install 'nasopt[optuna]'.") from missing

TRIES = 4
"""Proposals in a row that may be networks already asked for or graphs that are not valid before a random one is asked instead."""

PENALTY = 1e9
"""What an infeasible trial is worth to a sampler that knows no constraints: more than any feasible one."""


@dataclass(frozen=True)
class Method:
    """A sampler of Optuna and how the space is put to it.

    Attributes:
        sampler: makes one from its seed, 32 bits.
        conditional: it learns from choices that only some architectures make, so that it is asked for those that are active
            alone, parents first. Otherwise it is asked for all, those that are inactive included: samplers that want one
            fixed space would draw the others at random.
        numbers: choices are put to it as integers in the order of their options, because it knows no categories.
        generations: it learns only from trials that it has counted into one of its generations, which it does when it samples;
            so it is made to sample where others proposed.
        plain: it knows one objective and no constraints. It must care for the order of the values alone.
    """

    sampler: Callable[[int], optuna.samplers.BaseSampler]
    conditional: bool = False
    numbers: bool = False
    generations: bool = False
    plain: bool = False


METHODS: Mapping[str, Method] = {
    "tpe": Method(lambda seed: optuna.samplers.TPESampler(seed=seed), conditional=True),
    "gp": Method(lambda seed: optuna.samplers.GPSampler(seed=seed)),
    "cmaes": Method(lambda seed: optuna.samplers.CmaEsSampler(seed=seed, with_margin=True), numbers=True, plain=True),
    "nsga2": Method(lambda seed: optuna.samplers.NSGAIISampler(seed=seed), generations=True),
    "nsga3": Method(lambda seed: optuna.samplers.NSGAIIISampler(seed=seed), generations=True),
}
"""Samplers by name: tree-structured Parzen estimators, Gaussian processes, CMA-ES with margin (Hamano et al., GECCO 2022;
choices as integers; it learns from what it proposed alone), and Optuna's NSGA-II and NSGA-III."""


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna neither logs nor warns of its experimental parts inside; its verbosity is the user's again afterwards."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        logger.setLevel(level)


class OptunaSearch:
    """Asks what a sampler of Optuna proposes, through a study in memory.

    No network (see `space.canonical`) is asked twice: a proposal that is known is told its result at once and the next one
    is taken, `TRIES` times; then a random unseen network is asked. Failed trials are told as failed; a constraint is told as
    `Problem.violation`; where an infeasible trial lacks an objective, the worst value so far stands for it.

    Args:
        problem: what to search.
        seed: the run's seed; the sampler's is made from it.
        method: the sampler, one of `METHODS` or your own.
        initial: architectures to ask first.
        name: who the asks are by.

    Raises:
        InputError: the method knows one objective alone, and the problem has several.
    """

    def __init__(self, problem: Problem, seed: int = 0, method: Method = METHODS["tpe"], initial: Sequence[Arch] = (),
                 name: str = "optuna") -> None:
        if method.plain and len(problem.objectives) > 1:
            raise InputError(f"{name} optimises one objective, but there are {len(problem.objectives)}: "
                             "choose another strategy, or one objective.")
        self.problem, self.seed, self.name = problem, seed, name
        self._method = method
        self._unseen = Unseen(problem)
        self._layout = self._unseen.layout
        self._initial = self._layout.rows(list(initial))
        self._worst = np.full(len(problem.objectives), -np.inf)
        self._known: dict[bytes, Trial] = {}
        self._open: dict[bytes, list[optuna.Trial]] = {}  # what is asked, and the proposals that its result answers
        kind = _number if method.numbers else _category
        self._distributions = {gene.path: kind(len(gene.labels)) for gene in self._layout.genes}
        with quiet():
            self._study = optuna.create_study(directions=["minimize"] * len(problem.objectives),
                                              sampler=method.sampler(integer(seed, 0, "optuna") % 2**32))

    def ask(self, n: int, first: int) -> list[Ask]:
        """Up to ``n``; fewer, in the end none, when the space is exhausted."""
        with quiet():
            return self._unseen.asks(n, first, self._next, self.seed, self.name)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes trials of full fidelity, others' included; of several for one network the first counts."""
        full = [t for t in trials if t.ask.fidelity >= 1]
        rows = self._unseen.canonical(self._layout.rows([t.ask.arch for t in full]))
        self._unseen.add(rows)
        with quiet():
            for k, trial in enumerate(full):
                name = rows[k].tobytes()
                if name in self._known:
                    continue
                self._known[name] = trial
                for proposal in self._open.pop(name, None) or [self._enter(rows[k:k + 1])]:
                    self._answer(proposal, trial)

    def _next(self, number: int) -> Rows:
        """One row, or none."""
        self._initial = self._unseen.fresh(self._initial)
        if len(self._initial):
            return self._admit(self._initial[:1])
        for _ in range(TRIES):
            proposal, arch = self._propose()
            row = self._layout.rows([arch])
            if not self._layout.valid(row)[0]:
                self._study.tell(proposal, state=TrialState.FAIL)
                continue
            row = self._unseen.canonical(row)
            name = row.tobytes()
            if name in self._known:
                self._answer(proposal, self._known[name])
                continue
            new = name not in self._open
            self._open.setdefault(name, []).append(proposal)
            if new:
                return row
        return self._admit(self._unseen.draw(1, rng(self.seed, number, "optuna")))

    def _propose(self) -> tuple[optuna.Trial, dict[str, int]]:
        """The sampler's next proposal and its choices, whose graphs may not be valid: samplers know of no such rule."""
        if not self._method.conditional:
            proposal = self._study.ask(self._distributions)
            return proposal, proposal.params
        proposal, arch = self._study.ask(), dict[str, int]()

        def pick(path: str, labels: tuple[str, ...]) -> int:
            arch[path] = proposal.suggest_categorical(path, range(len(labels)))
            return arch[path]

        with suppress(ValueError):  # raised when all is chosen, for a graph that is not valid
            walk(self.problem.space, pick)
        return proposal, arch

    def _admit(self, row: Rows) -> Rows:
        """Notes that ``row``, if it is one, is asked without the sampler having proposed it."""
        if len(row):
            self._open.setdefault(row.tobytes(), []).append(self._enter(row))
        return row

    def _enter(self, row: Rows) -> optuna.Trial:
        """A proposal that is not the sampler's."""
        params = self._layout.archs(row)[0] if self._method.conditional else dict(
            zip(self._distributions, row[0].tolist(), strict=True))
        self._study.enqueue_trial(params)
        proposal, _ = self._propose()
        if self._method.generations:
            _ = proposal.relative_params
        return proposal

    def _answer(self, proposal: optuna.Trial, trial: Trial) -> None:
        """Tells the sampler the result of its proposal."""
        values = self._values(trial)
        if values is None:
            self._study.tell(proposal, state=TrialState.FAIL)
            return
        if self.problem.constraints and not self._method.plain:
            proposal.set_constraint("violation", self.problem.violation(trial.metrics))
        self._study.tell(proposal, values)

    def _values(self, trial: Trial) -> list[float] | None:
        """What the sampler is to minimise, finite; None for a trial that failed, or that lacks an objective which no trial had
        before it."""
        values, violation = np.array(self.problem.values(trial.metrics)), self.problem.violation(trial.metrics)
        measured = np.isfinite(values)
        if trial.error is not None or not np.isfinite(violation) or (violation == 0 and not measured.all()):
            return None
        if self._method.plain and violation > 0:
            return [PENALTY * (1 + violation)]
        self._worst = np.where(measured, np.maximum(self._worst, values), self._worst)
        told = np.where(measured, values, self._worst)
        return [float(v) for v in told] if np.isfinite(told).all() else None


def _category(options: int) -> BaseDistribution:
    return CategoricalDistribution(range(options))


def _number(options: int) -> BaseDistribution:
    return IntDistribution(0, options - 1)
