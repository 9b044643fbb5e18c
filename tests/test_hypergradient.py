"""Hypergradients against closed forms, dense second derivatives, central differences and each other; their memory counted."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nasopt.analysis.complexity import slope
from nasopt.errors import InputError
from nasopt.nets.hypergradient import (
    ConjugateGradient,
    FiniteDifference,
    FirstOrder,
    Hypergradient,
    Loss,
    Neumann,
    Tensors,
    Unrolled,
)

F64 = torch.float64


def flat(tensors: Tensors) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# ------------------------------------------------------------------------------------------------------ quadratic losses
@dataclass(frozen=True)
class Quadratic:
    """inner = ½wᵀHw - wᵀ(Ba + c), outer = ½(w-d)ᵀM(w-d) + wᵀEa + ½(a-a₀)ᵀΛ(a-a₀)."""

    H: Tensor
    B: Tensor
    c: Tensor
    M: Tensor
    d: Tensor
    E: Tensor
    L: Tensor
    a0: Tensor

    def inner(self, w: Tensors, a: Tensors) -> Tensor:
        x, y = flat(w), flat(a)
        return x @ self.H @ x / 2 - x @ (self.B @ y + self.c)

    def outer(self, w: Tensors, a: Tensors) -> Tensor:
        x, y = flat(w), flat(a)
        return (x - self.d) @ self.M @ (x - self.d) / 2 + x @ self.E @ y + (y - self.a0) @ self.L @ (y - self.a0) / 2

    def best(self, a: Tensor) -> Tensor:
        return torch.linalg.solve(self.H, self.B @ a + self.c)

    def power(self, rate: float, k: int) -> Tensor:
        return torch.linalg.matrix_power(torch.eye(len(self.H), dtype=F64) - rate * self.H, k)

    def closed(self, w: Tensor, a: Tensor, response: Tensor) -> Tensor:
        """Eᵀw + Λ(a-a₀) + J̃ᵀ(M(w-d) + Ea), J̃ the response of w to a."""
        return self.E.T @ w + self.L @ (a - self.a0) + response.T @ (self.M @ (w - self.d) + self.E @ a)

    def solution(self) -> Tensor:
        """α* = A⁻¹[Λa₀ + JᵀM(d-h) - Eᵀh], A = JᵀMJ + JᵀE + EᵀJ + Λ."""
        J, h = torch.linalg.solve(self.H, self.B), torch.linalg.solve(self.H, self.c)
        A = J.T @ self.M @ J + J.T @ self.E + self.E.T @ J + self.L
        return torch.linalg.solve(A, self.L @ self.a0 + J.T @ self.M @ (self.d - h) - self.E.T @ h)


def quadratic(seed: int, n: int = 7, m: int = 4, bilinear: bool = True) -> Quadratic:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64, generator=g)

    def positive(k: int) -> Tensor:
        root = draw(k, k)
        return root @ root.T / k + torch.eye(k, dtype=F64) / 2

    return Quadratic(positive(n), draw(n, m), draw(n), positive(n), draw(n), 0.3 * draw(n, m) * bilinear, positive(m), draw(m))


def split(w: Tensor, a: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """7 and 4 numbers as tensors of several shapes."""
    return [w[:4].reshape(2, 2), w[4:]], [a[:1], a[1:].reshape(1, 3)]


def at(method: Hypergradient, q: Quadratic, w: Tensor, a: Tensor) -> Tensor:
    found = method(q.outer, q.inner, *split(w, a))
    assert [f.shape for f in found] == [(1,), (1, 3)]
    return flat(found)


@pytest.mark.parametrize("seed", range(3))
def test_every_method_is_its_closed_form_at_any_weights(seed: int) -> None:
    q = quadratic(seed)
    g = torch.Generator().manual_seed(seed + 100)
    w, a = torch.randn(7, dtype=F64, generator=g), torch.randn(4, dtype=F64, generator=g)
    J, eye, rate = torch.linalg.solve(q.H, q.B), torch.eye(7, dtype=F64), 0.2
    best = q.best(a)
    for k in (1, 2, 5):
        P = q.power(rate, k)
        expected = {Unrolled(k, rate): q.closed(best + P @ (w - best), a, (eye - P) @ J),
                    Neumann(k, rate): q.closed(w, a, sum(rate * q.power(rate, j) for j in range(k)) @ q.B)}
        for method, value in expected.items():
            assert relative(at(method, q, w, a), value) <= 1e-10
    ahead = w - rate * (q.H @ w - q.B @ a - q.c)
    assert relative(at(FiniteDifference(rate), q, w, a), q.closed(ahead, a, rate * q.B)) <= 1e-10
    assert relative(at(FirstOrder(), q, w, a), q.closed(w, a, 0 * q.B)) <= 1e-10
    assert relative(at(ConjugateGradient(7), q, w, a), q.closed(w, a, J)) <= 1e-10
    damped = torch.linalg.solve(q.H + 0.3 * eye, q.B)
    assert relative(at(ConjugateGradient(7, damping=0.3), q, w, a), q.closed(w, a, damped)) <= 1e-10


@pytest.mark.parametrize("seed", range(3))
def test_with_trained_weights_the_hypergradient_vanishes_at_the_solution(seed: int) -> None:
    q = quadratic(seed)
    solution = q.solution()
    size = float(at(FirstOrder(), q, q.best(solution), solution).norm())
    for method in (ConjugateGradient(7), Neumann(400, 0.2), Unrolled(200, 0.3)):
        assert float(at(method, q, q.best(solution), solution).norm()) <= 1e-10 * size


# --------------------------------------------------------------------------------------------------------- fixed points
SCALAR = Quadratic(*(torch.tensor(v, dtype=F64) for v in (
    [[2.0]], [[1.0]], [0.0], [[1.0]], [1.0], [[0.0]], [[0.25]], [0.0])))


def fixed_point(method: Hypergradient, q: Quadratic, weights: Callable[[Tensor], Tensor]) -> float:
    """Where the hypergradient of one parameter, an affine function of it, is 0."""
    points = torch.tensor([[0.0], [3.0]], dtype=F64)
    at_0, at_3 = (float(method(q.outer, q.inner, [weights(a)], [a])[0]) for a in points)
    return 3 * at_0 / (at_0 - at_3)


def test_the_fixed_points_of_one_parameter_are_known() -> None:
    zero = torch.zeros(1, dtype=F64)
    for xi in (0.0, 0.1, 0.25, 0.5):
        assert fixed_point(FiniteDifference(xi), SCALAR, SCALAR.best) == pytest.approx(4 * xi / (1 + 2 * xi), abs=1e-10)
    for steps, value in ((1, 0.8), (2, 0.96), (3, 112 / 113)):
        assert fixed_point(Unrolled(steps, 0.25), SCALAR, lambda a: zero) == pytest.approx(value, abs=1e-12)
    for terms, value in ((1, 2 / 3), (2, 6 / 7), (3, 14 / 15)):
        assert fixed_point(Neumann(terms, 0.25), SCALAR, SCALAR.best) == pytest.approx(value, abs=1e-12)
    assert fixed_point(ConjugateGradient(1), SCALAR, SCALAR.best) == pytest.approx(1, abs=1e-12)
    assert fixed_point(FirstOrder(), SCALAR, SCALAR.best) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("xi", [0.0, 0.25, 0.5])
def test_alternating_descent_ends_where_the_darts_paper_says(xi: float) -> None:
    """outer = aw - 2a + 1, inner = w² - 2aw + a² from (a, w) = (2, -2): a = w = 2 / (1 + 2ξ)."""
    a, w = [torch.tensor(2.0, dtype=F64)], [torch.tensor(-2.0, dtype=F64)]

    def outer(w: Tensors, a: Tensors) -> Tensor:
        return a[0] * w[0] - 2 * a[0] + 1

    def inner(w: Tensors, a: Tensors) -> Tensor:
        return w[0] ** 2 - 2 * a[0] * w[0] + a[0] ** 2

    for _ in range(250):
        a = [a[0] - 0.2 * FiniteDifference(xi)(outer, inner, w, a)[0]]
        w = [w[0] - 0.25 * (2 * w[0] - 2 * a[0])]
    assert float(a[0]) == pytest.approx(2 / (1 + 2 * xi), abs=1e-9) and float(w[0]) == pytest.approx(float(a[0]), abs=1e-9)


# -------------------------------------------------------------------------------------------------- losses that are not
@dataclass(frozen=True)
class Mixture:
    """Two layers whose hidden units are mixed by a softmax, logistic losses on two halves of the data: nothing is quadratic."""

    x: Tensor
    y: Tensor
    decay: float = 0.01

    def scores(self, w: Tensors, a: Tensors, x: Tensor) -> Tensor:
        p = a[0].softmax(-1)
        hidden = x @ w[0]
        return (p[0] * torch.tanh(hidden) + p[1] * hidden.sigmoid() + p[2] * hidden) @ w[1]

    def inner(self, w: Tensors, a: Tensors) -> Tensor:
        half = len(self.x) // 2
        fit = torch.nn.functional.softplus(-self.y[:half] * self.scores(w, a, self.x[:half])).mean()
        return fit + self.decay * sum((t**2).sum() for t in w) + 0.05 * a[1].exp() * (w[1] ** 4).sum()

    def outer(self, w: Tensors, a: Tensors) -> Tensor:
        half = len(self.x) // 2
        return torch.nn.functional.softplus(-self.y[half:] * self.scores(w, a, self.x[half:])).mean()


def mixture(dtype: torch.dtype, seed: int = 0) -> tuple[Mixture, list[Tensor], list[Tensor]]:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64, generator=g).to(dtype)

    x = draw(40, 3)
    return Mixture(x, (x @ draw(3) + 0.3 * draw(40)).sign()), [draw(3, 4) / 2, draw(4)], [draw(3), draw(1)[0]]


@dataclass(frozen=True)
class Logistic:
    """Logistic regression with a decay exp(a_j) of every weight: the inner loss is strongly convex and not quadratic."""

    x: Tensor
    y: Tensor

    def inner(self, w: Tensors, a: Tensors) -> Tensor:
        return torch.nn.functional.softplus(-self.y[:20] * (self.x[:20] @ w[0])).sum() + (a[0].exp() * w[0] ** 2).sum() / 2

    def outer(self, w: Tensors, a: Tensors) -> Tensor:
        return torch.nn.functional.softplus(-self.y[20:] * (self.x[20:] @ w[0])).sum() + 0.1 * (a[0] ** 2).sum()

    def best(self, a: Tensor) -> Tensor:
        """By Newton's method."""
        w = torch.zeros(self.x.shape[1], dtype=F64)
        for _ in range(12):
            slopes = torch.autograd.functional.jacobian(lambda v: self.inner([v], [a]), w)
            w = w - torch.linalg.solve(torch.autograd.functional.hessian(lambda v: self.inner([v], [a]), w), slopes)
        return w


