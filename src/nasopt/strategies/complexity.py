"""What the strategies and their parts cost: declared bounds, and how each is run at a size n so that it can be counted.

To add a part, add its line to `PARTS`. Every strategy of the catalogue has its line in `BOUNDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nasopt.analysis.complexity import Bound, Slope, can_count, instructions, marked, octaves, peak_bytes, slope
from nasopt.analysis.hypervolume import hypervolume
from nasopt.analysis.pareto import Archive, ranks
from nasopt.errors import unknown
from nasopt.protocols import Strategy
from nasopt.seed import rng
from nasopt.space import Choice, Product, layout
from nasopt.strategies import catalogue
from nasopt.strategies.evolution import Pool, balanced
from nasopt.surrogates import gp
from nasopt.trial import Ask, Objective, Problem, Trial

Floats = NDArray[np.float64]

STEPS = 48
"""Asks, each with its tell, over which the cost of a strategy is summed: two generations of the catalogue's NSGA-II."""
PROBLEM = Problem(Product("", [Choice(f"c{k}", "abcdefgh") for k in range(12)]), (Objective("f0"),))
"""The strategies are counted on 8^12 architectures and one objective."""


@dataclass(frozen=True)
class Part:
    """Something whose cost is counted.

    Attributes:
        size: what n is.
        sizes: n for every count.
        time, space: the declared bounds.
        prepare: n -> the call that is counted.
    """

    size: str
    sizes: tuple[int, ...]
    time: Bound
    space: Bound
    prepare: Callable[[int], Callable[[], object]]


# ------------------------------------------------------------------------------------------------------- parts at a size
def _sphere(n: int, m: int = 3) -> Floats:
    """Points that do not dominate each other, (n, m)."""
    direction = np.abs(rng(0, n, "complexity").normal(size=(n, m)))
    return np.asarray(1 - direction / np.linalg.norm(direction, axis=1, keepdims=True))


def _sort(n: int) -> Callable[[], object]:
    chain = np.repeat(rng(0, n, "complexity").permutation(n)[:, None].astype(float), 3, axis=1)  # the worst case: n fronts
    return partial(ranks, chain)


def _archive(n: int) -> Callable[[], object]:
    points, archive = _sphere(n + 1), Archive[None](3)
    archive.add(points[:n], [None] * n)
    return partial(archive.add, points[n:], [None])


def _hypervolume(n: int) -> Callable[[], object]:
    return partial(hypervolume, _sphere(n), np.full(3, 1.1))


def _survival(n: int) -> Callable[[], object]:
    """2n members, their objectives small integers, so that many tie."""
    values = rng(0, n, "complexity").integers(0, 20, (2 * n, 3)).astype(float)
    pool = Pool(np.zeros((2 * n, 1), dtype=np.int64), values, np.zeros(2 * n), np.arange(2 * n))
    return lambda: balanced(pool, n, rng(0, 0, "complexity"))


def _process(n: int) -> Callable[[], object]:
    """A fit of two steps and a hundred predictions."""
    x, points = ((rng(k, n, "complexity").normal(size=(m, 8)),) for k, m in enumerate((n, 100)))
    return lambda: gp.fit(x, x[0].sum(axis=1), iterations=2).predict(points)


def _strategy(name: str, n: int) -> Callable[[], object]:
    """`STEPS` asks and tells of a strategy that knows n trials."""
    strategy = catalogue.make(name, PROBLEM, 0)
    rows = layout(PROBLEM.space).random(rng(0, n, "complexity"), n)
    strategy.tell([_answer(Ask(k, arch)) for k, arch in enumerate(layout(PROBLEM.space).archs(rows))])
    return partial(_run, strategy, n)


def _run(strategy: Strategy, first: int) -> None:
    for number in range(first, first + STEPS):
        strategy.tell([_answer(ask) for ask in strategy.ask(1, number)])


def _answer(ask: Ask) -> Trial:
    """The trial of an ask: a linear function, every weight another one."""
    return Trial(ask, {"f0": float(sum((k + 1) * v for k, v in enumerate(ask.arch.values())))}, 0.0)


