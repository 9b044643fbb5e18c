"""Bilevel methods against closed forms worked out by hand, finite differences, and their own iterations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nasopt.analysis import bilevel
from nasopt.analysis.bilevel import Bilevel, Inner, Method
from nasopt.analysis.convergence import fitted_rate
from nasopt.cli import main
from nasopt.errors import InputError

Floats = bilevel.Floats


def problem(seed: int) -> Bilevel:
    return bilevel.random_problem(np.random.default_rng(seed))


def methods(p: Bilevel) -> list[Method]:
    """One of every linear kind, alternating ones among them."""
    beta, warm = 1 / p.inner_extremes[1], Inner(4, 1 / p.inner_extremes[1])
    return [bilevel.implicit(p), bilevel.implicit(p, warm), bilevel.unrolled(p, 2, beta), bilevel.first_order(p),
            bilevel.unrolled(p, 3, beta, np.ones(len(p.H))), bilevel.darts(p, beta), bilevel.darts(p, beta, warm),
            bilevel.neumann(p, 2, beta), bilevel.neumann(p, 2, beta, warm)]


def outer_loss(p: Bilevel, w: Floats, a: Floats) -> float:
    off, away = w - p.d, a - p.a0
    return float(off @ p.M @ off / 2 + w @ p.E @ a + away @ p.Lambda @ away / 2)


def differences(f: Callable[[Floats], float], a: Floats) -> Floats:
    """Central differences: exact on quadratics but for rounding."""
    steps = 1e-3 * np.eye(len(a))
    return np.array([(f(a + s) - f(a - s)) / 2e-3 for s in steps])


# ------------------------------------------------------------------------------------------------------------ by hand
def test_the_scalar_problem() -> None:
    p = bilevel.scalar_problem()
    assert p.solution == pytest.approx([1.0], abs=1e-15)
    assert p.A.item() == pytest.approx(0.5, abs=1e-15)
    assert p.gradient(np.zeros(1)) == pytest.approx([-0.5], abs=1e-15)


SCALAR = bilevel.scalar_problem()


@pytest.mark.parametrize(("method", "wanted"), [
    *((bilevel.darts(SCALAR, xi), 4 * xi / (1 + 2 * xi)) for xi in (0.0, 0.1, 0.25, 0.5)),
    (bilevel.first_order(SCALAR), 0.0), (bilevel.darts(SCALAR, 0.1), 1 / 3), (bilevel.darts(SCALAR, 0.25), 2 / 3),
    (bilevel.implicit(SCALAR), 1.0),
    *((bilevel.unrolled(SCALAR, k, 0.25, np.zeros(1)), a) for k, a in ((1, 0.8), (2, 0.96), (3, 112 / 113))),
    *((bilevel.neumann(SCALAR, k, 0.25), a) for k, a in ((0, 2 / 3), (1, 6 / 7), (2, 14 / 15))),
])
def test_fixed_points_of_the_scalar_problem(method: Method, wanted: float) -> None:
    assert bilevel.fixed_point(SCALAR, method) == pytest.approx([wanted], abs=1e-14)
    assert bilevel.iterate(SCALAR, method, 1.0, 120, np.array([-3.0]))[0][-1] == pytest.approx([wanted], abs=1e-8)
    assert bilevel.bias(SCALAR, method, np.array([wanted])) == pytest.approx([wanted - 1], abs=1e-14)


@pytest.mark.parametrize(("xi", "limit"), [(0.0, (2.0, 2.0)), (0.5, (1.0, 1.0)), (0.2, (2 / 1.4, 2 / 1.4))])
def test_the_toy_of_the_darts_paper(xi: float, limit: tuple[float, float]) -> None:
    p = bilevel.darts_toy()
    method = bilevel.darts(p, xi, Inner(1, 0.1))
    alphas, weights = bilevel.iterate(p, method, 0.1, 3000, np.array([2.0]), np.array([-4.0]))
    assert (alphas[-1, 0], weights[-1, 0] + 2) == pytest.approx(limit, abs=1e-8)
    w, a = -2.0, 2.0  # the paper's algorithm and variables: the outer gradient after a virtual step
    for _ in range(3000):
        ahead = w - xi * (2 * w - 2 * a)
        a -= 0.1 * (ahead - 2 - xi * (-2) * a)
        w -= 0.1 * (2 * w - 2 * a)
    assert (a, w) == pytest.approx(limit, abs=1e-8)
    assert bilevel.fixed_point(p, method) == pytest.approx([2 / (1 + 2 * xi)], abs=1e-14)


# ------------------------------------------------------------------------------------------------------- closed forms
@pytest.mark.parametrize("seed", range(5))
def test_gradient_hessian_and_solution(seed: int) -> None:
    p, a = problem(seed), np.random.default_rng(seed + 100).standard_normal(4)
    w = p.response(a)
    assert p.H @ w - p.B @ a - p.c == pytest.approx(0, abs=1e-12), "training ends there"

    def reduced(x: Floats) -> float:
        return outer_loss(p, np.linalg.solve(p.H, p.B @ x + p.c), x)

    assert p.gradient(a) == pytest.approx(differences(reduced, a), abs=1e-9)
    assert p.gradient(p.solution) == pytest.approx(0, abs=1e-12)
    assert np.array([p.gradient(row) - p.gradient(np.zeros(4)) for row in np.eye(4)]) == pytest.approx(p.A, abs=1e-12)
    assert all(np.abs(part).min() > 0 for part in (p.H, p.B, p.c, p.M, p.d, p.E, p.Lambda, p.a0)), "no part is left out"
    assert p.outer_extremes[0] >= 0.2 and p.kappa == p.outer_extremes[1] / p.outer_extremes[0]


@pytest.mark.parametrize("seed", range(5))
def test_iterations_end_at_the_fixed_points_with_the_bias_of_the_identity(seed: int) -> None:
    p = problem(seed)
    for method in methods(p):
        assert bilevel.spectral_radius(p, method, 0.1) < 0.99
        end = bilevel.iterate(p, method, 0.1, 2500, np.zeros(4))[0][-1]
        point = bilevel.fixed_point(p, method)
        assert np.linalg.norm(end - point) <= 1e-8, method.name
        assert np.linalg.norm(bilevel.bias(p, method, point) - (end - p.solution)) <= 1e-8, method.name
    assert [np.linalg.norm(bilevel.fixed_point(p, m) - p.solution) > 1e-3 for m in methods(p)] == [False] * 2 + [True] * 7


@pytest.mark.parametrize("seed", range(3))
def test_conjugate_gradient_is_an_inexact_solver(seed: int) -> None:
    p = problem(seed)
    for steps in (1, 2, 3, 6):
        method = bilevel.conjugate_gradient(p, steps)
        end = bilevel.iterate(p, method, 0.1, 2500, np.zeros(4))[0][-1]
        assert np.linalg.norm(bilevel.bias(p, method, end) - (end - p.solution)) <= 1e-8
        assert (np.linalg.norm(end - p.solution) <= 1e-8) == (steps == 6), "exact after as many steps as weights"
        b, kappa = np.random.default_rng(seed).standard_normal(6), p.inner_extremes[1] / p.inner_extremes[0]
        exact = np.linalg.solve(p.H, b)
        error = exact - method.solve(b)
        bound = 2 * ((kappa**0.5 - 1) / (kappa**0.5 + 1)) ** steps * (exact @ p.H @ exact) ** 0.5
        assert (error @ p.H @ error) ** 0.5 <= bound
    with pytest.raises(InputError, match="by no matrix"):
        bilevel.fixed_point(p, bilevel.conjugate_gradient(p, 2))
    assert bilevel.rate(p, bilevel.conjugate_gradient(p, 2), 0.1) is None


@pytest.mark.parametrize("start", [None, np.full(6, 0.7)])
def test_an_unroll_differentiates_its_own_steps(start: Floats | None) -> None:
    p = problem(3)
    beta, w0, a = 1 / p.inner_extremes[1], np.full(6, 0.7), np.array([0.3, -1.0, 2.0, 0.5])

    def after_three_steps(x: Floats) -> float:
        w = w0
        for _ in range(3):
            w = w - beta * (p.H @ w - p.B @ x - p.c)
        return outer_loss(p, w, x)

    alphas, _ = bilevel.iterate(p, bilevel.unrolled(p, 3, beta, start), 1.0, 1, a, w0)
    assert alphas[0] - alphas[1] == pytest.approx(differences(after_three_steps, a), abs=1e-9)
    if start is not None:
        point = bilevel.fixed_point(p, bilevel.unrolled(p, 3, beta, start))
        assert differences(after_three_steps, point) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_series_and_unroll(seed: int) -> None:
    p = problem(seed)
    (mu, top), b = p.inner_extremes, np.random.default_rng(seed).standard_normal(6)
    for terms in (0, 1, 5):
        series, unroll = bilevel.neumann(p, terms, 1 / top), bilevel.unrolled(p, terms + 1, 1 / top)
        assert series.solve(b).tolist() == unroll.solve(b).tolist()
        assert series.inverse is not None and series.inverse @ b == pytest.approx(series.solve(b), abs=1e-14)
        assert bilevel.fixed_point(p, series) == pytest.approx(bilevel.fixed_point(p, unroll), abs=1e-14)
        error = np.linalg.norm(series.solve(b) - np.linalg.solve(p.H, b))
        assert error <= (1 - mu / top) ** (terms + 1) * np.linalg.norm(b) / mu


@pytest.mark.parametrize("start", [None, np.zeros(6)])
def test_the_bias_of_an_unroll_shrinks_with_its_length(start: Floats | None) -> None:
    p = problem(0)
    mu, top = p.inner_extremes
    found = [np.linalg.norm(bilevel.fixed_point(p, bilevel.unrolled(p, k, 1 / top, start)) - p.solution) for k in range(30, 50)]
    assert np.polyfit(range(20), np.log(found), 1)[0] == pytest.approx(np.log(1 - mu / top), rel=1e-2)


def test_one_step_is_exact_where_the_training_loss_is_round() -> None:
    p = problem(1)
    rounded = replace(p, H=4 * np.eye(6), Lambda=p.Lambda + 20 * np.eye(4))
    assert bilevel.fixed_point(rounded, bilevel.darts(rounded, 0.25)) == pytest.approx(rounded.solution, abs=1e-13)
    assert np.linalg.norm(bilevel.fixed_point(rounded, bilevel.darts(rounded, 0.2)) - rounded.solution) > 1e-3
    assert np.linalg.norm(bilevel.fixed_point(p, bilevel.darts(p, 0.25)) - p.solution) > 1e-3


# -------------------------------------------------------------------------------------------------------------- rates
@pytest.mark.parametrize("seed", range(10))
def test_rates_of_the_exact_gradient(seed: int) -> None:
    p = problem(seed)
    (mu, top), kappa = p.outer_extremes, p.kappa
    for eta, wanted in ((1 / top, 1 - 1 / kappa), (2 / (mu + top), (kappa - 1) / (kappa + 1))):
        assert bilevel.rate(p, bilevel.implicit(p), eta) == pytest.approx(wanted, abs=1e-12)
        row = bilevel.row(p, bilevel.implicit(p), eta)
        assert row.rho_fitted == pytest.approx(wanted, rel=1e-2)
        errors = np.linalg.norm(bilevel.iterate(p, bilevel.implicit(p), eta, 60, np.zeros(4))[0] - p.solution, axis=1)
        assert (errors <= wanted ** np.arange(61) * errors[0] * (1 + 1e-9) + 1e-13).all()
    assert bilevel.rate(p, bilevel.implicit(p), 2.001 / top) is None
    assert bilevel.row(p, bilevel.implicit(p), 2.1 / top).diverges


def test_the_table_agrees_with_itself_on_many_problems() -> None:
    for seed in range(12):
        rows = bilevel.family(seed)
        for row in rows[:-1]:
            assert row.bias_measured == pytest.approx(row.bias_theory, abs=1e-8)
            assert not row.diverges and row.rho_fitted is not None
            if row.rho_theory is not None:
                assert row.rho_fitted == pytest.approx(row.rho_theory, rel=1e-2)
                assert row.rho_spectral == pytest.approx(row.rho_theory, rel=1e-10)
            elif row.rho_spectral is not None:  # complex eigenvalues turn the error, which ripples the fit
                assert row.rho_fitted == pytest.approx(row.rho_spectral, rel=3e-2)
            if row.rho_bound is not None:
                assert row.rho_spectral is not None and row.rho_spectral <= row.rho_bound < 1
            assert (row.fixed_point_error is None) == (row.rho_spectral is None)
            assert row.fixed_point_error is None or row.fixed_point_error <= 1e-8
        assert [r.rho_theory is None for r in rows] == [False, False, True, True, False, True, True, True, True, True]
        assert [r.rho_bound is None for r in rows] == [True, True, False] + [True] * 7
        assert [r.diverges for r in rows] == [False] * 9 + [True]
    assert "every η" in rows[-1].assumes and "symmetric" in rows[0].assumes and "not symmetric" in rows[5].assumes


@pytest.mark.parametrize("seed", range(3))
def test_the_spectral_radius_is_that_of_the_map_that_is_run(seed: int) -> None:
    p = problem(seed)
    for method in methods(p):
        def once(z: Floats, method: Method = method) -> Floats:
            """(α, w before the loop) to what they are a step later."""
            alphas, weights = bilevel.iterate(p, method, 0.3, 1, z[:4], z[4:])
            return np.concatenate([alphas[1], weights[0]])

        linear = np.array([once(row) - once(np.zeros(10)) for row in np.eye(10)]).T
        radius = np.abs(np.linalg.eigvals(linear)).max()
        assert bilevel.spectral_radius(p, method, 0.3) == pytest.approx(radius, abs=1e-9), method.name


def test_first_order_diverges_with_every_step_size_though_the_problem_is_convex() -> None:
    p = bilevel.diverging_problem()
    assert p.A.item() == pytest.approx(2.5)
    assert bilevel.outer_matrix(p, bilevel.first_order(p)).item() == pytest.approx(-0.5)
    for eta in (1e-6, 1e-2, 1.0):
        assert bilevel.spectral_radius(p, bilevel.first_order(p), eta) > 1
        assert bilevel.rate(p, bilevel.first_order(p), eta) is None
    row = bilevel.row(p, bilevel.first_order(p), 0.4)
    assert row.diverges and row.rho_fitted == pytest.approx(1.2, rel=1e-6) and row.bias_measured is None
    assert fitted_rate(bilevel.iterate(p, bilevel.implicit(p), 0.1, 60, np.ones(1))[0]) == pytest.approx(0.75, rel=1e-6)


def test_a_rate_needs_symmetry_not_the_name_of_a_method() -> None:
    p = problem(2)
    uncoupled = replace(p, E=np.zeros((6, 4)))
    assert bilevel.rate(p, bilevel.first_order(p), 0.1) is None
    slowest = 1 - 0.1 * np.linalg.eigvalsh(p.Lambda)[0]
    assert bilevel.rate(uncoupled, bilevel.first_order(uncoupled), 0.1) == pytest.approx(slowest)
    assert bilevel.rate(p, bilevel.implicit(p, Inner(2, 0.1)), 0.1) is None


# -------------------------------------------------------------------------------------------------------- alternating
def test_the_potential_never_exceeds_its_bound_and_the_distance_does() -> None:
    found = bilevel.violations(100, 0)
    assert (found.instances, found.potential) == (100, 0)
    assert 0.8 < found.worst < 1, "the bound is nearly met: the check is not idle"
    assert found.naive > 0


def test_a_wrong_matrix_is_found_out() -> None:
    broken = 0
    for seed in range(20):
        p = problem(seed)
        inner = Inner(2, 1 / p.inner_extremes[1])
        eta = 0.5 * min(bilevel.step_limits(p, inner))
        run = bilevel.iterate(p, bilevel.implicit(p, inner), eta, 100, p.solution, np.full(6, 3.0))
        bound = bilevel.alternation(p, eta, inner)
        assert bound.excess(p, *run) <= 1
        broken += replace(bound, radius=bound.G[0, 0], theta=np.array([1.0, 1e-9])).excess(p, *run) > 1
    assert broken > 10


def test_errors_obey_the_matrix() -> None:
    p = problem(5)
    inner = Inner(2, 1 / p.inner_extremes[1])
    bound = bilevel.alternation(p, 0.2 / p.outer_extremes[1], inner)
    alphas, weights = bilevel.iterate(p, bilevel.implicit(p, inner), 0.2 / p.outer_extremes[1], 40, np.ones(4))
    e = np.linalg.norm(alphas - p.solution, axis=1)
    delta = np.array([np.linalg.norm(w - p.response(a)) for w, a in zip(weights, alphas, strict=True)])
    both = np.stack([e, delta])
    assert (both[:, 1:] <= (bound.G @ both)[:, :-1] * (1 + 1e-12)).all()
    assert bound.theta @ bound.G == pytest.approx(bound.radius * bound.theta, abs=1e-12)
    assert (bound.theta > 0).all() and bound.theta.sum() == pytest.approx(1)
    assert bound.potential(p, alphas, weights) == pytest.approx(bound.theta @ both)


@pytest.mark.parametrize("seed", range(5))
def test_the_limit_of_the_step_size_is_where_the_radius_is_one(seed: int) -> None:
    p = problem(seed)
    inner = Inner(1, 0.2 / p.inner_extremes[1])
    smooth, slow = bilevel.step_limits(p, inner)
    assert slow < smooth == pytest.approx(1 / p.outer_extremes[1])
    below, above = (bilevel.alternation(p, f * slow, inner) for f in (0.999, 1.001))
    assert below.radius < 1 < above.radius
    assert [c.met for c in below.conditions] == [True] * 3 and [c.met for c in above.conditions] == [True, True, False]
    wild = bilevel.alternation(p, 1.1 * smooth, Inner(1, 1.1 / p.inner_extremes[1]))
    assert [c.met for c in wild.conditions][:2] == [False, False]


def test_alternating_updates_leave_the_optimum() -> None:
    found = bilevel.counterexample()
    assert found.alphas == pytest.approx([1.0, 1.0625, 1.0820, 1.0803], abs=5e-5)
    assert found.naive == (0, 0, 0, 0)
    assert found.errors[1:] == pytest.approx([0.0625, 0.0820, 0.0803], abs=5e-5)
    assert found.potential_holds and "exact inner solve" in found.assumes


# --------------------------------------------------------------------------------------------------------------- input
@pytest.mark.parametrize(("change", "part"), [
    ({"c": np.zeros(2)}, "c has shape"), ({"M": np.eye(6) + np.eye(6, k=1)}, "M is not symmetric"),
    ({"H": -np.eye(6)}, "not positive definite"), ({"Lambda": -99 * np.eye(4)}, "not positive definite"),
])
def test_bad_problems_are_refused(change: dict[str, Floats], part: str) -> None:
    with pytest.raises(InputError, match=part):
        replace(problem(0), **change)


def test_bad_calls_are_refused() -> None:
    with pytest.raises(InputError, match="leave the start out"):
        bilevel.alternation(SCALAR, 0.1, Inner(1, 0.1, np.zeros(1)))
    with pytest.raises(InputError, match="at least 1"):
        bilevel.violations(0, 0)


# ------------------------------------------------------------------------------------------------------------- command
def test_the_command_prints_the_table_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify", "--instances", "5", "--seed", "3", "--json", str(tmp_path / "t.json")]) == 0
    out = capsys.readouterr().out
    for part in ("none holds", "diverges", "potential 0.", "violated in 0 of 5 random", "1.0000, 1.0625, 1.0820, 1.0803"):
        assert part in out
    found = json.loads((tmp_path / "t.json").read_text())
    rows = found["family"]
    assert len(rows) == 10 and rows[0]["method"] == "exact implicit"
    assert rows[0]["rho_theory"] == pytest.approx(1 - 1 / rows[0]["kappa"])
    assert rows[5]["rho_theory"] is None and rows[-1]["diverges"] and rows[-1]["bias_measured"] is None
    assert found["violations"]["potential"] == 0 and found["seed"] == 3
    assert found == json.loads(json.dumps(bilevel.report(5, 3).to_json())), "the same on every run"
    assert found["family"] != json.loads(json.dumps(bilevel.report(5, 4).to_json()))["family"]


def test_the_command_refuses_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify", "--json", "/no/such/folder/t.json"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["certify", "--instances", "0"]) == 2
