"""Bilevel problems with closed forms: what each way to differentiate through training converges to, and how fast.

L_tr = ½wᵀHw - wᵀ(Bα + c) is trained, L_val = ½(w-d)ᵀM(w-d) + wᵀEα + ½(α-a₀)ᵀΛ(α-a₀) is validated, and F(α) = L_val(w*(α), α).
Notation: w (p,) weights, α (n,) architecture; w*(α) = Jα + h with J = H⁻¹B, h = H⁻¹c; g_w = M(w-d) + Eα; A = ∇²F; μ_F, L_F the
extreme eigenvalues of A, κ = L_F/μ_F; μ_g, L_g those of H; η the outer and β the inner step size, K inner steps, P = (I-βH)^K.
A method replaces H⁻¹ in Jᵀg_w = BᵀH⁻¹g_w by Q, that is J by J̃ = QB.

Ghadimi & Wang, arXiv 1802.02246 (alternating schemes); Liu et al., arXiv 1806.09055 (DARTS); Lorraine et al., arXiv 1911.02590
(Neumann series). Constants and rates are those of these quadratic problems and are checked on them in tests/test_bilevel.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import cg

from nasopt import seed as seeds
from nasopt.analysis.convergence import Condition, fitted_rate
from nasopt.errors import InputError

Floats = NDArray[np.float64]


# --------------------------------------------------------------------------------------------------------------- problems
@dataclass(frozen=True, eq=False)
class Bilevel:
    """One problem of the family; symbols as above.

    Attributes:
        H, M: (p, p), symmetric, H positive definite.
        B, E: (p, n).
        c, d: (p,).
        Lambda: (n, n), symmetric.
        a0: (n,).

    Raises:
        InputError: shapes that do not fit, H, M or Λ not symmetric, or H or ∇²F not positive definite.
    """

    H: Floats
    B: Floats
    c: Floats
    M: Floats
    d: Floats
    E: Floats
    Lambda: Floats
    a0: Floats

    def __post_init__(self) -> None:
        p, n = self.B.shape
        wanted = {"H": (p, p), "c": (p,), "M": (p, p), "d": (p,), "E": (p, n), "Lambda": (n, n), "a0": (n,)}
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise InputError(f"{name} has shape {getattr(self, name).shape}: B of shape {(p, n)} asks for {shape}.")
        for name in ("H", "M", "Lambda"):
            if not np.allclose(getattr(self, name), getattr(self, name).T, rtol=1e-12, atol=1e-12):
                raise InputError(f"{name} is not symmetric: give the mean of it and its transpose.")
        if np.linalg.eigvalsh(self.H)[0] <= 0 or self.outer_extremes[0] <= 0:
            raise InputError("H or the Hessian of F is not positive definite: give a problem with one solution.")

    @cached_property
    def J(self) -> Floats:  # noqa: N802
        """∂w*/∂α = H⁻¹B, (p, n)."""
        return _solve(self.H, self.B)

    @cached_property
    def h(self) -> Floats:
        """w*(0) = H⁻¹c, (p,)."""
        return _solve(self.H, self.c)

    @cached_property
    def A(self) -> Floats:  # noqa: N802
        """∇²F = JᵀMJ + JᵀE + EᵀJ + Λ, (n, n)."""
        return self.J.T @ self.M @ self.J + self.J.T @ self.E + self.E.T @ self.J + self.Lambda

    @cached_property
    def outer_extremes(self) -> tuple[float, float]:
        """μ_F and L_F."""
        values = np.linalg.eigvalsh(self.A)
        return float(values[0]), float(values[-1])

    @cached_property
    def inner_extremes(self) -> tuple[float, float]:
        """μ_g and L_g."""
        values = np.linalg.eigvalsh(self.H)
        return float(values[0]), float(values[-1])

    @property
    def kappa(self) -> float:
        """κ = L_F/μ_F."""
        return self.outer_extremes[1] / self.outer_extremes[0]

    @cached_property
    def solution(self) -> Floats:
        """α* = A⁻¹[Λa₀ + JᵀM(d-h) - Eᵀh], (n,)."""
        return _solve(self.A, self.Lambda @ self.a0 + self.J.T @ self.M @ (self.d - self.h) - self.E.T @ self.h)

    def response(self, a: Floats) -> Floats:
        """w*(α), (p,)."""
        return self.J @ a + self.h

    def weight_gradient(self, w: Floats, a: Floats) -> Floats:
        """g_w, the gradient of L_val with respect to w, (p,)."""
        return self.M @ (w - self.d) + self.E @ a

    def gradient(self, a: Floats) -> Floats:
        """∇F = Eᵀw* + Λ(α-a₀) + Jᵀg_w(w*, α), (n,)."""
        w = self.response(a)
        return self.E.T @ w + self.Lambda @ (a - self.a0) + self.J.T @ self.weight_gradient(w, a)


def random_problem(generator: np.random.Generator, weights: int = 6, alphas: int = 4) -> Bilevel:
    """A well-conditioned problem: Λ - EᵀM⁻¹E has its eigenvalues in [.2, 2], so that L_val is convex in (w, α), and μ_F ≥ .2."""
    p, n = weights, alphas
    M, E = _spd(generator, p, 0.5, 2.0), 0.5 * generator.standard_normal((p, n)) / math.sqrt(p)
    Lambda = E.T @ np.linalg.solve(M, E) + _spd(generator, n, 0.2, 2.0)
    return Bilevel(_spd(generator, p, 1.0, 5.0), generator.standard_normal((p, n)), generator.standard_normal(p), M,
                   generator.standard_normal(p), E, (Lambda + Lambda.T) / 2, generator.standard_normal(n))


def _solve(matrix: Floats, right: Floats) -> Floats:
    return np.asarray(np.linalg.solve(matrix, right), dtype=np.float64)


def _spd(generator: np.random.Generator, n: int, low: float, high: float) -> Floats:
    """A symmetric matrix with random eigenvectors, and eigenvalues uniform in [low, high]."""
    q = np.linalg.qr(generator.standard_normal((n, n)))[0]
    product = (q * generator.uniform(low, high, n)) @ q.T
    return np.asarray((product + product.T) / 2)


def scalar_problem(H: float = 2.0, B: float = 1.0, c: float = 0.0, M: float = 1.0, d: float = 1.0, E: float = 0.0,
                   Lambda: float = 0.25, a0: float = 0.0) -> Bilevel:
    """p = n = 1; by default α* = 1, A = ½, ∇F(0) = -½."""
    def one(x: float) -> Floats:
        return np.array([[x]])

    return Bilevel(one(H), one(B), np.array([c]), one(M), np.array([d]), one(E), one(Lambda), np.array([a0]))


def darts_toy() -> Bilevel:
    """The example of the DARTS paper (arXiv 1806.09055, figure 2), L_val = αw - 2α + 1 and L_tr = w² - 2αw + α²: with u = w - 2
    and up to terms without u, αu + 1 and ½·2u² - u(2α - 4). The weights here are u."""
    return scalar_problem(H=2, B=2, c=-4, M=0, d=0, E=1, Lambda=0)


def diverging_problem() -> Bilevel:
    """F is convex (A = 2.5), but EᵀJ + Λ = -.5: the first-order method diverges with every step size."""
    return scalar_problem(H=1, B=1, c=0, M=4, d=1, E=-1, Lambda=0.5)


# ---------------------------------------------------------------------------------------------------------------- methods
@dataclass(frozen=True, eq=False)
class Inner:
    """How the inner problem is solved: ``steps`` gradient steps of size ``rate``, from the weights left by the last loop
    (warm), or from ``start`` (p,) every time."""

    steps: int
    rate: float
    start: Floats | None = None

    def propagator(self, problem: Bilevel) -> Floats:
        """P = (I-βH)^K, (p, p): the loop leaves P(w - w*) of the error."""
        return np.linalg.matrix_power(np.eye(len(problem.H)) - self.rate * problem.H, self.steps)


@dataclass(frozen=True, eq=False)
class Method:
    """A hypergradient Eᵀw + Λ(α-a₀) + BᵀQg_w, and how w is found.

    Attributes:
        name: for tables.
        solve: b (p,) to Qb (p,), as the method computes it.
        inverse: Q (p, p) in closed form; None where Q depends on b (conjugate gradient).
        inner: None: w = w*(α), solved exactly.
    """

    name: str
    solve: Callable[[Floats], Floats]
    inverse: Floats | None
    inner: Inner | None = None


def implicit(problem: Bilevel, inner: Inner | None = None) -> Method:
    """Q = H⁻¹: no bias."""
    return Method("exact implicit", lambda b: _solve(problem.H, b), _solve(problem.H, np.eye(len(problem.H))), inner)


def first_order(problem: Bilevel, inner: Inner | None = None) -> Method:
    """DARTS, first order: Q = 0, the inner response is left out."""
    return Method("DARTS first order", np.zeros_like, np.zeros_like(problem.H), inner)


def darts(problem: Bilevel, xi: float, inner: Inner | None = None) -> Method:
    """DARTS, second order: Q = ξI (its virtual step leaves w* where it is). Exact if H = hI and ξ = 1/h."""
    return Method(f"DARTS second order, ξ = {xi:.3g}", lambda b: xi * b, xi * np.eye(len(problem.H)), inner)


def neumann(problem: Bilevel, terms: int, rate: float, inner: Inner | None = None) -> Method:
    """Q = γΣ_{j=0..K}(I-γH)^j = (I-(I-γH)^{K+1})H⁻¹ with K = ``terms`` and γ = ``rate``."""
    return Method(f"Neumann series, terms 0 to {terms}", lambda b: _series(problem.H, b, terms + 1, rate),
                  _truncated(problem, Inner(terms + 1, rate)), inner)


def unrolled(problem: Bilevel, steps: int, rate: float, start: Floats | None = None) -> Method:
    """Differentiates through the K inner steps themselves: Q = (I-P)H⁻¹, the reverse mode sums βΣ_{j<K}(I-βH)^j."""
    inner = Inner(steps, rate, start)
    return Method(f"{steps}-step unroll, {'warm start' if start is None else 'fixed w₀'}",
                  lambda b: _series(problem.H, b, steps, rate), _truncated(problem, inner), inner)


def conjugate_gradient(problem: Bilevel, steps: int, inner: Inner | None = None) -> Method:
    """Qb is the iterate after ``steps`` steps on Hx = b from 0."""
    def solve(b: Floats) -> Floats:
        return np.asarray(cg(problem.H, b, rtol=0, atol=1e-200, maxiter=steps)[0])

    return Method(f"conjugate gradient, {steps} steps", solve, None, inner)


def _series(H: Floats, b: Floats, terms: int, rate: float) -> Floats:
    total = np.zeros_like(b)
    for _ in range(terms):
        total, b = total + rate * b, b - rate * (H @ b)
    return total


def _truncated(problem: Bilevel, inner: Inner) -> Floats:
    return _solve(problem.H, np.eye(len(problem.H)) - inner.propagator(problem))


def _memory(problem: Bilevel, method: Method) -> Floats:
    """P of the method's inner loop; 0 for an exact solve."""
    return np.zeros_like(problem.H) if method.inner is None else method.inner.propagator(problem)


