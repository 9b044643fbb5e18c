"""Progressive search: the space grows step by step, and options that are worse for certain are dropped.

A step is a sub-space, given by a predicate over options. Within it an option of a choice is an arm of a bandit: its loss is that
of a random architecture that holds it. `Progressive.certificate` says what was dropped, and what is certain about that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise, product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nasopt.analysis.elimination import beaten, intervals
from nasopt.analysis.pareto import Archive
from nasopt.errors import InputError
from nasopt.seed import rng
from nasopt.space import Arch, Layout, Rows, Space, layout
from nasopt.strategies.random import Unseen
from nasopt.trial import Ask, Problem, Trial

Floats: TypeAlias = NDArray[np.float64]
Admits: TypeAlias = Callable[[str, str], bool]
"""(path of a choice, label of an option) -> whether the step's sub-space holds it."""

TRIES = 32
"""Draws of networks that were seen before, in a row, after which the sub-space is scanned for one that was not."""


def growth(space: Space, steps: int = 2) -> list[Admits]:
    """Sub-spaces that grow evenly to the whole space, small networks first: in cells the inner nodes and the operations in their
    order (edges of other nodes are ``none``, which is always there), and of repeated parts the smaller numbers of copies. Choices
    outside cells, and cells without ``none``, are whole from the start. (Small cells first: Liu et al., Progressive Neural
    Architecture Search, ECCV 2018, arXiv 1712.00559.)

    Raises:
        InputError: fewer than 1 step.
    """
    if steps < 1:
        raise InputError(f"{steps} steps of growth: give at least 1.")
    return [_admits(layout(space), step / steps) for step in range(1, steps + 1)]


def _admits(lay: Layout, share: float) -> Admits:
    """Whether an option belongs to this share of the space."""
    whole = {gene.path: set(gene.labels) for gene in lay.genes}
    for cell, columns in lay.cells:
        if cell.none is not None:
            real = [label for label in cell.operations if label != cell.none]
            some = {cell.none, *real[:math.ceil(len(real) * share)]}
            last = math.ceil((cell.nodes - 2) * share)
            for column, edge in zip(columns, cell.edges, strict=True):
                dead = any(last < node < cell.nodes - 1 for node in edge)
                whole[lay.genes[column].path] = {cell.none} if dead else some
    for gene in lay.genes:
        if any(other.path.startswith(f"{gene.path}[") for other in lay.genes):
            whole[gene.path] = set(sorted(gene.labels, key=int)[:math.ceil(len(gene.labels) * share)])
    return lambda path, label: label in whole[path]


# ------------------------------------------------------------------------------------------------------------ certificate
@dataclass(frozen=True)
class Dropped:
    """An option that was given up.

    Attributes:
        stage: when, counted from 1.
        choice, option: path and label.
        by: the label of the option of this choice that was better in every objective.
        lower: lower bounds of the dropped option's mean losses, one an objective.
        upper: upper bounds of the other's, each below.
        draws: losses seen of the dropped option.
        low, high: the objectives' values (to be minimised) that are loss 0 and loss 1.
    """

    stage: int
    choice: str
    option: str
    by: str
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    draws: int
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Certificate:
    """What is certain about the options that were dropped; ``str`` says it in words.

    Attributes:
        delta: the probability that anything is wrong with it.
        gamma: the assumed envelope between measured and final mean losses.
        stages: stages begun.
        draws: architectures drawn in all of them.
        dropped: what was given up, in order.
        left: options of the present sub-space, by the path of the choice.
    """

    delta: float
    gamma: float
    stages: int
    draws: int
    dropped: tuple[Dropped, ...]
    left: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        envelope = (f"It speaks of final losses as far as |measured mean - final mean| <= gamma = {self.gamma:g} holds for every "
                    "option (assumed)." if self.gamma else
                    "It speaks of losses as measured: nothing is assumed, or said, about those after a longer training.")
        return (f"With probability at least {1 - self.delta:g} each of the {len(self.dropped)} dropped options has, in every "
                "objective, a larger mean loss than another option of its choice. The mean is over the measured losses, scaled "
                "to [0, 1] and clipped, of architectures of the stage's sub-space that hold the option, random and uniform in "
                "every choice that is active. "
                "Assumed: an architecture's loss is measured once, with noise that is independent of the draws. Not said: that "
                f"the best architecture holds none of them. {envelope}")