@pytest.fixture(scope="module")
def logistic() -> tuple[Logistic, Tensor, Tensor]:
    g = torch.Generator().manual_seed(4)
    x = torch.randn(50, 5, dtype=F64, generator=g)
    y = (x @ torch.randn(5, dtype=F64, generator=g) + torch.randn(50, dtype=F64, generator=g)).sign()
    a = torch.randn(5, dtype=F64, generator=g) / 2
    problem = Logistic(x, y)
    return problem, problem.best(a), a


def test_a_logistic_loss_gives_the_central_difference_through_its_minimum(logistic: tuple[Logistic, Tensor, Tensor]) -> None:
    problem, w, a = logistic

    def value(a: Tensor) -> float:
        return float(problem.outer([problem.best(a)], [a]))

    h = 1e-4
    difference = torch.tensor([(value(a + h * e) - value(a - h * e)) / (2 * h) for e in torch.eye(5, dtype=F64)], dtype=F64)
    for method in (ConjugateGradient(5), Neumann(300, 0.1), Unrolled(300, 0.1)):
        assert relative(method(problem.outer, problem.inner, [w], [a])[0], difference) <= 1e-8
    for method in (FirstOrder(), FiniteDifference(0.1), Neumann(2, 0.1)):
        assert relative(method(problem.outer, problem.inner, [w], [a])[0], difference) > 1e-2