def _settled(problem: Bilevel, method: Method) -> tuple[Floats, Floats]:
    """W (p, n) and v (p,): the weights w = Wα + v that belong to a fixed α: w*(α), or with a fixed start Pw₀ + (I-P)w*(α)."""
    if method.inner is None or method.inner.start is None:
        return problem.J, problem.h
    P = _memory(problem, method)
    return problem.J - P @ problem.J, problem.h - P @ (problem.h - method.inner.start)


def outer_matrix(problem: Bilevel, method: Method) -> Floats:
    """T = EᵀW + Λ + J̃ᵀ(MW + E), (n, n): the hypergradient is Tα - r. No step size converges if some Re λ(T) ≤ 0.

    Raises:
        InputError: the method is not linear.
    """
    replaced, (W, _) = _replaced(problem, method), _settled(problem, method)
    return problem.E.T @ W + problem.Lambda + replaced.T @ (problem.M @ W + problem.E)


def _replaced(problem: Bilevel, method: Method) -> Floats:
    """J̃ = QB, (p, n)."""
    if method.inverse is None:
        raise InputError(f"{method.name} replaces J by no matrix: iterate it instead.")
    return method.inverse @ problem.B


def fixed_point(problem: Bilevel, method: Method) -> Floats:
    """α̂ of Tα = Λa₀ - Eᵀv + J̃ᵀM(d-v), (n,).

    Raises:
        InputError: the method is not linear.
    """
    replaced, (_, v) = _replaced(problem, method), _settled(problem, method)
    right = problem.Lambda @ problem.a0 - problem.E.T @ v + replaced.T @ problem.M @ (problem.d - v)
    return _solve(outer_matrix(problem, method), right)


