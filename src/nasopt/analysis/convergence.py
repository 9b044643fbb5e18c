"""What may be said about the convergence of a run: fitted rates, extreme eigenvalues of its Hessian, a certificate.

Notation: α_t the architecture's parameters at step t, (n,); F(α) the validation loss at the weights that training ends in;
g_t = ∇F(α_t) + b_t the hypergradient that was used, b_t its error; η the step size; μ_F, L_F the extreme eigenvalues of ∇²F.
The statements, each proven or measured on problems with closed forms, are those of `nasopt.analysis.bilevel`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag, helmert

from nasopt.analysis.stats import t_interval
from nasopt.errors import InputError

Floats = NDArray[np.float64]
Regime = Literal["strongly convex", "locally contractive", "stationarity only"]

MIN_STEPS = 10
"""Points of a trajectory below which its tail shows nothing."""
MOVES = {"step": "the steps", "slice": "the moves from slice to slice"}
"""What ‖α_{t+1} - α_t‖ is the length of, by the unit of t."""
EXACT = 1e-8
"""Inner residuals and hypergradient errors up to which they count as zero."""


@dataclass(frozen=True)
class Condition:
    """What a statement needs, and whether it was met."""

    text: str
    met: bool


@dataclass(frozen=True)
class Constant:
    """A number that a statement uses, and whether it is known for all α or estimated from what a run recorded."""

    name: str
    value: float
    source: Literal["known", "estimated"]
    how: str


# ------------------------------------------------------------------------------------------------------------------ rates
def tail_slope(alphas: Floats) -> float | None:
    """The least-squares slope of log‖α_{t+1} - α_t‖ on t over the later half of the steps that are above rounding.

    Args:
        alphas: shape (T, n), of the precision they were computed in.

    Returns:
        Per step; None if fewer than 5 of these steps are more than 1000 units of rounding long.
    """
    points = np.asarray(alphas)
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    above = np.flatnonzero(lengths > 1e3 * np.finfo(points.dtype).eps * np.linalg.norm(points, axis=1)[1:])
    tail = above[len(above) // 2:]
    return float(np.polyfit(tail, np.log(lengths[tail]), 1)[0]) if len(tail) >= 5 else None


def fitted_rate(alphas: Floats) -> float | None:
    """The factor by which steps shrink on the tail, exp `tail_slope`; for a linear rate it is that of the distance, too."""
    slope = tail_slope(alphas)
    return None if slope is None else math.exp(slope)


# ------------------------------------------------------------------------------------------------------------ eigenvalues
@dataclass(frozen=True)
class Extremes:
    """The least and the greatest Ritz value of a symmetric operator.

    Attributes:
        low, high: the values.
        low_residual, high_residual: ‖Av - θv‖: within this distance of the value there is an eigenvalue (whether it is the
            extreme one no residual can tell).
        products: of the operator with a vector that were spent.
    """

    low: float
    high: float
    low_residual: float
    high_residual: float
    products: int


def mean_zero(options: Sequence[int]) -> Floats:
    """Orthonormal coordinates of the logits whose mean on each edge is zero: adding a constant to an edge's logits changes no
    softmax, so that the Hessian in raw logits has a zero eigenvalue for every edge.

    Args:
        options: how many each of the edges has, at least 1.

    Returns:
        Shape (sum(options) - edges, sum(options)), orthonormal rows: Helmert's contrasts of every edge.
    """
    return np.asarray(block_diag(*(helmert(k) for k in options)))


def extremes(product: Callable[[Floats], Floats], basis: Floats, generator: np.random.Generator, products: int = 60,
             tolerance: float = 1e-8) -> Extremes:
    """Extreme eigenvalues of a symmetric operator within a subspace by Lanczos with full reorthogonalisation (Golub & Van Loan,
    Matrix Computations, 4th edition, 10.3): Rayleigh-Ritz on the Krylov space of a random vector.

    Args:
        product: x (n,) to Ax (n,).
        basis: of the subspace, (k, n), orthonormal rows; ``np.eye(n)`` for the whole space.
        generator: for the first vector.
        products: to spend at most.
        tolerance: end when both residuals are below this share of the greater absolute Ritz value.

    Raises:
        InputError: an empty basis, or a product that is not finite.
    """
    if not basis.size or products < 1:
        raise InputError("the subspace is empty or no product is allowed: give at least one coordinate and one product.")
    q = generator.standard_normal(len(basis))
    vectors, images = np.empty((0, len(basis))), np.empty((0, len(basis)))
    for _ in range(min(products, len(basis))):
        vectors = np.vstack([vectors, q / np.linalg.norm(q)])
        images = np.vstack([images, basis @ product(vectors[-1] @ basis)])
        if not np.isfinite(images[-1]).all():
            raise InputError("the operator's product with a vector is not finite: take the Hessian where the loss is finite.")
        small = vectors @ images.T
        values, turns = np.linalg.eigh((small + small.T) / 2)
        ends, both = values[[0, -1]], turns[:, [0, -1]].T
        residuals = np.linalg.norm(both @ images - ends[:, None] * (both @ vectors), axis=1)
        if (residuals <= tolerance * np.abs(ends).max()).all():
            break
        q = images[-1]
        for _ in range(2):  # twice is enough (Parlett, The Symmetric Eigenvalue Problem, 6.9)
            q = q - vectors.T @ (vectors @ q)
    return Extremes(float(ends[0]), float(ends[1]), float(residuals[0]), float(residuals[1]), len(vectors))


# ------------------------------------------------------------------------------------------------------------ certificate
@dataclass(frozen=True, eq=False)
class Recording:
    """What one seed recorded.

    Attributes:
        alphas: α_0 ... α_{T-1}, (T, n), of the precision they were computed in.
        squared: ‖g_t‖², (T,).
        shallow, deep: hypergradients at S of the points, (S, n) each: truncated as in the run, and much later.
        residuals: ‖∇_w L_train‖ after the inner loop, any length.
        extremes: of ∇²F at the last point, in mean-zero coordinates if α are logits; None where they were not measured.
    """

    alphas: Floats
    squared: Floats
    shallow: Floats
    deep: Floats
    residuals: Floats
    extremes: Extremes | None


@dataclass(frozen=True)
class Certificate:
    """What a run's recordings allow to say, and no more. Make it with `certificate`.

    Attributes:
        seeds, steps: how many recordings, and the points of the shortest.
        unit: what lies between two points.
        regime: the strongest setting whose conditions are met.
        constants, conditions: what the statements use and need.
        mean_squared_gradient: of the hypergradients used, over all steps and seeds.
        floor: mean ‖b‖², estimated: the part of the bound on the mean of ‖∇F‖² that no number of steps takes away.
        inner_residual: the greatest.
        contraction: ρ of ‖α_t - α*‖ ≤ ρ^t ‖α_0 - α*‖, only where all it needs is met.
        slopes: of every seed, see `tail_slope`.
        interval: 95 % t-interval of their mean; None with fewer than 2.
        findings: sentences.
    """

    seeds: int
    steps: int
    unit: Literal["step", "slice"]
    regime: Regime
    constants: tuple[Constant, ...]
    conditions: tuple[Condition, ...]
    mean_squared_gradient: float
    floor: float
    inner_residual: float
    contraction: float | None
    slopes: tuple[float | None, ...]
    interval: tuple[float, float] | None
    findings: tuple[str, ...]

    def to_json(self) -> Mapping[str, Any]:
        """Plain lists, numbers and texts; None where nothing can be said."""
        return asdict(self)

    def text(self) -> str:
        """Several lines to print."""
        return "\n".join([
            f"regime: {self.regime} ({self.seeds} {'seed' if self.seeds == 1 else 'seeds'}, {self.steps} {self.unit}s)",
            *(f"  {c.name} = {c.value:.4g} ({c.source}: {c.how})" for c in self.constants),
            *(f"  {'met' if c.met else 'NOT MET'}: {c.text}" for c in self.conditions),
            *(f"- {sentence}" for sentence in self.findings)])


def certificate(recordings: Sequence[Recording], rate: float | None, known: tuple[float, float] | None = None) -> Certificate:
    """What may be said about a run that took gradient steps of one size, or about one that did not.

    Args:
        recordings: one a seed.
        rate: η; None: the steps were others, such as Adam's, and what lies between two points is a slice of many.
        known: μ_F and L_F, proven for all α (as for quadratic losses); None: they are estimated from the recorded eigenvalues at
            the last points, and hold there at most.

    Raises:
        InputError: no recording, arrays that do not fit or are not finite, fewer than 10 steps, or a rate or constants that are
            not above 0.
    """
    _check(recordings, rate, known)
    unit: Literal["step", "slice"] = "slice" if rate is None else "step"
    bias = np.concatenate([np.linalg.norm(r.shallow - r.deep, axis=1) for r in recordings])
    residual = max(float(np.max(r.residuals)) for r in recordings)
    ends = known or _outermost([r.extremes for r in recordings])
    top = None if ends is None else max(abs(ends[0]), ends[1])
    scale = math.inf if rate is None or top is None else rate * top
    slopes = tuple(tail_slope(r.alphas) for r in recordings)
    interval = t_interval([s for s in slopes if s is not None])
    plain = Condition("the updates are gradient steps of size η: ‖α_{t+1} - α_t‖ = η‖g_t‖",
                      rate is not None and all(_plain(r, rate) for r in recordings))
    unknown = " (eigenvalues of ∇²F were not measured)" if ends is None else ""
    convex = Condition(f"μ_F > 0{unknown}", ends is not None and ends[0] > 0)
    contracting = Condition(f"η < 2/L_F{unknown}", scale < 2)
    descending = Condition(f"η ≤ 1/L_F (the bound on mean ‖∇F‖² needs it for all α){unknown}", scale <= 1 + 1e-12)
    inner = Condition(f"the inner problem is solved exactly: every residual ≤ {EXACT:g}", residual <= EXACT)
    unbiased = Condition(f"the hypergradient is unbiased: every estimate of ‖b‖ ≤ {EXACT:g}", bool(bias.max() <= EXACT))
    shrinking = Condition(f"{MOVES[unit]} shrink on the tail: every seed has a slope, and their interval lies below 0",
                          interval is not None and interval[1] < 0 and None not in slopes)
    contraction = None
    if known and rate is not None and all(c.met for c in (plain, contracting, inner, unbiased)):
        contraction = max(abs(1 - rate * known[0]), abs(1 - rate * known[1]))
    local = all(c.met for c in (plain, convex, contracting, shrinking))
    regime: Regime = "strongly convex" if known else "locally contractive" if local else "stationarity only"
    squared = float(np.mean(np.concatenate([r.squared for r in recordings])))
    floor = float(np.mean(bias**2))
    conditions = (plain, convex, contracting, descending, inner, unbiased, shrinking)
    findings = (*_gradient_findings(squared, floor, residual, plain.met), _rate_finding(slopes, interval, unit),
                _regime_finding(regime, contraction))
    return Certificate(len(recordings), min(len(r.alphas) for r in recordings), unit, regime,
                       _constants(rate, ends and ends[0], top, float(bias.mean()), known is not None), conditions, squared, floor,
                       residual, contraction, slopes, interval, findings)


def _outermost(found: Sequence[Extremes | None]) -> tuple[float, float] | None:
    """The worst over seeds, within the residuals; None if one is unknown."""
    known = [e for e in found if e is not None]
    if len(known) < len(found):
        return None
    return min(e.low - e.low_residual for e in known), max(e.high + e.high_residual for e in known)


def _constants(rate: float | None, low: float | None, top: float | None, bias: float, known: bool) -> tuple[Constant, ...]:
    source: Literal["known", "estimated"] = "known" if known else "estimated"
    how = "for all α" if known else "Lanczos at the last points, the worst over seeds and within the residual"
    depths = "mean difference of two truncation depths; lacks the error of the deeper and what the inner residual adds"
    steps = () if rate is None else (Constant("η", rate, "known", "the step size"),)
    ends = () if low is None or top is None else (Constant("μ_F", low, source, how), Constant("L_F", top, source, how))
    return (*steps, *ends, Constant("‖b‖", bias, "estimated", depths))


def _check(recordings: Sequence[Recording], rate: float | None, known: tuple[float, float] | None) -> None:
    if not recordings:
        raise InputError("there is no recording to certify: give one for every seed.")
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise InputError(f"the step size is {rate}: give the positive one of the run.")
    if known is not None and not 0 < known[0] <= known[1] < math.inf:
        raise InputError(f"the known constants are {known}: give 0 < μ_F ≤ L_F, or None to estimate them.")
    for k, r in enumerate(recordings):
        arrays = (r.alphas, r.squared, r.shallow, r.deep, r.residuals)
        e = r.extremes
        ends = () if e is None else (e.low, e.high, e.low_residual, e.high_residual)
        if not np.isfinite(ends).all():
            raise InputError(f"the eigenvalues of recording {k} are not finite: certify a run that did not fail.")
        if not all(a.size and np.isfinite(a).all() for a in arrays):
            raise InputError(f"recording {k} is empty somewhere or not finite: certify a run that did not fail.")
        t, n = r.alphas.shape
        if r.squared.shape != (t,) or r.shallow.shape != r.deep.shape or r.shallow.shape[1:] != (n,):
            raise InputError(f"recording {k} does not fit together: one squared norm a step, and pairs of hypergradients of {n} "
                             "numbers.")
        if t < MIN_STEPS:
            raise InputError(f"recording {k} has {t} steps: record at least {MIN_STEPS}.")


def _plain(recording: Recording, rate: float) -> bool:
    """Whether the steps are as long as gradient steps of this size: no momentum, Adam, clipping or schedule."""
    points = recording.alphas
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    rounding = 10 * np.finfo(points.dtype).eps * np.linalg.norm(points, axis=1).max()
    return bool(np.allclose(lengths, rate * np.sqrt(recording.squared[:-1]), rtol=1e-3, atol=rounding))


def _gradient_findings(squared: float, floor: float, residual: float, plain: bool) -> tuple[str, ...]:
    bound = "mean ‖∇F‖² ≤ 2(F_0 - F_inf)/(ηT) + mean ‖b‖²"
    return (f"mean ‖g‖² of the hypergradients used: {squared:.4g}; greatest inner residual: {residual:.4g}.",
            f"For plain steps and η ≤ 1/L_F {bound}; the last term, estimated, is a floor that more steps do not lower: "
            f"{floor:.4g}." if plain else
            f"These are no plain steps, so that the bound for those, {bound}, is not theirs; mean ‖b‖², estimated: {floor:.4g}.")


def _rate_finding(slopes: Sequence[float | None], interval: tuple[float, float] | None, unit: str) -> str:
    usable = sum(s is not None for s in slopes)
    if interval is None:
        return f"No interval of the rate: {usable} of {len(slopes)} seeds have a slope, and it takes 2."
    over = "over seeds" if usable == len(slopes) else f"over the {usable} of {len(slopes)} seeds that have a slope"
    factors = f"a factor of {math.exp(interval[0]):.4g} to {math.exp(interval[1]):.4g} a {unit} (95 %, {over})"
    if interval[0] <= 0 <= interval[1]:
        return f"no linear rate observed: {MOVES[unit]} change by {factors}."
    return f"{MOVES[unit].capitalize()} {'shrink' if interval[1] < 0 else 'GROW'} by {factors}; this is observed, not proven."


def _regime_finding(regime: Regime, contraction: float | None) -> str:
    if contraction is not None:
        return (f"‖α_t - α*‖ ≤ {contraction:.6g}^t ‖α_0 - α*‖, assuming that μ_F and L_F hold for all α, that the inner problem "
                "is solved exactly at every step, that the hypergradient is unbiased, and that η < 2/L_F.")
    if regime == "strongly convex":
        return ("No bound on ‖α_t - α*‖ is reported: it needs every condition above but those on 1/L_F and on the tail. With "
                "alternating updates a potential of both errors decreases, not the distance.")
    if regime == "locally contractive":
        return ("Near the last points gradient descent on F contracts if the estimates hold there; the run's own steps differ "
                "from it by b and by the inner residual, and that they shrink was observed, not proven.")
    return "Nothing is claimed about the distance to any solution, only about the mean gradient."