# --------------------------------------------------------------------------------------------------------------- strategy
@dataclass
class _Stage:
    """Draws from one fixed sub-space, in their order: rows and networks; how many, from the front, have their losses known. And a
    scan of all of it, with what it found and was not asked yet."""

    number: int
    options: list[NDArray[np.int64]]
    rows: list[Rows] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    ready: int = 0
    rest: Rows = field(init=False)
    scan: Iterator[tuple[int, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.rest = np.empty((0, len(self.options)), dtype=np.int64)
        self.scan = product(*[options.tolist() for options in self.options])


class Progressive:
    """Random search in a space that grows in steps and loses the options that are worse for certain, mixed with mutants of the
    front.

    Random architectures are drawn independently; a network that is drawn again counts again with the loss that it has, at no
    cost. After 16, 32, 64, ... known losses the bounds of `nasopt.analysis.elimination` are compared, and an option is dropped if
    another of its choice is better in every objective. Since the others' random completions change then, a new stage begins with
    new losses and δ_s = 6δ / (π² s²). A failed or infeasible architecture has loss 1. Unless ``bounds`` are given, the least and
    the largest value of the first draws of a step become losses 0 and 1; these draws are used for nothing else.

    Mutants (one choice changed, within the options that are left) and the trials of others improve the front and spare
    evaluations, but are no draws. Trials of a fidelity below 1 are ignored. No network is asked twice; the search ends when all
    that is left of the space was evaluated.

    Args:
        problem: what to search.
        seed: the run's seed.
        steps: sub-spaces before the whole one; None: the first of two steps of `growth`.
        draws: architectures drawn in each of them before the next one, at least 1.
        delta: probability that the certificate is wrong.
        gamma: envelope |measured mean loss - final mean loss| that widens every bound, in [0, 1).
        bounds: for every objective the values of loss 0 and loss 1, in its own direction and unit (error: (0, 1)).
        pilot: draws of a step that set the scale where no bounds are given, at least 2.
        exploit: share of mutants.
        initial: architectures to ask first.

    Raises:
        InputError: an argument out of range, a step without any option of a choice, one that does not hold the one before it, or
            a space with graphs, whose edges are not options that can be dropped one by one.
    """

    def __init__(self, problem: Problem, seed: int = 0, *, steps: Sequence[Admits] | None = None, draws: int = 100,
                 delta: float = 0.1, gamma: float = 0.0, bounds: Mapping[str, tuple[float, float]] | None = None, pilot: int = 16,
                 exploit: float = 0.5, initial: Sequence[Arch] = ()) -> None:
        if draws < 1 or pilot < 2 or not 0 < delta < 1 or not 0 <= gamma < 1 or not 0 <= exploit < 1:
            raise InputError(f"progressive search with draws={draws}, pilot={pilot}, delta={delta}, gamma={gamma}, "
                             f"exploit={exploit}: give at least 1 draw and 2 for the pilot, and probabilities below 1.")
        if layout(problem.space).graphs:
            raise InputError("progressive search cannot drop edges of a graph, whose combinations are not all networks: choose "
                             "another strategy.")
        self.problem, self.seed = problem, seed
        self._draws, self._delta, self._gamma, self._pilot, self._exploit = draws, delta, gamma, pilot, exploit
        self._given = None if bounds is None else _scale(problem, bounds)
        self._unseen = Unseen(problem)
        self._layout = self._unseen.layout
        self._initial = self._layout.rows(list(initial))
        before = growth(problem.space, 2)[:-1] if steps is None else steps
        self._steps = [[_options(gene.path, gene.labels, admits) for gene in self._layout.genes] for admits in before]
        self._steps.append([np.arange(n) for n in self._layout.options])
        if not all(np.isin(a, b).all() for old, new in pairwise(self._steps) for a, b in zip(old, new, strict=True)):
            raise InputError("a step lacks an option that the step before it admits: give sub-spaces that grow.")
        self._known: dict[bytes, Floats] = {}
        self._front: Archive[Rows] = Archive(len(problem.objectives))
        self._gone: list[Dropped] = []
        self._step = self._drawn = self._before = 0
        self._range = self._given
        self._stage = _Stage(1, self._steps[0])

    def ask(self, n: int, first: int) -> list[Ask]:
        """Up to ``n``; fewer, in the end none, when what is left of the space is exhausted."""
        return self._unseen.asks(n, first, lambda k: self._next(rng(self.seed, k, "progressive")), self.seed, "progressive")

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes trials of full fidelity, others' included."""
        for trial in trials:
            if trial.ask.fidelity >= 1:
                self._learn(trial)
        self._judge()

    def certificate(self) -> Certificate:
        """What is certain so far."""
        left = {gene.path: tuple(gene.labels[k] for k in options)
                for gene, options in zip(self._layout.genes, self._stage.options, strict=True)}
        return Certificate(self._delta, self._gamma, self._stage.number, self._before + len(self._stage.rows), tuple(self._gone),
                           left)

    # ------------------------------------------------------------------------------------------------------------- asking
    def _next(self, generator: np.random.Generator) -> Rows:
        """One canonical row that was not asked, or none."""
        self._initial = self._unseen.fresh(self._initial)
        if len(self._initial):
            return self._initial[:1]
        if generator.random() < self._exploit:
            mutant = self._mutant(generator)
            if len(mutant):
                return mutant
        return self._draw(generator)

    def _mutant(self, generator: np.random.Generator) -> Rows:
        """A neighbour of a random member of the front, with options that are left only; or none."""
        lay = self._layout
        if not self._front.payloads or not (lay.options > 1).any():
            return self._initial[:0]
        parent = self._front.payloads[int(generator.integers(len(self._front)))]
        parent = np.where(lay.active(parent), parent, _uniform(self._stage.options, generator))  # what becomes active is random
        rows = lay.vary(np.repeat(parent, TRIES, axis=0), generator, 0.0)
        left = [np.isin(rows[:, k], options) for k, options in enumerate(self._stage.options)]
        allowed = (np.column_stack(left) | ~lay.active(rows)).all(axis=1)
        return self._unseen.fresh(rows[allowed])[:1]

    def _draw(self, generator: np.random.Generator) -> Rows:
        """Draws from the stage's sub-space until a network is new; where none is, the first new one of a scan."""
        drawn: list[tuple[Rows, bytes]] = []
        for _ in range(TRIES):
            row = self._layout.silence(_uniform(self._stage.options, generator))
            drawn.append((row, self._unseen.canonical(row).tobytes()))
            new = self._unseen.fresh(row)
            if len(new):
                break
        else:
            new = self._left()
        if not len(new):
            return self._grown(generator) if self._step + 1 < len(self._steps) else new
        for row, name in drawn:
            self._stage.rows.append(row)
            self._stage.names.append(name)
        return new

    def _left(self) -> Rows:
        """The first network of the sub-space, in lexicographic order, that was not asked; or none."""
        stage = self._stage
        stage.rest = self._unseen.fresh(stage.rest)
        while not len(stage.rest) and (some := list(islice(stage.scan, 256))):
            stage.rest = self._unseen.fresh(self._layout.silence(np.array(some, dtype=np.int64)))
        return stage.rest[:1]

    def _grown(self, generator: np.random.Generator) -> Rows:
        self._grow()
        return self._draw(generator)

    # ----------------------------------------------------------------------------------------------------------- learning
    def _learn(self, trial: Trial) -> None:
        row = self._unseen.canonical(self._layout.rows([trial.ask.arch]))
        self._unseen.add(row)
        values = np.full(len(self.problem.objectives), np.inf)
        if self.problem.accepts(trial):
            values = np.array(self.problem.values(trial.metrics))
            self._front.add(values[None], [row])
        self._known.setdefault(row.tobytes(), values)

    def _judge(self) -> None:
        """Goes on along the draws whose losses are known, in their order, so that what comes back late biases nothing."""
        while True:
            stage = self._stage
            if stage.ready == len(stage.names) or stage.names[stage.ready] not in self._known:
                return
            stage.ready += 1
            self._drawn += 1
            if self._range is None:
                self._set_scale()
            elif stage.ready >= 16 and stage.ready & (stage.ready - 1) == 0:
                self._eliminate()
            if self._drawn >= self._draws and self._step + 1 < len(self._steps):
                self._grow()

    def _set_scale(self) -> None:
        """Ends the pilot when its losses differ; the stage begins anew."""
        values = self._values()
        finite = values[np.isfinite(values).all(axis=1)]
        if len(values) >= self._pilot and len(finite) and (finite.min(axis=0) < finite.max(axis=0)).all():
            self._range = finite.min(axis=0), finite.max(axis=0)
            self._begin(self._stage.options, self._stage.number)

    def _grow(self) -> None:
        """The next step, without what was dropped before."""
        self._step, self._drawn, self._range = self._step + 1, 0, self._given
        gone = {(d.choice, d.option) for d in self._gone}
        options = [np.array([k for k in step if (gene.path, gene.labels[k]) not in gone], dtype=np.int64)
                   for gene, step in zip(self._layout.genes, self._steps[self._step], strict=True)]
        self._begin(options, self._stage.number + 1)

    def _begin(self, options: list[NDArray[np.int64]], number: int) -> None:
        self._before += len(self._stage.rows)
        self._stage = _Stage(number, options)

    def _values(self) -> Floats:
        """Objectives of the draws that are known, (draws, objectives), to be minimised."""
        return np.array([self._known[name] for name in self._stage.names[:self._stage.ready]])

    def _eliminate(self) -> None:
        """Drops what is worse for certain; if anything is, a new stage begins."""
        assert self._range is not None
        low, high = self._range
        with np.errstate(invalid="ignore"):
            losses = np.clip((self._values() - low) / (high - low), 0.0, 1.0)
        rows = np.concatenate(self._stage.rows[:self._stage.ready])
        on = self._layout.active(rows)
        arms = sum(len(o) for o in self._stage.options if len(o) > 1) * losses.shape[1]
        delta = 6 * self._delta / (np.pi * self._stage.number) ** 2
        left = list(self._stage.options)
        for k, options in enumerate(self._stage.options):
            if len(options) > 1:
                left[k] = self._compare(k, options, [losses[on[:, k] & (rows[:, k] == o)] for o in options], arms, delta)
        if any(len(a) < len(b) for a, b in zip(left, self._stage.options, strict=True)):
            self._begin(left, self._stage.number + 1)

    def _compare(self, k: int, options: NDArray[np.int64], losses: Sequence[Floats], arms: int, delta: float
                 ) -> NDArray[np.int64]:
        """The options of column ``k`` that are left; losses (draws, objectives) of each."""
        assert self._range is not None
        count = np.array([len(seen) for seen in losses])
        mean = np.array([seen.mean(axis=0) if len(seen) else seen.sum(axis=0) for seen in losses])
        variance = np.array([seen.var(axis=0, ddof=1) if len(seen) > 1 else seen.sum(axis=0) * 0 for seen in losses])
        lower, upper = intervals(count[:, None], mean, variance, arms, delta)
        lower, upper = lower - self._gamma, upper + self._gamma
        by, gene = beaten(lower, upper), self._layout.genes[k]
        for a in np.flatnonzero(by >= 0).tolist():
            self._gone.append(Dropped(self._stage.number, gene.path, gene.labels[options[a]], gene.labels[options[by[a]]],
                                      tuple(lower[a].tolist()), tuple(upper[by[a]].tolist()), int(count[a]),
                                      tuple(self._range[0].tolist()), tuple(self._range[1].tolist())))
        return options[by < 0]


def _uniform(options: Sequence[NDArray[np.int64]], generator: np.random.Generator) -> Rows:
    """One row, uniform over the options of every column."""
    places = generator.integers(0, [len(o) for o in options])
    return np.array([[o[place] for o, place in zip(options, places.tolist(), strict=True)]], dtype=np.int64)


def _options(path: str, labels: Sequence[str], admits: Admits) -> NDArray[np.int64]:
    found = np.array([k for k, label in enumerate(labels) if admits(path, label)], dtype=np.int64)
    if not len(found):
        raise InputError(f"a step admits no option of the choice {path!r}: admit at least one of {', '.join(labels)}.")
    return found


def _scale(problem: Problem, bounds: Mapping[str, tuple[float, float]]) -> tuple[Floats, Floats]:
    """Losses 0 and 1 as values to be minimised."""
    pairs = []
    for o in problem.objectives:
        if o.name not in bounds:
            raise InputError(f"bounds lack the objective {o.name!r}: give its values of loss 0 and loss 1.")
        best, worst = (v if o.minimise else -v for v in bounds[o.name])
        if not best < worst:
            raise InputError(f"bounds of {o.name!r} are {bounds[o.name]}: give the best value first, then a worse one.")
        pairs.append((best, worst))
    low, high = np.array(pairs).T
    return low, high