def test_implicit_products_are_those_of_the_dense_second_derivatives() -> None:
    """Also where the inner loss is not convex and the weights are not trained."""
    problem, w, a = mixture(F64)
    sizes = [t.numel() for t in (*w, *a)]

    def joined(loss: Loss) -> Callable[[Tensor], Tensor]:
        def of(z: Tensor) -> Tensor:
            parts = [p.reshape(t.shape) for p, t in zip(z.split(sizes), (*w, *a), strict=True)]
            return loss(parts[:2], parts[2:])
        return of

    z, n = flat([*w, *a]), sum(sizes[:2])
    dense = torch.autograd.functional.hessian(joined(problem.inner), z)
    H, mixed = dense[:n, :n], dense[n:, :n]
    slopes = torch.autograd.functional.jacobian(joined(problem.outer), z)
    assert float(torch.linalg.eigvalsh(H).min()) < 0
    eye = torch.eye(n, dtype=F64)
    series = sum(0.3 * torch.linalg.matrix_power(eye - 0.3 * H, j) for j in range(4))
    assert relative(flat(Neumann(4, 0.3)(problem.outer, problem.inner, w, a)), slopes[n:] - mixed @ series @ slopes[:n]) <= 1e-10
    damped = torch.linalg.solve(H + eye, slopes[:n])
    found = ConjugateGradient(2 * n, damping=1.0)(problem.outer, problem.inner, w, a)
    assert relative(flat(found), slopes[n:] - mixed @ damped) <= 1e-10


