"""NSGA-III: reference directions, normalisation and niches against the paper, the definition and another implementation."""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
import pytest

from nasopt.analysis.hypervolume import hypervolume
from nasopt.benchmarks.synthetic import Synthetic, dtlz2, one_min_max
from nasopt.space import Choice, Product, layout
from nasopt.strategies.evolution import NSGA2, Evolution, Pool
from nasopt.strategies.reference import NSGA3, associate, by_violation, das_dennis, directions, niches, normalised
from nasopt.trial import Ask, Constraint, Objective, Problem, Trial


def pool(values: Any, violation: list[float] | None = None) -> Pool:
    n = len(values)
    return Pool(np.zeros((n, 1), dtype=np.int64), np.array(values, dtype=float),
                np.zeros(n) if violation is None else np.array(violation), np.arange(n))


def run(strategy: Evolution, s: Synthetic, generations: int) -> None:
    first = 0
    for _ in range(generations):
        asks = strategy.ask(10**6, first)
        first += len(asks)
        strategy.tell([Trial(a, m, 0.0) for a, m in zip(asks, s.metrics([a.arch for a in asks]), strict=True)])


# ------------------------------------------------------------------------------------------------------- directions
@pytest.mark.parametrize(("m", "p"), [(2, 5), (3, 4), (4, 3), (5, 1), (1, 3)])
def test_das_dennis_is_the_grid_of_the_simplex(m: int, p: int) -> None:
    points = das_dennis(m, p)
    assert points.shape == (comb(m + p - 1, p), m) == np.unique(points, axis=0).shape
    assert np.allclose(points.sum(axis=1), 1) and (points >= 0).all()
    assert np.allclose(points * p, np.round(points * p))


@pytest.mark.parametrize(("m", "population", "count"),
                         [(3, 92, 91), (5, 212, 210), (8, 156, 156), (10, 276, 275), (15, 136, 135)])
def test_as_many_directions_as_in_the_paper(m: int, population: int, count: int) -> None:
    """Deb & Jain 2014, table I; the last three have two layers."""
    found = directions(m, population)
    assert len(found) == count and np.allclose(found.sum(axis=1), 1)
    assert (found > 0).all(axis=1).any() and all(axis in found.tolist() for axis in np.eye(m).tolist())


def test_few_survivors_have_the_axes_and_one_objective_has_one_direction() -> None:
    assert directions(4, 2).tolist() == np.eye(4)[::-1].tolist()
    assert directions(1, 50).tolist() == [[1.0]]


# ---------------------------------------------------------------------------------------------------- normalisation
def test_the_hyperplane_through_the_extreme_points_becomes_that_of_the_unit_points() -> None:
    plane = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3]])
    values = plane * [2.0, 40.0, 0.1] + [5.0, -7.0, 1.0]
    assert np.allclose(normalised(values, values), plane)


@pytest.mark.parametrize("values", [
    [[0, 0, 3], [1, 1, 2], [4, 4, 0]],  # two objectives agree: the extreme points lie in a plane through the origin
    [[0, 2, 1], [1, 0, 1], [2, 1, 1]],  # the third has no range
    [[0, 1, 5], [5, 0, 1], [1, 5, 0]],  # some intercept lies beyond every value
    [[2, 2, 2], [2, 2, 2], [2, 2, 2]],
])
def test_without_a_usable_hyperplane_the_worst_of_the_front_counts(values: list[list[float]]) -> None:
    rows = np.array(values, dtype=float)
    behind = np.vstack([rows, rows.max(axis=0) + 0.5])
    span = np.ptp(rows, axis=0)
    scaled = normalised(behind, rows)
    assert np.isfinite(scaled).all() and (scaled >= 0).all()
    assert np.allclose(scaled[:3].max(axis=0)[span > 0], 1)
    assert np.allclose(scaled[3, span == 0], 1), "an objective in which the front has no range: the worst of all"