def bias(problem: Bilevel, method: Method, a: Floats) -> Floats:
    """α̂ - α* = A⁻¹[(J-J̃)ᵀg_w(w*, α̂) + (Eᵀ+J̃ᵀM)(w*-w)] at a fixed point α̂, (n,); w = w* unless the start is fixed."""
    W, v = _settled(problem, method)
    exact, w = problem.response(a), W @ a + v
    inverted = _solve(problem.H, problem.weight_gradient(exact, a)) - method.solve(problem.weight_gradient(w, a))
    return _solve(problem.A, problem.E.T @ (exact - w) + problem.B.T @ inverted)


def rate(problem: Bilevel, method: Method, eta: float) -> float | None:
    """ρ = max|1 - ηλ(T)| with ‖α_t - α̂‖ ≤ ρ^t ‖α_0 - α̂‖ at every step.

    That needs a symmetric T (exact implicit, where T = A; a fixed start, where T = ∇²F_K), w that depends on α alone, and ρ < 1;
    None otherwise.
    """
    if method.inverse is None or (method.inner is not None and method.inner.start is None):
        return None
    T = outer_matrix(problem, method)
    if not np.allclose(T, T.T, rtol=1e-10, atol=1e-12):
        return None
    found = float(np.abs(1 - eta * np.linalg.eigvalsh((T + T.T) / 2)).max())
    return found if found < 1 else None