# ----------------------------------------------------------------------------------------------------------- finite differences
def response(method: Hypergradient, dtype: torch.dtype) -> Tensor:
    """What a method of one step adds to the gradient with respect to a alone, in double precision."""
    problem, w, a = mixture(dtype)
    slopes = torch.autograd.functional.jacobian(lambda *v: problem.inner(v, a), tuple(w))
    ahead = [x - 0.5 * s for x, s in zip(w, slopes, strict=True)]
    direct = FirstOrder()(problem.outer, problem.inner, ahead, a)
    return flat(method(problem.outer, problem.inner, w, a)).double() - flat(direct).double()


def test_a_finite_difference_errs_in_second_order() -> None:
    exact = response(Unrolled(1, 0.5), F64)
    scales = [0.16, 0.08, 0.04, 0.02, 0.01]
    errors = [relative(response(FiniteDifference(0.5, c), F64), exact) for c in scales]
    orders = [math.log2(e / f) for e, f in itertools.pairwise(errors)]
    assert all(o == pytest.approx(2, abs=0.05) for o in orders)
    assert errors[-1] <= 1e-4


def test_in_single_precision_a_hundredth_is_a_good_scale() -> None:
    exact = response(Unrolled(1, 0.5), F64)
    at = {c: relative(response(FiniteDifference(0.5, c), torch.float32), exact) for c in (1e-2, 1e-5)}
    assert at[1e-2] <= 1e-2 and at[1e-5] > 10 * at[1e-2]
    assert FiniteDifference(0.5).scale == 1e-2


# --------------------------------------------------------------------------------------------------------------- equalities
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("method", [Unrolled(0, 0.5), Unrolled(3, 0.0), FiniteDifference(0.0), Neumann(0, 0.5), Neumann(3, 0.0),
                                    ConjugateGradient(0)])
def test_without_a_response_every_method_is_the_first_order_bit_for_bit(method: Hypergradient, dtype: torch.dtype) -> None:
    problem, w, a = mixture(dtype)
    found, first = method(problem.outer, problem.inner, w, a), FirstOrder()(problem.outer, problem.inner, w, a)
    assert all(torch.equal(x, y) for x, y in zip(found, first, strict=True))
    leaves = [t.clone().requires_grad_() for t in a]
    problem.outer(w, leaves).backward()
    assert leaves[0].grad is not None and torch.equal(first[0], leaves[0].grad) and float(first[1]) == 0


def test_at_the_minimum_terms_are_unrolled_steps(logistic: tuple[Logistic, Tensor, Tensor]) -> None:
    problem, w, a = logistic
    elsewhere = w + 0.3
    for k in (1, 2, 7):
        series, steps = (m(problem.outer, problem.inner, [w], [a])[0] for m in (Neumann(k, 0.05), Unrolled(k, 0.05)))
        assert relative(series, steps) <= 1e-10
        series, steps = (m(problem.outer, problem.inner, [elsewhere], [a])[0] for m in (Neumann(k, 0.05), Unrolled(k, 0.05)))
        assert relative(series, steps) > 1e-3