# ------------------------------------------------------------------------------------------------------------- declared
PARTS: Mapping[str, Part] = {
    "non-dominated sort, M = 3":
        Part("points N, a chain", octaves(128, 2048), Bound("O(N² log N)", 2, 1), Bound("O(N)", 1), _sort),
    "archive, one insertion, M = 3":
        Part("points n", octaves(512, 8192), Bound("O(n log n)", 1, 1), Bound("O(n)", 1), _archive),
    "hypervolume, M = 3":
        Part("points n", octaves(512, 8192), Bound("O(n log n)", 1, 1), Bound("O(n)", 1), _hypervolume),
    "balanced survival, M = 3":
        Part("population N", octaves(256, 4096), Bound("O(N² log N)", 2, 1), Bound("O(N)", 1), _survival),
    "Gaussian process, a fit":
        Part("observations n", octaves(64, 512), Bound("O(n³)", 3), Bound("O(n²)", 2), _process),
}

CONSTANT, LINEAR, SORTING = ((Bound("O(1) an ask", 0), Bound("O(T)", 1)), (Bound("O(T) an ask", 1), Bound("O(T)", 1)),
                             (Bound("O(T log T) an ask", 1, 1), Bound("O(T)", 1)))
PROCESS = Bound("O(T³) an ask", 3), Bound("O(T²)", 2)

BOUNDS: Mapping[str, tuple[Bound, Bound]] = {
    "asha": SORTING, "forest": SORTING, "gp": PROCESS, "gp-lcb": PROCESS, "gp-ts": PROCESS, "hybrid": PROCESS,
    "hyperband": SORTING, "local": SORTING, "nsga2": CONSTANT, "nsga3": CONSTANT, "optuna-cmaes": LINEAR, "optuna-gp": PROCESS,
    "optuna-nsga2": LINEAR, "optuna-nsga3": LINEAR, "optuna-tpe": SORTING, "progressive": SORTING, "random": CONSTANT,
    "rea": CONSTANT,
}
"""Of the strategies of the catalogue in the number of trials T that they know, for one objective, a population of fixed size and
a space of which little was seen: time of an ask with its tell, and space."""

MODELS = ("forest", "gp", "gp-lcb", "gp-ts", "hybrid", "optuna-cmaes", "optuna-gp", "optuna-nsga2", "optuna-nsga3", "optuna-tpe")
"""Strategies whose asks are too dear to count; of a Gaussian process `PARTS` counts the fit, which is what grows."""


def parts() -> dict[str, Part]:
    """`PARTS` and the strategies of the catalogue that are counted."""
    own = {f"{name}, {STEPS} asks": Part("trials known T", octaves(64, 1024), *BOUNDS[name], partial(_strategy, name))
           for name in catalogue.STRATEGIES if name not in MODELS}
    return {**PARTS, **own}


# --------------------------------------------------------------------------------------------------------------- counted
@dataclass(frozen=True)
class Counted:
    """A part with its counts at every size and the exponents that they follow; no instructions without valgrind."""

    name: str
    part: Part
    instructions: tuple[int, ...]
    bytes: tuple[int, ...]

    @property
    def time(self) -> Slope | None:
        """Of the instructions, logarithms of the bound divided out."""
        return slope(self.part.sizes, self.instructions, self.part.time.logs) if self.instructions else None

    @property
    def space(self) -> Slope:
        """Of the bytes."""
        return slope(self.part.sizes, self.bytes, self.part.space.logs)


def count(names: Sequence[str] = ()) -> list[Counted]:
    """Counts parts (all, if none is named): bytes here, instructions in one process under callgrind, where that is installed.

    Raises:
        InputError: an unknown part.
    """
    known = parts()
    for name in names:
        if name not in known:
            raise unknown("part", name, known)
    chosen = list(names) or list(known)
    code = f"from nasopt.strategies import complexity; complexity.mark({chosen!r})"
    executed = instructions(code) if can_count() else []
    found, start = [], 0
    for name in chosen:
        part = known[name]
        part.prepare(part.sizes[0])()  # what is loaded once does not count
        held = tuple(peak_bytes(lambda part=part, n=n: part.prepare(n)()) for n in part.sizes)  # type: ignore[misc]
        found.append(Counted(name, part, tuple(executed[start:start + len(part.sizes)]), held))
        start += len(part.sizes)
    return found


def mark(names: Sequence[str]) -> None:
    """Runs parts at all their sizes, each between markers: what `count` has callgrind watch."""
    known = parts()
    for name in names:
        known[name].prepare(known[name].sizes[0])()
        for n in known[name].sizes:
            marked(known[name].prepare(n))