def test_association_is_the_nearest_line() -> None:
    rng = np.random.default_rng(0)
    points, rays = rng.random((50, 3)), directions(3, 30)
    nearest, distance = associate(points, rays)
    t = np.linspace(0, 3, 3001)
    brute = np.array([[np.linalg.norm(p - t[:, None] * r / np.linalg.norm(r), axis=1).min() for r in rays] for p in points])
    assert np.allclose(distance, brute.min(axis=1), atol=1e-3)
    assert np.allclose(brute[np.arange(50), nearest], brute.min(axis=1), atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- niches
def test_survival_by_hand() -> None:
    """Rank 0: rows 0-3, rank 1: row 4, infeasible: row 5, failed: row 6; the axes' niches come before the crowd."""
    some = pool([[0, 10], [9, 1], [9.1, 0.9], [10, 0], [20, 20], [-1, -1], [-9, -9]], [0, 0, 0, 0, 0, 0.5, np.inf])
    orders = [niches(some, k, np.random.default_rng(0)).tolist() for k in range(1, 8)]
    assert set(orders[1]) == {0, 3} and set(orders[3]) == {0, 1, 2, 3}
    assert orders[4][4] == 4 and orders[5][5] == 5 and orders[6][6] == 6
    failed = pool([[0, 1], [np.inf, np.inf], [np.inf, np.inf]], [0, np.inf, np.inf])
    assert niches(failed, 2, np.random.default_rng(0))[0] == 0
    assert [len(o) for o in orders] == list(range(1, 8)) and len(niches(some, 50, np.random.default_rng(0))) == 7


@pytest.mark.parametrize("seed", range(20))
def test_the_niche_with_the_fewest_has_its_turn(seed: int) -> None:
    """Algorithm 4: a niche that still has members outside never has fewer survivors than one that was given more."""
    rng = np.random.default_rng(seed)
    points = rng.dirichlet(np.full(3, 0.5), 60)
    some = pool(np.vstack([points * 0.5, points + 0.3 * rng.random((60, 1))]))
    n = int((some.rank == 0).sum()) + 12
    kept = niches(some, n, rng)
    last = some.rank[kept].max()
    pertinent = np.flatnonzero(some.rank <= last)
    niche, distance = associate(normalised(some.values[pertinent], some.values[some.rank == 0]), directions(3, n))
    here = np.isin(pertinent, kept)
    border = some.rank[pertinent] == last
    assert (~border | here).sum() >= len(pertinent) - border.sum() and here.sum() == n == len(set(kept.tolist()))
    count = np.bincount(niche[here], minlength=n)
    given, left = np.unique(niche[border & here]), np.unique(niche[border & ~here])
    assert count[left].min() >= count[given].max() - 1
    for j in given:
        if not (here & ~border & (niche == j)).any():
            own = border & (niche == j)
            assert here[own][distance[own].argmin()], "the first of an empty niche is the nearest"


@pytest.mark.parametrize("seed", range(10))
def test_copies_do_not_crowd_out_the_rest(seed: int) -> None:
    """200 copies of the vector on the diagonal's direction: every other vector survives all the same."""
    others = [[k, 12 - k] for k in range(13) if k != 6] + [[6.2, 5.8], [5.9, 6.1]]
    some = pool([[6, 6]] * 200 + others)
    kept = some.values[niches(some, 21, np.random.default_rng(seed))].tolist()  # two of the others share its niche
    assert all(v in kept for v in np.array(others, dtype=float).tolist()) and [6, 6] in kept


def test_with_one_objective_it_is_elitist() -> None:
    values = np.random.default_rng(0).permutation(50)[:, None]
    kept = niches(pool(values), 10, np.random.default_rng(0))
    assert sorted(values[kept, 0].tolist()) == list(range(10))
    ties = niches(pool([[1.0]] * 9 + [[0.0]]), 4, np.random.default_rng(0))
    assert ties[0] == 9 and len(set(ties.tolist())) == 4


def test_parents_violate_little() -> None:
    some = pool([[0, 0], [1, 1], [2, 2]], [2, 1, 0])
    share = np.bincount(by_violation(some, 40_000, np.random.default_rng(0)).ravel()) / 80_000
    assert np.allclose(share, [1 / 9, 3 / 9, 5 / 9], atol=0.01)
    even = np.bincount(by_violation(pool([[0, 0], [1, 1]]), 40_000, np.random.default_rng(0)).ravel()) / 80_000
    assert np.allclose(even, 0.5, atol=0.01)


# -------------------------------------------------------------------------------------------------------- the method
@pytest.mark.parametrize("seed", range(3))
def test_the_front_of_three_objectives_is_found(seed: int) -> None:
    s = one_min_max(20, 3)
    strategy = NSGA3(s.problem, seed, 4 * len(s.front), immigrants=0, repeat=True)
    run(strategy, s, 60)
    assert s.found(strategy.pool.values) == len(s.front)


def test_a_feasible_region_is_found() -> None:
    """Seven of 1e6 architectures are feasible; the violation leads there."""
    space = Product("", [Choice(f"c{k}", [str(v) for v in range(10)]) for k in range(6)])
    problem = Problem(space, (Objective("a"), Objective("b")), (Constraint("sum", 1.0),))
    strategy = NSGA3(problem, 0, population=40)
    for k in range(40):
        strategy.tell([Trial(a, {"sum": float(sum(a.arch.values())), "a": float(a.arch["c0"]), "b": -float(a.arch["c0"])}, 0.0)
                       for a in strategy.ask(40, 40 * k)])
    assert (strategy.pool.violation == 0).sum() >= 7


def share(s: Synthetic, values: np.ndarray) -> float:
    """Hypervolume as a share of that of the true front."""
    reference = np.full(values.shape[1], 1.1)
    return hypervolume(values, reference) / hypervolume(s.front, reference)


def test_five_objectives_are_beyond_nsga2() -> None:
    s = dtlz2(8, 11, 5)
    for seed in range(2):
        pools = [make(s.problem, seed, 128, immigrants=0) for make in (NSGA2, NSGA3)]
        for strategy in pools:
            run(strategy, s, 40)
        two, three = (share(s, strategy.pool.values) for strategy in pools)
        assert three > two + 0.05


def pymoo_nsga3(s: Synthetic, seed: int, population: int, generations: int) -> np.ndarray:
    """The last population of pymoo's NSGA-III with the same directions and the same variation, (population, objectives)."""
    from pymoo.algorithms.moo.nsga3 import NSGA3 as Pymoo  # noqa: N811
    from pymoo.core.mutation import Mutation
    from pymoo.core.problem import Problem as PymooProblem
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.optimize import minimize

    lay, generator = layout(s.problem.space), np.random.default_rng(seed)

    class Grid(PymooProblem):
        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *_: object, **__: object) -> None:
            out["F"] = s.measure(np.asarray(x, dtype=np.int64))

    class Vary(Mutation):
        def _do(self, problem: object, x: np.ndarray, **_: object) -> np.ndarray:
            return lay.vary(np.asarray(x, dtype=np.int64), generator)

    m = len(s.problem.objectives)
    algorithm = Pymoo(directions(m, population), pop_size=population, sampling=IntegerRandomSampling(), mutation=Vary(),
                      crossover=UniformCrossover(prob=0.5), eliminate_duplicates=True)
    grid = Grid(n_var=len(lay.genes), n_obj=m, xl=0, xu=lay.options - 1, vtype=int)
    return minimize(grid, algorithm, ("n_gen", generations), seed=seed).pop.get("F")


@pytest.mark.filterwarnings("default")
def test_it_is_as_good_as_another_implementation() -> None:
    """Mean hypervolume of the last population over four seeds, within three of the difference's standard errors."""
    s = dtlz2(8, 21)
    theirs = [share(s, pymoo_nsga3(s, seed, 92, 40)) for seed in range(4)]
    ours = []
    for seed in range(4):
        strategy = NSGA3(s.problem, seed, 92, immigrants=0)
        run(strategy, s, 40)
        ours.append(share(s, strategy.pool.values))
    noise = np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 4)
    assert np.mean(ours) > np.mean(theirs) - 3 * noise
    assert noise < 0.02


def test_it_learns_only_from_asks_of_full_fidelity() -> None:
    problem = Problem(Product("", [Choice(f"b{i}", "01") for i in range(8)]), (Objective("a"), Objective("b")))
    strategy = NSGA3(problem, 0, population=10)
    strategy.tell([Trial(Ask(900, {f"b{i}": 1 for i in range(8)}, 0.5), {"a": -1.0, "b": -1.0}, 0.0)])
    assert len(strategy.pool) == 0
    assert {a.by for a in strategy.ask(10, 0)} == {"nsga3"}
