"""Features by hand, the process against scikit-learn's, acquisitions against integration and enumeration."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import approx_fprime
from scipy.stats import norm, yeojohnson, yeojohnson_normmax
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct, Matern

from nasopt import space as spaces
from nasopt.analysis.hypervolume import hypervolume
from nasopt.space import Cell, Choice, Graph, Product
from nasopt.surrogates import forest, gp, model, power
from nasopt.surrogates.acquisition import boxes, expected_hypervolume_improvement, log_expected_improvement, region
from nasopt.surrogates.features import featuriser
from nasopt.trial import Ask, Constraint, Objective, Problem, Trial, nondominated

CELL = Cell("cell", 4, ("none", "skip", "a", "b"), none="none", skip="skip")
MIXED = Product("", (CELL, Choice("depth", {"1": None, "2": Choice("width", ("4", "8"))}), Choice("other", ("4", "8"))))


def points(n: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, 3)), generator.standard_normal((n, 2))


def observed(n: int, seed: int = 0) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    x = points(n, seed)
    return x, 3 + np.sin(x[0].sum(axis=1)) + 0.3 * x[1][:, 0]


# ------------------------------------------------------------------------------------------------------------- features
def test_features_of_a_cell_by_hand() -> None:
    lay = spaces.layout(CELL)
    labels = {"0-1": "a", "0-2": "skip", "1-2": "b", "0-3": "none", "1-3": "none", "2-3": "b"}
    rows = lay.rows([{f"cell/{edge}": CELL.operations.index(op) for edge, op in labels.items()}])
    make = featuriser(CELL)
    choices, counts, paths = (g * scale + mean for g, scale, mean in zip(make(rows), make.scales, make.means, strict=True))
    assert choices.sum() == pytest.approx(6)
    assert counts[0] == pytest.approx([0, 1, 1, 2])  # the edges 0-1, 0-2, 1-2 and 2-3 lie on a way
    assert sorted(paths[0])[-3:] == pytest.approx([0, 1, 1])  # a b b, and skip b: two sequences
    swapped = lay.rows([{f"cell/{edge}": CELL.operations.index({"a": "b", "b": "a"}.get(op, op)) for edge, op in labels.items()}])
    assert (make(swapped)[2] != make(rows)[2]).any()


def test_features_of_a_graph_by_hand() -> None:
    graph = Graph("g", 5, ("a", "b"), 6)
    lay = spaces.layout(graph)
    edges = {"0-1": 1, "1-2": 1, "2-4": 1, "0-4": 1, "0-3": 1}  # node 3 leads nowhere
    ops = {"op1": 0, "op2": 1, "op3": 1}
    rows = lay.rows([{g.path: {f"g/{k}": v for k, v in (edges | ops).items()}.get(g.path, 0) for g in lay.genes}])
    make = featuriser(graph)
    choices, counts, wiring = (g * scale + mean for g, scale, mean in zip(make(rows), make.scales, make.means, strict=True))
    assert choices.sum() == pytest.approx(len(lay.genes))
    assert counts[0] == pytest.approx([0, 4, 1, 1])  # of edges, then of operations, on the ways 0-1-2-4 and 0-4
    follows, inputs, outputs = wiring.reshape(3, 4, 4)  # of a, b, the input and the output
    assert follows == pytest.approx(np.array([[0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0]]))
    assert inputs == pytest.approx(np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]))
    assert outputs == pytest.approx(np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]))
    assert (make(lay.canonical(rows))[2] == make(rows)[2]).all()


def test_random_architectures_are_at_a_mean_squared_distance_of_one_in_every_group() -> None:
    lay = spaces.layout(MIXED)
    rows = lay.silence(lay.random(np.random.default_rng(5), 600))
    groups = featuriser(MIXED)(rows)
    assert len(groups) == 3
    for group in groups:
        apart = gp.squared_distances(group[:300], group[300:])
        assert apart.mean() == pytest.approx(1, rel=0.1)
        assert np.abs(group.mean(axis=0)).max() < 0.1


def test_what_is_not_active_has_no_features() -> None:
    lay = spaces.layout(MIXED)
    archs = [{**dict.fromkeys((g.path for g in lay.genes if g.path.startswith("cell")), 2), "depth": 0, "other": 1}]
    make = featuriser(MIXED)
    choices, counts, _ = (g * scale + mean for g, scale, mean in zip(make(lay.rows(archs)), make.scales, make.means, strict=True))
    assert (choices > 0.5).sum() == 8
    assert (counts > 0.5).sum() == 3  # one operation, depth 1, and "8" of the one choice of widths that is there


def test_large_cells_share_columns() -> None:
    cell = Cell("c", 7, ("none", *"abcdef"), none="none")
    lay = spaces.layout(cell)
    paths = featuriser(cell)(lay.random(np.random.default_rng(0), 5))[2]
    assert paths.shape == (5, 1024)
    assert paths.std(axis=0).any()


# -------------------------------------------------------------------------------------------------------------- process
def test_predictions_equal_those_of_scikit_learn() -> None:
    x, y = observed(12)
    process = gp.fit(x, y)
    lengths, (linear, noise) = np.repeat(np.exp(process.theta[:2]), [3, 2]), np.exp(process.theta[2:])
    joined, others = (np.concatenate(groups, axis=1) for groups in (x, points(7, 1)))
    kernel = process.variance * (Matern(lengths, nu=2.5) + linear * DotProduct(1e-9))
    oracle = GaussianProcessRegressor(kernel, alpha=process.variance * (noise + 1e-8), optimizer=None)
    oracle.fit(joined, (y - y.mean()) / y.std())
    mean, deviation = oracle.predict(others, return_std=True)
    found = process.predict(points(7, 1))
    np.testing.assert_allclose(found.mean, y.mean() + y.std() * mean, atol=1e-6)
    np.testing.assert_allclose(found.deviation, y.std() * np.sqrt(deviation**2 + process.variance * noise), rtol=1e-5)


def test_the_gradient_of_the_fit_is_that_of_its_objective() -> None:
    x, y = observed(9)
    parts, z = np.stack([*(gp.squared_distances(g, g) for g in x), sum(g @ g.T for g in x)]), (y - y.mean()) / y.std()
    for theta in (np.array([0.0, 0.5, -1.0, -3.0]), np.array([1.0, -0.5, 0.5, -1.0])):
        numeric = approx_fprime(theta, lambda t: gp._objective(t, parts, z)[0], 1e-6)
        np.testing.assert_allclose(gp._objective(theta, parts, z)[1], numeric, rtol=1e-4, atol=1e-4)


def test_what_adds_up_is_told_from_a_few() -> None:
    x, far = points(12), tuple(4 * g for g in points(20, 9))
    weights = np.array([1.0, -2.0, 0.5]), np.array([3.0, 0.3])

    def added(groups: tuple[np.ndarray, ...]) -> np.ndarray:
        return np.asarray(sum(g @ w for g, w in zip(groups, weights, strict=True)))

    assert np.corrcoef(gp.fit(x, added(x)).predict(far).mean, added(far))[0, 1] > 0.95


def test_the_fit_finds_which_group_matters_and_how_noisy_it_is() -> None:
    x = points(60)
    clean = gp.fit(x, np.sin(2 * x[1][:, 0]))
    noisy = gp.fit(x, np.sin(2 * x[1][:, 0]) + np.random.default_rng(1).standard_normal(60))
    assert clean.theta[0] > clean.theta[1] + 1
    assert noisy.theta[-1] > clean.theta[-1] + 2


def test_joint_draws_have_the_posterior_s_moments() -> None:
    x, y = observed(8)
    process, new = gp.fit(x, y), points(4, 3)
    draws = process.sample(new, np.random.default_rng(0), 20_000)
    found = process.predict(new)
    noise = process.scale * np.sqrt(process.variance * np.exp(process.theta[-1]))
    np.testing.assert_allclose(draws.mean(axis=0), found.mean, atol=0.03 * y.std())
    np.testing.assert_allclose(draws.std(axis=0), np.sqrt(found.deviation**2 - noise**2), rtol=0.05)


def test_believing_keeps_the_means_and_shrinks_the_deviations() -> None:
    x, y = observed(8)
    process, new = gp.fit(x, y), points(3, 4)
    after = process.believing(new)
    np.testing.assert_allclose(after.predict(new).mean, process.predict(new).mean, atol=1e-6)
    assert (after.predict(new).deviation < process.predict(new).deviation).all()
    np.testing.assert_allclose(after.predict(x).mean, process.predict(x).mean, atol=1e-6)


def test_no_iteration_keeps_the_lengths() -> None:
    x, y = observed(8)
    theta = np.array([0.1, 0.2, 0.0, -2.0])
    assert (gp.fit(x, y, theta, iterations=0).theta == theta).all()
    assert (gp.fit(x, y, theta).theta != theta).any()


# --------------------------------------------------------------------------------------------------------------- forest
def test_a_forest_predicts_what_it_saw_and_is_less_sure_elsewhere() -> None:
    x, y = observed(80)
    trees = forest.fit(x, y, 0)
    found, far = trees.predict(x), trees.predict(tuple(5 * g for g in points(80, 7)))
    assert np.corrcoef(found.mean, y)[0, 1] > 0.85
    assert far.deviation.mean() > found.deviation.mean()
    draws = trees.sample(x, np.random.default_rng(0), 400)
    np.testing.assert_allclose(draws.mean(axis=0), found.mean, atol=0.2 * y.std())
    assert (forest.fit(x, y, 0).predict(x).mean == found.mean).all()
    assert (forest.fit(x, y, 1).predict(x).mean != found.mean).any()


def test_many_trials_are_left_to_a_forest(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(LINE, (Objective("error"),))
    trials, x = told(problem, {"error": lambda row: float(row.sum())})
    assert isinstance(model.Fitter(problem)(trials, x).objectives[0], gp.GaussianProcess)
    monkeypatch.setattr(model, "MOST", 39)
    assert isinstance(model.Fitter(problem)(trials, x).objectives[0], forest.Forest)
    assert isinstance(model.Fitter(problem, "forest")(trials, x).objectives[0], forest.Forest)


# --------------------------------------------------------------------------------------------------------- acquisitions
def test_expected_improvement_equals_its_integral() -> None:
    for mean, deviation, best in ((0.0, 1.0, 0.5), (2.0, 0.5, 0.0), (-1.0, 0.1, 0.0), (3.0, 1.0, 0.0)):
        integral, _ = quad(lambda y, m=mean, s=deviation, b=best: (b - y) * norm.pdf(y, m, s), mean - 12 * deviation, best)
        found = log_expected_improvement(gp.Posterior(np.array([mean]), np.array([deviation])), best)
        assert np.exp(found[0]) == pytest.approx(integral, rel=1e-6)


def test_expected_improvement_keeps_its_order_where_it_vanishes() -> None:
    means = np.array([0.0, 10.0, 40.0, 100.0, 1e4, 1e6])
    found = log_expected_improvement(gp.Posterior(means, np.ones(6)), 0.0)
    assert np.isfinite(found).all()
    assert (np.diff(found) < 0).all()
    assert log_expected_improvement(gp.Posterior(np.array([-100.0]), np.ones(1)), 0.0)[0] == pytest.approx(np.log(100))


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_boxes_fill_what_the_front_leaves(objectives: int) -> None:
    generator = np.random.default_rng(objectives)
    for n in (0, 1, 6, 12):
        values = generator.integers(0, 6, (n, objectives)).astype(float)
        front, reference = values[nondominated(values)] if n else values, np.full(objectives, 5.0)
        pairs = list(boxes(front, reference))
        lower, upper = (np.maximum(np.array([pair[side] for pair in pairs]), -1.0) for side in (0, 1))
        assert (lower <= upper).all()
        assert np.prod(upper - lower, axis=1).sum() == pytest.approx(6.0**objectives - hypervolume(front, reference))
        for a, b in product(range(len(pairs)), repeat=2):
            overlap = np.minimum(upper[a], upper[b]) - np.maximum(lower[a], lower[b])
            assert a == b or (overlap <= 0).any()


@pytest.mark.parametrize("objectives", [2, 3])
def test_expected_hypervolume_improvement_equals_the_mean_over_all_draws(objectives: int) -> None:
    generator = np.random.default_rng(0)
    values = generator.random((8, objectives))
    front, reference = values[nondominated(values)], np.full(objectives, 1.2)
    draws = [generator.random((5, 3)) * 1.4 for _ in range(objectives)]
    found = expected_hypervolume_improvement(draws, region(front, reference))
    before = hypervolume(front, reference)
    for k in range(5):
        gains = [hypervolume(np.vstack([front, [drawn[k, i] for drawn, i in zip(draws, which, strict=True)]]), reference) - before
                 for which in product(range(3), repeat=objectives)]
        assert found[k] == pytest.approx(np.mean(gains), abs=1e-12)


# ---------------------------------------------------------------------------------------------------------------- model
LINE = Product("", [Choice(f"c{k}", "01234") for k in range(3)])


def told(problem: Problem, measure: dict[str, Callable[[np.ndarray], float]], n: int = 40, broken: bool = False
         ) -> tuple[list[Trial], tuple[np.ndarray, ...]]:
    lay = spaces.layout(LINE)
    rows = lay.random(np.random.default_rng(2), n)
    trials = []
    for k, (arch, row) in enumerate(zip(lay.archs(rows), rows, strict=True)):
        metrics = {name: float(of(row)) for name, of in measure.items()}
        failed = broken and row[1] == 4
        trials.append(Trial(Ask(k, arch), {} if failed else metrics, 1.0, "failed" if failed else None))
    return trials, featuriser(LINE)(rows)


def everything() -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    lay = spaces.layout(LINE)
    rows = lay.rows(list(spaces.everything(LINE)))
    return rows, featuriser(LINE)(rows)


@pytest.mark.parametrize("kind", ["ei", "lcb", "ts"])
def test_what_promises_most_is_near_the_optimum(kind: model.Acquisition) -> None:
    problem = Problem(LINE, (Objective("error"),))
    trials, x = told(problem, {"error": lambda row: ((row - 3) ** 2).sum()})
    rows, features = everything()
    promised = model.Fitter(problem)(trials, x).promise(features, kind, np.random.default_rng(0))
    assert ((rows[np.argsort(-promised)[:5]] - 3) ** 2).sum(axis=1).mean() <= 3
    assert ((rows[np.argsort(promised)[:5]] - 3) ** 2).sum(axis=1).mean() >= 6


@pytest.mark.parametrize("kind", ["ei", "lcb", "ts"])
def test_with_two_objectives_what_promises_most_adds_to_the_front(kind: model.Acquisition) -> None:
    problem = Problem(LINE, (Objective("low"), Objective("high", minimise=False)))
    trials, x = told(problem, {"low": lambda row: 1 + row[:2].sum() + 3 * row[2], "high": lambda row: row[:2].sum()})
    rows, features = everything()
    promised = model.Fitter(problem)(trials, x).promise(features, kind, np.random.default_rng(0))
    assert (rows[np.argsort(-promised)[:5], 2] == 0).mean() >= 0.8  # what costs without use


@pytest.mark.parametrize("limit", ["constraint", "failure"])
def test_what_is_not_feasible_promises_less(limit: str) -> None:
    bounds = (Constraint("size", 6.0),) if limit == "constraint" else ()
    problem = Problem(LINE, (Objective("error"),), bounds)
    measure = {"error": lambda row: 20.0 - row.sum(), "size": lambda row: 2 * row[1]}
    trials, x = told(problem, measure, broken=limit == "failure")
    rows, features = everything()
    promised = model.Fitter(problem)(trials, x).promise(features, "ei", np.random.default_rng(0))
    free = model.Fitter(Problem(LINE, problem.objectives))([t for t in trials if t.error is None],
                                                            tuple(g[[t.error is None for t in trials]] for g in x))
    unbound = free.promise(features, "ei", np.random.default_rng(0))
    assert (rows[np.argsort(-promised)[:10], 1] == 4).mean() < (rows[np.argsort(-unbound)[:10], 1] == 4).mean()


@pytest.mark.parametrize(("unit", "limit"), [(1.0, 3.5), (0.7, 2.4)])
def test_what_is_feasible_ends_at_the_bound(unit: float, limit: float) -> None:
    """Of what is counted between it and the next number, wherever values were seen."""
    problem = Problem(LINE, (Objective("error"),), (Constraint("size", 3.0 if unit == 1 else 2.4),))
    trials, x = told(problem, {"error": lambda row: 20.0 - row.sum(), "size": lambda row: unit * row[1]})
    seen = [t.metrics["size"] in (0.0, 4 * unit) for t in trials]
    found = model.Fitter(problem)([t for t, s in zip(trials, seen, strict=True) if s], tuple(g[seen] for g in x))
    assert [bound for _, bound in found.feasibility] == [limit]


def test_nothing_feasible_yet_means_looking_for_it() -> None:
    problem = Problem(LINE, (Objective("error"),), (Constraint("size", 1.0),))
    trials, x = told(problem, {"error": lambda row: row.sum(), "size": lambda row: row.sum()})
    worse = [t for t in trials if t.metrics["size"] > 1]
    x = tuple(g[[t.metrics["size"] > 1 for t in trials]] for g in x)
    fitted = model.Fitter(problem)(worse, x)
    assert fitted.front.shape == (0, 1)
    assert not fitted.feasibility  # never met: nothing to tell apart
    assert (fitted.promise(x, "ei", np.random.default_rng(0)) == 0).all()


def test_hypervolume_is_measured_to_beyond_the_worst_feasible_values_so_that_the_front_can_be_extended() -> None:
    problem = Problem(Product("", [Choice("a", "abcdefgh")]), (Objective("f0"), Objective("f1")), (Constraint("f2", 1.0),))
    values = [(1.0, 5.0, 0.0), (3.0, 4.0, 0.0), (9.0, 6.0, 0.0), (20.0, 30.0, 2.0)]
    trials = [Trial(Ask(k, {"a": k}), dict(zip(("f0", "f1", "f2"), v, strict=True)), 0.0) for k, v in enumerate(values)]
    rows = spaces.layout(problem.space).rows([t.ask.arch for t in trials])
    found = model.Fitter(problem)(trials, featuriser(problem.space)(rows))
    assert found.reference is not None and sorted(map(tuple, found.front)) == [(1.0, 5.0), (3.0, 4.0)]
    np.testing.assert_allclose(found.reference, [9.0 + 0.1 * 8.0, 6.0 + 0.1 * 2.0])


@pytest.mark.parametrize("values", [[5.6, 6.0, 7.0, 30.0, 90.0], [-94.0, -93.0, -93.5, -10.0, -80.0, -94.1],
                                    [1.0, -2.0, 3.0, 4.5]])
def test_the_power_of_yeo_and_johnson(values: list[float]) -> None:
    x = np.array(values)
    found = power.fit(x)
    z = (x - found.middle) / found.spread
    assert found.middle == np.median(x) and found.spread == np.subtract(*np.quantile(x, (0.75, 0.25)))
    np.testing.assert_allclose(found.scores(x), yeojohnson(z, found.power), rtol=1e-12)
    np.testing.assert_allclose(found.values(found.scores(x)), x, rtol=1e-12)
    best = np.clip(yeojohnson_normmax(z), *power.RANGE)
    assert abs(found.power - best) < 1e-3 and found.power != 1


def test_a_power_is_straight_without_values_to_bend_it_and_ends_where_no_value_is() -> None:
    few, equal = power.fit(np.array([1.0, 5.0, 3.0])), power.fit(np.full(9, 4.0))
    np.testing.assert_allclose(few.scores(np.array([1.0, 3.0, 5.0])), [-1.0, 0.0, 1.0])
    assert equal.scores(np.array([4.0])) == 0 and few.power == equal.power == 1
    bent = power.Power(0.0, 1.0, -1.0)
    assert np.isinf(bent.values(np.array([10.0]))) and bent.values(np.array([0.5])) == pytest.approx(1.0)
    for p in (0.0, 2.0):
        ends = power.Power(1.0, 2.0, p)
        np.testing.assert_allclose(ends.values(ends.scores(np.array([-9.0, 0.0, 4.0]))), [-9.0, 0.0, 4.0])


# ------------------------------------------------------------------------------------------------- predictions of a whole space
def test_a_grid_predicts_what_every_process_does_and_computes_only_what_is_new() -> None:
    """Observations are added, other values seen, some replaced, all fitted anew."""
    rng = np.random.default_rng(0)
    space = (rng.normal(size=(40, 3)), rng.normal(size=(40, 2)))
    theta, y = np.array([1.0, 0.5, -1.0, -3.0]), rng.normal(size=20)
    grid = gp.Grid(space)
    for rows, values, lengths, kept in (
            (range(8), y, theta, 0), (range(9), y, theta, 8), (range(12), y, theta, 9), (range(12), -y, theta, 12),
            ([*range(5), 20, 21], y, theta, 5), (range(5), y, theta, 5), (range(18), y, theta + 0.1, 0)):
        process = gp.fit(tuple(p[list(rows)] for p in space), values[:len(rows)], lengths, iterations=0)
        assert grid._kept(process) == kept
        found, expected = grid.predict(process), process.predict(space)
        np.testing.assert_allclose(found.mean, expected.mean, rtol=0, atol=1e-11)
        np.testing.assert_allclose(found.deviation, expected.deviation, rtol=0, atol=1e-11)
    everywhere = gp.Everywhere(process, grid)
    assert np.array_equal(everywhere.predict(space).mean, grid.predict(process).mean)
    other = (space[0][:3] + 0.1, space[1][:3])
    assert np.array_equal(everywhere.predict(other).mean, process.predict(other).mean)
    believed = everywhere.believing(other)
    np.testing.assert_allclose(believed.predict(space).deviation, process.believing(other).predict(space).deviation,
                               rtol=0, atol=1e-11)