def spectral_radius(problem: Bilevel, method: Method, eta: float) -> float:
    """Of the linear iteration of (α, w): ‖·‖^{1/t} tends to it from almost every start, but errors can grow before.

    Raises:
        InputError: the method is not linear.
    """
    replaced, P = _replaced(problem, method), _memory(problem, method)
    R, identity = problem.E.T + replaced.T @ problem.M, np.eye(problem.B.shape[1])
    followed = problem.J - P @ problem.J  # how far w follows α within one loop
    corner = identity - eta * (problem.Lambda + replaced.T @ problem.E + R @ followed)
    fixed = method.inner is not None and method.inner.start is not None
    joint = corner if fixed else np.block([[corner, -eta * R @ P], [followed, P]])
    return float(np.abs(np.linalg.eigvals(joint)).max())


def iterate(problem: Bilevel, method: Method, eta: float, steps: int, a: Floats,
            w: Floats | None = None) -> tuple[Floats, Floats]:
    """Runs the method: the inner loop at α_t, then one outer step.

    Args:
        a: α_0, (n,).
        w: the weights before the first inner loop, (p,); None: 0.

    Returns:
        α_t (steps + 1, n), and w after the inner loop at α_t (steps + 1, p).
    """
    w = np.zeros(len(problem.H)) if w is None else w
    alphas, weights = [], []
    for _ in range(steps + 1):
        w = _inner_loop(problem, method.inner, w, a)
        alphas.append(a)
        weights.append(w)
        correction = problem.B.T @ method.solve(problem.weight_gradient(w, a))
        a = a - eta * (problem.E.T @ w + problem.Lambda @ (a - problem.a0) + correction)
    return np.array(alphas), np.array(weights)


def _inner_loop(problem: Bilevel, inner: Inner | None, w: Floats, a: Floats) -> Floats:
    if inner is None:
        return problem.response(a)
    w = w if inner.start is None else inner.start
    for _ in range(inner.steps):
        w = w - inner.rate * (problem.H @ w - problem.B @ a - problem.c)
    return w