def test_conjugate_gradients_keep_their_bound_and_stop_at_their_tolerance() -> None:
    """‖e_k‖_H ≤ 2((√κ-1)/(√κ+1))^k ‖e₀‖_H; with B = I the response is the solution itself."""
    q = quadratic(5, n=7, m=7, bilinear=False)
    q = Quadratic(q.H, torch.eye(7, dtype=F64), q.c, q.M, q.d, q.E, q.L, q.a0)
    w, a = torch.ones(7, dtype=F64), torch.zeros(7, dtype=F64)
    v = q.M @ (w - q.d)
    exact, values = torch.linalg.solve(q.H, v), torch.linalg.eigvalsh(q.H)
    root = math.sqrt(float(values[-1] / values[0]))

    def found(method: Hypergradient) -> Tensor:
        return method(q.outer, q.inner, [w], [a])[0] - q.L @ (a - q.a0)

    def size(e: Tensor) -> float:
        return math.sqrt(float(e @ q.H @ e))

    errors = [size(found(ConjugateGradient(k)) - exact) for k in range(8)]
    assert errors[0] == pytest.approx(size(exact)) and errors[7] <= 1e-10 * errors[0]
    assert all(e <= 2 * ((root - 1) / (root + 1)) ** k * errors[0] + 1e-12 for k, e in enumerate(errors))
    residuals = [float((v - q.H @ found(ConjugateGradient(k))).norm() / v.norm()) for k in range(8)]
    for tolerance in (0.3, 0.05):
        enough = next(k for k, r in enumerate(residuals) if r <= tolerance)
        assert 0 < enough < 7
        assert torch.equal(found(ConjugateGradient(7, tolerance)), found(ConjugateGradient(enough)))


def test_conjugate_gradients_keep_the_steps_before_negative_curvature() -> None:
    """H = diag(3, -1): the first direction v = (2, 1) has curvature 11, the second has a negative one."""
    zero = torch.zeros(2, dtype=F64)
    q = Quadratic(torch.diag(torch.tensor([3.0, -1.0], dtype=F64)), torch.eye(2, dtype=F64), zero, torch.eye(2, dtype=F64),
                  zero, torch.zeros(2, 2, dtype=F64), torch.zeros(2, 2, dtype=F64), zero)
    v = torch.tensor([2.0, 1.0], dtype=F64)
    one = ConjugateGradient(1)(q.outer, q.inner, [v], [zero])[0]
    assert torch.allclose(one, v * (v @ v) / (v @ q.H @ v), rtol=1e-12)
    assert torch.equal(ConjugateGradient(9)(q.outer, q.inner, [v], [zero])[0], one)
    uphill = torch.tensor([0.0, 1.0], dtype=F64)
    assert torch.equal(ConjugateGradient(9)(q.outer, q.inner, [uphill], [zero])[0], zero)


# ----------------------------------------------------------------------------------------------------------------- edges
METHODS: Sequence[Hypergradient] = (FirstOrder(), Unrolled(2, 0.1), FiniteDifference(0.1), Neumann(3, 0.1), ConjugateGradient(3))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_what_no_loss_depends_on_gets_zeros(method: Hypergradient) -> None:
    w, a = [torch.ones(2), torch.ones(3)], [torch.ones(2), torch.ones(1), torch.ones(4)]

    def inner(w: Tensors, a: Tensors) -> Tensor:
        return (w[0] * a[0]).sum() + (w[0] ** 2).sum()

    def outer(w: Tensors, a: Tensors) -> Tensor:
        return (w[0] ** 3).sum() + a[1].sum()

    used, direct, unused = method(outer, inner, w, a)
    assert torch.equal(direct, torch.ones(1)) and torch.equal(unused, torch.zeros(4))
    assert bool((used != 0).all()) == (not isinstance(method, FirstOrder))

    def linear(w: Tensors, a: Tensors) -> Tensor:
        return sum((t.sum() for t in w), torch.zeros(()))

    assert [g.tolist() for g in method(linear, linear, w, a)] == [[0.0] * 2, [0.0], [0.0] * 4]
    assert torch.equal(method(lambda w, a: a[1].sum(), inner, w, a)[0], torch.zeros(2))  # ∇_w f = 0: nothing responds


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_nothing_that_is_passed_is_changed_and_no_context_matters(method: Hypergradient) -> None:
    problem, w, a = mixture(F64)
    kept = [t.clone() for t in (*w, *a)]
    plain = method(problem.outer, problem.inner, w, a)
    parameters = [torch.nn.Parameter(t) for t in w], [torch.nn.Parameter(t) for t in a]
    with torch.no_grad():
        found = method(problem.outer, problem.inner, *parameters)
    assert all(torch.equal(x, y) and not x.requires_grad for x, y in zip(found, plain, strict=True))
    assert all(p.grad is None and torch.equal(p, k) for p, k in zip([*parameters[0], *parameters[1]], kept, strict=True))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_loss_of_other_tensors_is_refused(method: Hypergradient) -> None:
    problem, w, a = mixture(F64)
    with pytest.raises(InputError, match="from its arguments w and a"):
        method(lambda *_: problem.outer(w, a), problem.inner, w, a)
    if not isinstance(method, FirstOrder):
        with pytest.raises(InputError, match="from its arguments w and a"):
            method(problem.outer, lambda *_: problem.inner(w, a), w, a)


