"""Rates, extreme eigenvalues and certificates on runs whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, eigsh

from nasopt.analysis import bilevel, convergence
from nasopt.analysis.bilevel import Bilevel, Inner
from nasopt.analysis.convergence import Certificate, Extremes, Recording, certificate
from nasopt.errors import InputError

Floats = convergence.Floats


# --------------------------------------------------------------------------------------------------------------- rates
@pytest.mark.parametrize(("kind", "wanted"), [(np.float64, 0.9), (np.float64, 0.4), (np.float64, 1.05), (np.float32, 0.8)])
def test_the_slope_of_a_geometric_sequence(kind: type, wanted: float) -> None:
    points = (3 + np.outer(wanted ** np.arange(400), [1.0, -2.0])).astype(kind)
    assert convergence.fitted_rate(points) == pytest.approx(wanted, rel=2e-3), "the steps below rounding are left out"


def test_the_slope_is_the_tail_s() -> None:
    points = (np.outer(0.5 ** np.arange(60), [5.0, 0]) + np.outer(0.97 ** np.arange(60), [0, 0.1]))
    assert convergence.fitted_rate(points) == pytest.approx(0.97, rel=1e-3)


def test_no_slope_without_steps() -> None:
    assert convergence.tail_slope(np.ones((50, 3))) is None
    assert convergence.fitted_rate(np.ones((50, 3))) is None
    assert convergence.tail_slope(1 + 1e-3 ** np.arange(20.0)[:, None]) is None


# ---------------------------------------------------------------------------------------------------------- eigenvalues
def test_mean_zero_coordinates() -> None:
    basis = convergence.mean_zero([3, 1, 5])
    assert basis.shape == (6, 9)
    assert basis @ basis.T == pytest.approx(np.eye(6), abs=1e-14)
    for edge in (slice(0, 3), slice(3, 4), slice(4, 9)):
        assert basis[:, edge].sum(axis=1) == pytest.approx(0, abs=1e-14)


def softmax_hessian(generator: np.random.Generator) -> Floats:
    """Of ½‖softmax(α) - p‖² + a linear term at a random point, 4 edges of 5 options, by its closed form."""
    x, target, linear = (generator.standard_normal((4, 5)) for _ in range(3))
    p = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    blocks = np.zeros((20, 20))
    for e in range(4):
        jac, cost = np.diag(p[e]) - np.outer(p[e], p[e]), p[e] - target[e] + linear[e]
        second = sum(cost[k] * p[e, k] * (np.outer(np.eye(5)[k] - p[e], np.eye(5)[k] - p[e]) - jac) for k in range(5))
        blocks[5 * e:5 * e + 5, 5 * e:5 * e + 5] = jac.T @ jac + second
    return blocks


@pytest.mark.parametrize("seed", range(4))
def test_extreme_eigenvalues_in_mean_zero_coordinates(seed: int) -> None:
    generator = np.random.default_rng(seed)
    hessian, basis = softmax_hessian(generator), convergence.mean_zero([5] * 4)
    assert hessian @ np.repeat(np.eye(4), 5, axis=0) == pytest.approx(0, abs=1e-12), "a shift of an edge changes nothing"
    found = convergence.extremes(lambda x: hessian @ x, basis, generator)
    exact = np.linalg.eigvalsh(basis @ hessian @ basis.T)
    assert (found.low, found.high) == pytest.approx((exact[0], exact[-1]), abs=1e-6)
    assert max(found.low_residual, found.high_residual) <= 1e-6
    assert found.products <= 16


def test_a_convex_loss_of_softmax_is_singular_in_raw_logits() -> None:
    basis = convergence.mean_zero([5] * 4)
    hessian = basis.T @ np.diag(np.arange(1.0, 17)) @ basis
    raw = convergence.extremes(lambda x: hessian @ x, np.eye(20), np.random.default_rng(0))
    within = convergence.extremes(lambda x: hessian @ x, basis, np.random.default_rng(0))
    assert (raw.low, raw.high) == pytest.approx((0, 16), abs=1e-6)
    assert (within.low, within.high) == pytest.approx((1, 16), abs=1e-6)


def test_residuals_bound_the_distance_to_an_eigenvalue_and_products_are_limited() -> None:
    generator = np.random.default_rng(7)
    q = np.linalg.qr(generator.standard_normal((200, 200)))[0]
    values = np.sort(generator.standard_normal(200))
    matrix = (q * values) @ q.T
    rough = convergence.extremes(lambda x: matrix @ x, np.eye(200), generator, products=12)
    assert rough.products == 12 and rough.low_residual > 1e-4
    assert np.abs(values - rough.low).min() <= rough.low_residual
    assert np.abs(values - rough.high).min() <= rough.high_residual
    fine = convergence.extremes(lambda x: matrix @ x, np.eye(200), generator, products=200)
    other = eigsh(LinearOperator((200, 200), matvec=lambda x: matrix @ x, dtype=np.float64), k=2, which="BE",
                  return_eigenvectors=False)
    assert (fine.low, fine.high) == pytest.approx((values[0], values[-1]), abs=1e-8)
    assert (fine.low, fine.high) == pytest.approx(tuple(np.sort(other)), abs=1e-6)
    assert fine.products < 120
    loose = convergence.extremes(lambda x: matrix @ x, np.eye(200), generator, products=200, tolerance=1e-2)
    assert loose.products < fine.products


@pytest.mark.parametrize(("matrix", "low", "high"), [(np.array([[3.0]]), 3, 3), (np.zeros((4, 4)), 0, 0), (2 * np.eye(5), 2, 2)])
def test_small_and_degenerate_operators(matrix: Floats, low: float, high: float) -> None:
    found = convergence.extremes(lambda x: matrix @ x, np.eye(len(matrix)), np.random.default_rng(0))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    assert found.products == 1


def test_bad_operators_are_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        convergence.extremes(lambda x: x * np.nan, np.eye(3), np.random.default_rng(0))
    with pytest.raises(InputError, match="empty"):
        convergence.extremes(lambda x: x, convergence.mean_zero([1, 1]), np.random.default_rng(0))


# ---------------------------------------------------------------------------------------------------------- certificate
PROBLEM = bilevel.random_problem(np.random.default_rng(1))
ETA = 1 / PROBLEM.outer_extremes[1]


def recorded(p: Bilevel, method: bilevel.Method, seed: int, steps: int = 80) -> Recording:
    """A run on a problem with closed forms, from a random start."""
    alphas, weights = bilevel.iterate(p, method, ETA, steps, np.random.default_rng(seed).standard_normal(4))
    used = -np.diff(alphas, axis=0) / ETA
    residuals = np.array([np.linalg.norm(p.H @ w - p.B @ a - p.c) for w, a in zip(weights, alphas, strict=True)])
    deep = np.array([p.gradient(a) for a in alphas[:5]])
    shallow = used[:5] if method.inner is None else deep
    ends = convergence.extremes(lambda x: p.A @ x, np.eye(4), np.random.default_rng(seed))
    return Recording(alphas[:-1], (used**2).sum(axis=1), shallow, deep, residuals, ends)


def exact_runs(n: int = 3) -> list[Recording]:
    return [recorded(PROBLEM, bilevel.implicit(PROBLEM), seed) for seed in range(n)]


def conditions(found: Certificate) -> list[bool]:
    """Plain steps, μ_F > 0, η < 2/L_F, η ≤ 1/L_F, exact inner solve, no bias, steps that shrink."""
    return [c.met for c in found.conditions]


def test_a_known_problem_gets_the_naive_bound_with_its_assumptions() -> None:
    runs = exact_runs()
    found = certificate(runs, ETA, PROBLEM.outer_extremes)
    assert found.regime == "strongly convex" and all(conditions(found))
    assert found.contraction == pytest.approx(1 - 1 / PROBLEM.kappa)
    for run in runs:
        errors = np.linalg.norm(run.alphas - PROBLEM.solution, axis=1)
        assert (errors <= found.contraction ** np.arange(len(errors)) * errors[0] + 1e-12).all()
    assert "assuming" in found.text() and "solved exactly at every step" in found.text()
    assert {c.name: c.source for c in found.constants} == {"η": "known", "μ_F": "known", "L_F": "known", "‖b‖": "estimated"}


def test_the_naive_bound_is_not_reported_for_alternating_updates() -> None:
    method = bilevel.implicit(PROBLEM, Inner(3, 1 / PROBLEM.inner_extremes[1]))
    found = certificate([recorded(PROBLEM, method, s) for s in range(3)], ETA, PROBLEM.outer_extremes)
    assert found.regime == "strongly convex" and found.contraction is None
    assert conditions(found) == [True, True, True, True, False, True, True]
    assert "^t" not in found.text() and "No bound on ‖α_t - α*‖" in found.text()
    assert found.inner_residual > 0.1


def test_a_biased_hypergradient_has_a_floor_and_no_bound() -> None:
    method = bilevel.neumann(PROBLEM, 1, 1 / PROBLEM.inner_extremes[1])
    runs = [recorded(PROBLEM, method, s) for s in range(3)]
    found = certificate(runs, ETA, PROBLEM.outer_extremes)
    assert found.contraction is None and not conditions(found)[5]
    truth = [np.linalg.norm(run.shallow[k] - PROBLEM.gradient(run.alphas[k])) for run in runs for k in range(5)]
    assert found.floor == pytest.approx(np.mean(np.square(truth)))
    assert found.constants[3].value == pytest.approx(np.mean(truth))
    assert found.mean_squared_gradient == pytest.approx(np.mean([r.squared for r in runs]))
    gradients = [PROBLEM.gradient(a) for run in runs for a in run.alphas]
    first = [PROBLEM.gradient(run.alphas[0]) for run in runs]
    start = np.mean([g @ np.linalg.solve(PROBLEM.A, g) for g in first])  # 2 (F_0 - F_inf)
    worst = max(np.linalg.norm(run.shallow - run.deep, axis=1).max() for run in runs) ** 2
    assert np.mean(np.square(gradients).sum(axis=1)) <= start / (ETA * 80) + worst


def test_without_known_constants_only_the_neighbourhood_is_spoken_of() -> None:
    runs = exact_runs()
    found = certificate(runs, ETA)
    assert found.regime == "locally contractive" and found.contraction is None
    assert [c.source for c in found.constants] == ["known", "estimated", "estimated", "estimated"]
    assert found.constants[1].value <= PROBLEM.outer_extremes[0] and found.constants[2].value >= PROBLEM.outer_extremes[1]
    assert [c.value for c in found.constants[1:3]] == pytest.approx(PROBLEM.outer_extremes, abs=1e-6)
    assert found.interval is not None and found.interval[1] < 0
    assert np.exp(np.mean([s for s in found.slopes if s is not None])) == pytest.approx(1 - 1 / PROBLEM.kappa, rel=0.05)
    assert "observed, not proven" in found.text() and "converged" not in found.text()


def test_the_interval_is_student_s() -> None:
    slopes = np.array([-0.1, -0.3, -0.15])
    runs = [replace(exact_runs(1)[0], alphas=3 + np.exp(s * np.arange(81.0))[:, None] * np.ones(4), squared=np.ones(81))
            for s in slopes]
    found = certificate(runs, ETA)
    half = 4.302653 * slopes.std(ddof=1) / 3**0.5  # t with 2 degrees of freedom, 97.5 %
    assert found.slopes == pytest.approx(slopes, rel=1e-3)
    assert found.interval == pytest.approx((slopes.mean() - half, slopes.mean() + half), abs=2e-3)
    assert found.interval[1] > 0 and "no linear rate observed" in found.text()


def noisy(seed: int) -> Recording:
    """Gradient steps that do not end: what minibatches do."""
    generator = np.random.default_rng(seed)
    used = generator.standard_normal((200, 4))
    alphas = np.concatenate([np.zeros((1, 4)), -ETA * np.cumsum(used, axis=0)])[:-1]
    return Recording(alphas, (used**2).sum(axis=1), used[:3], used[:3] + 0.1, np.ones(200), Extremes(0.5, 1.0, 0.0, 0.0, 4))


def test_noise_has_no_rate() -> None:
    found = certificate([noisy(s) for s in range(5)], ETA)
    assert found.regime == "stationarity only"
    assert found.interval is not None and found.interval[0] <= 0 <= found.interval[1]
    assert "no linear rate observed" in found.text() and "Nothing is claimed about the distance" in found.text()
    assert found.floor == pytest.approx(0.04)


def test_no_bound_for_steps_that_known_constants_forbid() -> None:
    assert certificate(exact_runs(), ETA, (0.1, 2.1 / ETA)).contraction is None
    assert certificate(exact_runs(), ETA, (0.1, 1.9 / ETA)).contraction == pytest.approx(1 - 0.1 * ETA)


@pytest.mark.parametrize(("change", "broken"), [
    ({"extremes": Extremes(0.01, 1.0, 0.02, 0.0, 4)}, [1]),  # the residual reaches below 0
    ({"extremes": Extremes(-9.0, 1.0, 0.0, 0.0, 4)}, [1, 2, 3]), ({"extremes": Extremes(0.1, 1.5 / ETA, 0.0, 0.0, 4)}, [3]),
    ({"extremes": Extremes(0.1, 1.9 / ETA, 0.0, 0.2 / ETA, 4)}, [2, 3]), ({"squared": np.ones(80)}, [0]),
    ({"residuals": np.array([1e-12, 1e-3])}, [4]), ({"deep": np.ones((5, 4))}, [5]),
])
def test_every_condition_can_fail(change: dict[str, Floats], broken: list[int]) -> None:
    runs = [*exact_runs(), replace(exact_runs(1)[0], **change)]
    found = certificate(runs, ETA)
    assert [k for k, met in enumerate(conditions(found)) if not met] == broken
    local = not {0, 1, 2} & set(broken)
    assert found.regime == ("locally contractive" if local else "stationarity only")
    if broken != [1]:
        assert (certificate(runs, ETA, PROBLEM.outer_extremes).contraction is None) == bool({0, 4, 5} & set(broken))


def test_a_schedule_or_adam_is_no_plain_gradient_step() -> None:
    run = exact_runs(1)[0]
    assert not conditions(certificate([run, run], 1.1 * ETA))[0]
    single = replace(run, alphas=run.alphas.astype(np.float32))
    assert conditions(certificate([single, single], ETA))[0], "rounding is allowed for"


def test_one_seed_has_no_interval_and_it_is_said() -> None:
    found = certificate(exact_runs(1), ETA)
    assert found.interval is None and found.slopes[0] is not None and found.regime == "stationarity only"
    assert "1 of 1 seeds have a slope, and it takes 2" in found.text()
    still = replace(exact_runs(1)[0], alphas=np.ones((80, 4)), squared=np.zeros(80))
    assert certificate([still, still], ETA).slopes == (None, None)


def test_seeds_without_a_slope_are_counted() -> None:
    """Two seeds shrink alike and a third does not move: the interval is of two, which is said, and shrinking is not shown."""
    runs = [replace(exact_runs(1)[0], alphas=3 + np.exp(s * np.arange(81.0))[:, None] * np.ones(4), squared=np.ones(81))
            for s in (-0.2, -0.201)]
    still = replace(runs[0], alphas=np.ones((81, 4)))
    both, three = certificate(runs, ETA), certificate([*runs, still], ETA)
    assert conditions(both)[6] and not conditions(three)[6] and three.interval == both.interval
    assert "(95 %, over seeds)" in both.text() and "(95 %, over the 2 of 3 seeds that have a slope)" in three.text()


def test_growing_steps_are_told() -> None:
    p = bilevel.diverging_problem()
    alphas = bilevel.iterate(p, bilevel.first_order(p), 0.4, 50, np.ones(1))[0]
    used = -np.diff(alphas, axis=0) / 0.4
    runs = [Recording(s * alphas[:-1], s**2 * used[:, 0]**2, used[:2], used[:2], np.zeros(2), Extremes(2.5, 2.5, 0, 0, 1))
            for s in (1.0, 2.0)]
    found = certificate(runs, 0.4)
    assert found.regime == "stationarity only" and "The steps GROW by a factor of 1.2" in found.text()


def test_a_certificate_is_json() -> None:
    found = certificate(exact_runs(2), ETA)
    read = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert read["regime"] == "locally contractive" and read["contraction"] is None
    assert read["constants"][1]["source"] == "estimated" and len(read["conditions"]) == 7
    assert read["steps"] == 80 and read["seeds"] == 2 and len(read["slopes"]) == 2


@pytest.mark.parametrize(("change", "part"), [
    ({"alphas": np.ones((5, 4)), "squared": np.ones(5)}, "5 steps"), ({"squared": np.ones(3)}, "does not fit"),
    ({"deep": np.ones((5, 3))}, "does not fit"), ({"residuals": np.empty(0)}, "empty"),
    ({"squared": np.full(80, np.nan)}, "not finite"), ({"extremes": Extremes(np.nan, 1, 0, 0, 1)}, "not finite"),
])
def test_bad_recordings_are_refused(change: dict[str, Floats], part: str) -> None:
    with pytest.raises(InputError, match=part):
        certificate([replace(exact_runs(1)[0], **change)], ETA)


def test_bad_calls_are_refused() -> None:
    with pytest.raises(InputError, match="no recording"):
        certificate([], ETA)
    with pytest.raises(InputError, match="step size"):
        certificate(exact_runs(1), 0.0)
    with pytest.raises(InputError, match="known constants"):
        certificate(exact_runs(1), ETA, (0.0, 1.0))