# ------------------------------------------------------------------------------------------------------ alternating updates
@dataclass(frozen=True, eq=False)
class Alternation:
    """The bound for K warm inner steps and one outer step with the exact J.

    e_t = ‖α_t - α*‖ and δ_t = ‖w_t - w*(α_t)‖ after the inner loop obey (e, δ)_{t+1} ≤ G (e, δ)_t, hence V_t = θᵀ(e_t, δ_t) ≤
    spr(G)^t V_0.

    Attributes:
        G: [[1-ημ_F, ηC], [qη‖J‖L_F, q(1+η‖J‖C)]] with C = ‖Eᵀ+JᵀM‖ and q = (1-βμ_g)^K.
        radius: spr(G).
        theta: its left Perron vector, sum 1.
        conditions: η ≤ 1/L_F, η < μ_F(1-q)/(qC‖J‖(L_F+μ_F)) and β ≤ 1/L_g: then spr(G) < 1.
    """

    G: Floats
    radius: float
    theta: Floats
    conditions: tuple[Condition, ...]

    def potential(self, problem: Bilevel, alphas: Floats, weights: Floats) -> Floats:
        """V_t of a trajectory of `iterate`, (steps + 1,)."""
        e = np.linalg.norm(alphas - problem.solution, axis=1)
        delta = np.linalg.norm(weights - alphas @ problem.J.T - problem.h, axis=1)
        return np.asarray(np.stack([e, delta], axis=1) @ self.theta)

    def excess(self, problem: Bilevel, alphas: Floats, weights: Floats) -> float:
        """The greatest V_t / (spr(G)^t V_0) of t ≥ 1 where the bound is above rounding; at most 1 if the conditions are met."""
        found = self.potential(problem, alphas, weights)
        bound = self.radius ** np.arange(len(found)) * found[0]
        seen = np.flatnonzero(bound > 1e-12 * (1 + np.linalg.norm(problem.solution) + np.linalg.norm(weights[-1])))[1:]
        return float((found[seen] / bound[seen]).max(initial=0.0))


def alternation(problem: Bilevel, eta: float, inner: Inner) -> Alternation:
    """The bound and its conditions for these step sizes; ``inner.start`` must be None.

    Raises:
        InputError: a fixed start, which is no alternation.
    """
    if inner.start is not None:
        raise InputError("inner loops that start anew do not alternate: leave the start out.")
    (mu, top), (q, J, C), beta = problem.outer_extremes, _coupling(problem, inner), 1 / problem.inner_extremes[1]
    G = np.array([[1 - eta * mu, eta * C], [q * eta * J * top, q * (1 + eta * J * C)]])
    values, vectors = np.linalg.eig(G.T)
    theta = np.abs(vectors[:, np.argmax(np.abs(values))])
    smooth, slow = step_limits(problem, inner)
    conditions = (Condition(f"β = {inner.rate:.4g} ≤ 1/L_g = {beta:.4g}", inner.rate <= (1 + 1e-12) * beta),
                  Condition(f"η = {eta:.4g} ≤ 1/L_F = {smooth:.4g}", eta <= (1 + 1e-12) * smooth),
                  Condition(f"η = {eta:.4g} < μ_F(1-q)/(qC‖J‖(L_F+μ_F)) = {slow:.4g}", eta < slow))
    return Alternation(G, float(np.abs(values).max()), theta / theta.sum(), conditions)


def step_limits(problem: Bilevel, inner: Inner) -> tuple[float, float]:
    """1/L_F and μ_F(1-q)/(qC‖J‖(L_F+μ_F)), the limits of η in `alternation`; the second is infinite where nothing couples."""
    (mu, top), (q, J, C) = problem.outer_extremes, _coupling(problem, inner)
    return 1 / top, mu * (1 - q) / (q * C * J * (top + mu)) if q * C * J > 0 else math.inf


def _coupling(problem: Bilevel, inner: Inner) -> tuple[float, float, float]:
    """q, ‖J‖ and C."""
    C = np.linalg.norm(problem.E.T + problem.J.T @ problem.M, 2)
    return (1 - inner.rate * problem.inner_extremes[0]) ** inner.steps, float(np.linalg.norm(problem.J, 2)), float(C)


# ------------------------------------------------------------------------------------------------------------------ tables
@dataclass(frozen=True)
class Row:
    """One method on one problem.

    Attributes:
        method, inner: what was run, and how the inner problem was solved.
        eta: the outer step size.
        kappa: of F.
        rho_theory: `rate`, which holds at every step; None where none holds.
        rho_bound: spr(G) of the alternating updates' potential; None for other schemes.
        rho_spectral: `spectral_radius`, asymptotic; None for methods that are not linear.
        rho_fitted: of the trajectory's tail; above 1 where it diverges.
        bias_theory: ‖α̂ - α*‖ by the identity, at the fixed point in closed form (if linear).
        bias_measured: ‖α_T - α*‖ of the trajectory's end; None where it diverges.
        fixed_point_error: ‖α_T - α̂‖; None where it diverges or α̂ has no closed form.
        diverges: whether the iteration does, in theory and in fact.
        assumes: what the line rests on.
    """

    method: str
    inner: str
    eta: float
    kappa: float
    rho_theory: float | None
    rho_bound: float | None
    rho_spectral: float | None
    rho_fitted: float | None
    bias_theory: float | None
    bias_measured: float | None
    fixed_point_error: float | None
    diverges: bool
    assumes: str