@pytest.mark.parametrize("method", [*METHODS[:1], Unrolled(400, 10.0), FiniteDifference(1e200), Neumann(400, 10.0),
                                    *METHODS[-1:]], ids=lambda m: type(m).__name__)
def test_what_is_not_finite_is_an_error(method: Hypergradient) -> None:
    q = quadratic(0)
    w, a = split(torch.ones(7, dtype=F64), torch.ones(4, dtype=F64))
    spoilt = [w[0], w[1] * math.nan] if isinstance(method, FirstOrder | ConjugateGradient) else w
    with pytest.raises(FloatingPointError, match="not finite"):
        method(q.outer, q.inner, spoilt, a)


@pytest.mark.parametrize("make", [
    lambda: Unrolled(-1, 0.1), lambda: Unrolled(1, -0.1), lambda: Unrolled(1, math.nan), lambda: Neumann(-1, 0.1),
    lambda: Neumann(1, math.inf), lambda: FiniteDifference(-0.1), lambda: FiniteDifference(0.1, 0.0),
    lambda: ConjugateGradient(-1), lambda: ConjugateGradient(1, 1.0), lambda: ConjugateGradient(1, 0.0, -1.0)])
def test_numbers_that_mean_nothing_are_refused(make: Callable[[], Hypergradient]) -> None:
    with pytest.raises(InputError, match="give"):
        make()


# ---------------------------------------------------------------------------------------------------------------- memory
class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors made inside and not freed yet, and their greatest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def freed(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, Tensor) and (storage := t.untyped_storage()) not in self.known:
                self.known.add(storage)
                weakref.finalize(storage, self.freed, storage.nbytes())
                self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        return out


def peak(method: Hypergradient) -> int:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 16, generator=g)
    w, a = [torch.randn(16, 16, generator=g) / 4 for _ in range(2)], [torch.zeros(16)]

    def inner(w: Tensors, a: Tensors) -> Tensor:
        return (torch.tanh(torch.tanh(x @ w[0]) * a[0].exp()) @ w[1]).square().mean()

    def outer(w: Tensors, a: Tensors) -> Tensor:
        return (w[0] * w[1]).sum() + a[0].sum()

    with Peak() as counted:
        method(outer, inner, w, a)
    return counted.peak


def test_memory_of_terms_and_steps_does_not_grow_and_that_of_unrolling_does() -> None:
    sizes = (8, 16, 32, 64)
    for make in (lambda k: Neumann(k, 0.01), ConjugateGradient):
        assert len({peak(make(k)) for k in sizes}) == 1
    found = slope(sizes, [peak(Unrolled(k, 0.01)) for k in sizes])
    assert 0.9 <= found.low <= found.high <= 1.1


def test_products_are_one_less_than_terms_and_one_for_the_mixed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from nasopt.nets import hypergradient

    problem, w, a = mixture(F64)
    calls: list[int] = []
    product = hypergradient._product

    def counted(*args: Any) -> list[Tensor]:
        calls.append(1)
        return product(*args)

    monkeypatch.setattr(hypergradient, "_product", counted)
    for method, count in ((Neumann(1, 0.1), 1), (Neumann(5, 0.1), 5), (ConjugateGradient(4, damping=1.0), 5)):
        calls.clear()
        method(problem.outer, problem.inner, w, a)
        assert len(calls) == count
