"""Problems with known fronts: the pseudo-Boolean benchmarks of run-time analysis and a discretised DTLZ2.

A `Synthetic` is a problem, its true front and an estimator in one: ``search(s.problem, strategy, s, ...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nasopt.errors import InputError
from nasopt.seed import rng
from nasopt.space import Arch, Choice, Product, Rows, key, layout
from nasopt.trial import Ask, Objective, Problem

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Synthetic:
    """A problem that can be computed; calling it with an ask returns the metrics.

    Attributes:
        name: what it is called in tables.
        problem: the space and the objectives.
        measure: rows of the space's layout (n, columns) -> metrics (n, objectives), in the objectives' own direction.
        front: the true front, shape (points, objectives), in lexicographic order, **to be minimised** as
            `Problem.values` has it.
    """

    name: str
    problem: Problem
    measure: Callable[[Rows], Floats]
    front: Floats

    def __call__(self, ask: Ask, /) -> dict[str, float]:
        return self.metrics([ask.arch])[0]

    def metrics(self, archs: Sequence[Arch]) -> list[dict[str, float]]:
        """The metrics of many architectures at once."""
        names = [o.name for o in self.problem.objectives]
        values = self.measure(layout(self.problem.space).rows(archs)).tolist()
        return [dict(zip(names, row, strict=True)) for row in values]

    def found(self, values: Floats) -> int:
        """How many points of the true front are among ``values`` (n, objectives; to be minimised)."""
        return len({tuple(p) for p in self.front.tolist()} & {tuple(v) for v in np.asarray(values).tolist()})


def _bits(n: int) -> Product:
    return Product("", [Choice(f"b{i}", ("0", "1")) for i in range(n)])


def _maximise(names: Sequence[str]) -> tuple[Objective, ...]:
    return tuple(Objective(name, minimise=False) for name in names)


def _sorted(points: Floats) -> Floats:
    return np.unique(points, axis=0)


def one_min_max(n: int, objectives: int = 2) -> Synthetic:
    """OneMinMax (Giel & Lehre, 2010): the zeros and the ones of a bit string, all maximised. Every string is optimal.

    With an even number of objectives the string is cut into objectives/2 equal blocks, and the zeros and ones of each
    are counted. With three the objectives are the zeros of the whole string and the ones of either half:
    (n/2+1)^2 points. Both from Zheng & Doerr, arXiv 2211.13084.

    Raises:
        InputError: ``n`` bits cannot be cut into equal blocks, or the number of objectives is neither 3 nor even.
    """
    blocks = 2 if objectives == 3 else objectives // 2
    if objectives < 2 or (objectives != 3 and objectives % 2) or n < 1 or n % blocks:
        raise InputError(f"OneMinMax with {n} bits and {objectives} objectives does not exist: "
                         "give 3 or an even number of objectives and bits that divide into its blocks.")

    def measure(rows: Rows) -> Floats:
        ones = rows.reshape(len(rows), blocks, n // blocks).sum(axis=2)
        return objective_values(ones)

    def objective_values(ones: NDArray[np.int64]) -> Floats:
        if objectives == 3:
            return np.column_stack([n - ones.sum(axis=1), ones]).astype(float)
        return np.stack([n // blocks - ones, ones], axis=2).reshape(len(ones), -1).astype(float)

    counts = np.array(list(product(range(n // blocks + 1), repeat=blocks)), dtype=np.int64)
    problem = Problem(_bits(n), _maximise([f"f{k}" for k in range(objectives)]))
    return Synthetic(f"OneMinMax, {objectives} objectives, n={n}", problem, measure, _sorted(-objective_values(counts)))


def lotz(n: int) -> Synthetic:
    """LOTZ (Laumanns, Thiele & Zitzler, IEEE TEC 2004): leading ones and trailing zeros, both maximised; n+1 points."""

    def measure(rows: Rows) -> Floats:
        leading = np.cumprod(rows, axis=1).sum(axis=1)
        trailing = np.cumprod(1 - rows[:, ::-1], axis=1).sum(axis=1)
        return np.column_stack([leading, trailing]).astype(float)

    front = np.array([[k, n - k] for k in range(n + 1)], dtype=float)
    return Synthetic(
        f"LOTZ, n={n}", Problem(_bits(n), _maximise(["leading_ones", "trailing_zeros"])), measure, _sorted(-front)
    )


def dtlz2(variables: int = 10, levels: int = 11, objectives: int = 3) -> Synthetic:
    """DTLZ2 (Deb et al., CEC 2002) on a grid of ``levels`` values a variable, minimised; values rounded to 12 digits.

    The first objectives-1 variables are the position on the front, the others the distance from it, which is 0 exactly
    at 1/2: hence an odd number of levels. A point off the unit sphere is dominated by the one on it of equal position,
    so the front is the image of the grid of positions.

    Raises:
        InputError: an even number of levels, or too few variables.
    """
    if levels % 2 == 0 or levels < 3 or objectives < 2 or variables < objectives - 1:
        raise InputError(
            f"DTLZ2 with {variables} variables, {levels} levels and {objectives} objectives does not exist: "
            "give an odd number of levels from 3 and at least objectives - 1 variables."
        )

    def measure(rows: Rows) -> Floats:
        x = rows / (levels - 1)
        distance = ((x[:, objectives - 1:] - 0.5) ** 2).sum(axis=1)
        angle = x[:, :objectives - 1] * (np.pi / 2)
        cosines = np.cumprod(np.column_stack([np.ones(len(x)), np.cos(angle)]), axis=1)[:, ::-1]
        sines = np.column_stack([np.ones(len(x)), np.sin(angle)[:, ::-1]])
        return np.asarray(np.round((1 + distance)[:, None] * cosines * sines, 12) + 0.0)

    space = Product("", [Choice(f"x{i}", [f"{v / (levels - 1):g}" for v in range(levels)]) for i in range(variables)])
    positions = np.array(list(product(range(levels), repeat=objectives - 1)), dtype=np.int64)
    middle = np.full((len(positions), variables - objectives + 1), (levels - 1) // 2)
    problem = Problem(space, tuple(Objective(f"f{k}") for k in range(objectives)))
    return Synthetic(f"DTLZ2, {variables} variables of {levels} levels", problem, measure,
                     _sorted(measure(np.column_stack([positions, middle]))))


def bad_options(vital: int = 3, minor: int = 5) -> Synthetic:
    """A loss in [0, 1] that some options spoil: 0.9 times the share of the ``vital`` choices (good, bad) that are bad, plus 0.1
    times the mean of the ``minor`` ones (0 to 3) over 3. One optimum, of loss 0: the first option everywhere.

    Raises:
        InputError: fewer than 1 choice of a kind.
    """
    if vital < 1 or minor < 1:
        raise InputError(f"{vital} vital and {minor} minor choices: give at least 1 of each.")

    def measure(rows: Rows) -> Floats:
        return np.asarray(0.9 * rows[:, :vital].mean(axis=1) + 0.1 * rows[:, vital:].mean(axis=1) / 3)[:, None]

    space = Product("", [*[Choice(f"vital{k}", ("good", "bad")) for k in range(vital)],
                         *[Choice(f"minor{k}", "0123") for k in range(minor)]])
    return Synthetic(f"bad options, {vital} vital and {minor} minor choices", Problem(space, (Objective("error"),)), measure,
                     np.zeros((1, 1)))


@dataclass(frozen=True)
class LowFidelity:
    """A synthetic problem whose values below full fidelity are wrong, as short trainings are; at fidelity 1 they are exact.

    At fidelity f an objective is its true value + (1 - f) (bias · b + noise · e). b is standard normal, one number for every
    architecture and objective: a short training misjudges it every time. e is standard normal, new for every ask.

    Attributes:
        exact: the problem.
        bias, noise: standard deviations at fidelity 0, in the units of the objectives.

    Raises:
        InputError: a negative standard deviation.
    """

    exact: Synthetic
    bias: float
    noise: float

    def __post_init__(self) -> None:
        if self.bias < 0 or self.noise < 0:
            raise InputError(f"bias {self.bias} and noise {self.noise} are standard deviations: give at least 0.")

    def __call__(self, ask: Ask, /) -> dict[str, float]:
        true = self.exact(ask)
        b = rng(0, int(key(ask.arch), 16), "bias of low fidelity").standard_normal(len(true))
        e = rng(ask.seed, ask.number, "noise of low fidelity").standard_normal(len(true))
        wrong = (1 - ask.fidelity) * (self.bias * b + self.noise * e)
        return {name: value + float(w) for (name, value), w in zip(true.items(), wrong, strict=True)}