@dataclass(frozen=True)
class Violations:
    """How often bounds failed in random problems whose step sizes meet the conditions.

    Attributes:
        instances: problems.
        potential: in how many V_t ≤ spr(G)^t V_0 failed at some step (expected: 0).
        naive: in how many ‖α_t - α*‖ ≤ ρ^t ‖α_0 - α*‖, which is proven for an exact inner solve only, failed.
        worst: the greatest V_t / (spr(G)^t V_0) seen.
        assumes: what the bound rests on.
    """

    instances: int
    potential: int
    naive: int
    worst: float
    assumes: str


@dataclass(frozen=True)
class Counterexample:
    """Alternating updates that start at the optimum and leave it.

    Attributes:
        alphas: α_0 ... α_3.
        naive: ρ^t ‖α_0 - α*‖ for the same t.
        errors: ‖α_t - α*‖.
        potential_holds: whether V_t ≤ spr(G)^t V_0 does.
        assumes: what the naive bound rests on.
    """

    alphas: tuple[float, ...]
    naive: tuple[float, ...]
    errors: tuple[float, ...]
    potential_holds: bool
    assumes: str


@dataclass(frozen=True)
class Report:
    """What `nasopt certify` shows."""

    seed: int
    family: tuple[Row, ...]
    violations: Violations
    counterexample: Counterexample

    def to_json(self) -> Mapping[str, Any]:
        """Plain lists, numbers and texts; None where no rate holds."""
        return asdict(self)


NAIVE = "known 0 < μ_F ≤ L_F, 0 < η < 2/L_F, the exact J, and an exact inner solve at every step"


def report(instances: int, seed: int) -> Report:
    """The whole table; everything in it is computed anew from the seed.

    Raises:
        InputError: fewer than 1 instance.
    """
    return Report(seed, family(seed), violations(instances, seed), counterexample())


def family(seed: int) -> tuple[Row, ...]:
    """Every method on one random problem, and the first-order method on one where it diverges."""
    problem = random_problem(seeds.rng(seed, 0, "bilevel"))
    (mu, top), beta = problem.outer_extremes, 1 / problem.inner_extremes[1]
    warm = Inner(3, beta)
    eta = 0.9 * min(step_limits(problem, warm))
    methods = [(implicit(problem), 1 / top), (implicit(problem), 2 / (mu + top)), (implicit(problem, warm), eta),
               (unrolled(problem, 3, beta), 1 / top), (unrolled(problem, 3, beta, np.zeros(len(problem.H))), 1 / top),
               (first_order(problem), 1 / top), (darts(problem, beta), 1 / top), (neumann(problem, 3, beta), 1 / top),
               (conjugate_gradient(problem, 2), 1 / top)]
    hard = diverging_problem()
    return (*(row(problem, method, eta) for method, eta in methods), row(hard, first_order(hard), 1 / hard.outer_extremes[1]))


def row(problem: Bilevel, method: Method, eta: float) -> Row:
    """Runs a method and compares it with what is known in closed form.

    It starts 1000 away from the fixed point in every eigenvector of T (of A if it is not linear): a trajectory that ends at
    rounding shows the slowest of them only if that was not all but missing.
    """
    linear = method.inverse is not None
    spectral = spectral_radius(problem, method, eta) if linear else None
    pace = spectral_radius(problem, implicit(problem), eta) if spectral is None else spectral
    diverges = pace >= 1
    enough = math.log(1e12 if diverges else 1e-20) / math.log(max(pace, 1e-3)) if pace != 1 else math.inf
    near, T = (fixed_point(problem, method), outer_matrix(problem, method)) if linear else (problem.solution, problem.A)
    start = near + 1e3 * np.linalg.eig(T)[1].sum(axis=1).real
    alphas, _ = iterate(problem, method, eta, math.ceil(min(enough + 10, 20_000)), start)
    point = near if linear else alphas[-1]
    theory, bound = rate(problem, method, eta), _bound(problem, method, eta)
    return Row(method.name, _inner_text(method.inner), eta, problem.kappa, theory, bound, spectral, fitted_rate(alphas),
               float(np.linalg.norm(bias(problem, method, point))),
               None if diverges else float(np.linalg.norm(alphas[-1] - problem.solution)),
               float(np.linalg.norm(alphas[-1] - point)) if linear and not diverges else None, diverges,
               _assumes(problem, method, theory, bound, diverges))


def _bound(problem: Bilevel, method: Method, eta: float) -> float | None:
    """spr(G) where it bounds something: warm inner loops, the exact J, and step sizes below their limits."""
    if method.inner is None or method.inner.start is not None or method.inverse is None:
        return None
    found = alternation(problem, eta, method.inner)
    exact = np.allclose(method.inverse @ problem.H, np.eye(len(problem.H)), rtol=0, atol=1e-12)
    return found.radius if exact and all(c.met for c in found.conditions) else None


def _inner_text(inner: Inner | None) -> str:
    if inner is None:
        return "exact"
    return f"{inner.steps} steps, {'warm' if inner.start is None else 'from w₀'}"


def _assumes(problem: Bilevel, method: Method, theory: float | None, bound: float | None, diverges: bool) -> str:
    base = f"inner solve: {_inner_text(method.inner)}; "
    if diverges:
        always = method.inverse is not None and np.linalg.eigvals(outer_matrix(problem, method)).real.min() <= 0
        return base + ("some Re λ ≤ 0, so that it diverges with every η" if always else "η is too large")
    if bound is not None:
        return base + "β and η below their limits: spr(G) bounds a potential of both errors, not ‖α - α*‖"
    if method.inverse is None:
        return base + "not linear, hence no rate; the bias is that of the identity at the point reached"
    return base + ("a symmetric matrix, so that ρ holds at every step" if theory is not None else
                   "not symmetric, hence no rate at every step: in the end the spectral radius")


def violations(instances: int, seed: int, steps: int = 150) -> Violations:
    """Alternating updates with 1 to 5 inner steps and a random step size below its limits, from random starts.

    Raises:
        InputError: fewer than 1 instance.
    """
    if instances < 1:
        raise InputError(f"{instances} instances show nothing: give at least 1.")
    worst, naive = [], 0
    for k in range(instances):
        generator = seeds.rng(seed, k, "potential")
        problem = random_problem(generator)
        mu, inner = problem.outer_extremes[0], Inner(int(generator.integers(1, 6)), 1 / problem.inner_extremes[1])
        eta = generator.uniform(0.05, 0.99) * min(step_limits(problem, inner))
        start = problem.solution + generator.standard_normal(len(problem.a0))
        run = iterate(problem, implicit(problem, inner), eta, steps, start, 3 * generator.standard_normal(len(problem.H)))
        worst.append(alternation(problem, eta, inner).excess(problem, *run))
        errors = np.linalg.norm(run[0] - problem.solution, axis=1)
        naive += bool((errors > (1 - eta * mu) ** np.arange(steps + 1) * errors[0] * (1 + 1e-9) + 1e-12).any())
    return Violations(instances, sum(w > 1 + 1e-9 for w in worst), naive, max(worst),
                      "known constants, the exact J, β ≤ 1/L_g, η ≤ 1/L_F, η < μ_F(1-q)/(qC‖J‖(L_F+μ_F))")


def counterexample() -> Counterexample:
    """The scalar problem from α_0 = α*, w_0 = 0 with η = ½, β = ¼, K = 1: the naive bound is 0, and α moves."""
    problem, inner, eta = scalar_problem(), Inner(1, 0.25), 0.5
    alphas, weights = iterate(problem, implicit(problem, inner), eta, 3, problem.solution, np.zeros(1))
    errors = np.abs(alphas - problem.solution)[:, 0]
    mu, top = problem.outer_extremes
    rho = max(abs(1 - eta * mu), abs(1 - eta * top))
    holds = alternation(problem, eta, inner).excess(problem, alphas, weights) <= 1 + 1e-9
    return Counterexample(tuple(map(float, alphas[:, 0])), tuple(float(rho**t * errors[0]) for t in range(4)),
                          tuple(map(float, errors)), holds, NAIVE)
