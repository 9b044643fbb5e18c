"""The gradient of an outer loss with respect to architecture parameters, the response of the trained weights included.

Notation: w weights and a architecture parameters, sequences of tensors; f(w, a) the outer (validation) loss, g(w, a) the inner
(training) loss; H = ∇²_ww g. At the minimum w*(a) of g the hypergradient is (implicit function theorem)
    ∇_a f - ∇²_aw g · H⁻¹ ∇_w f,
and the methods differ in what they take for H⁻¹ and in the w at which they look:

| method | instead of H⁻¹ | looked at | memory |
|---|---|---|---|
| `FirstOrder` | 0 | w | one graph |
| `FiniteDifference` (DARTS, second order) | rate · I | one step on | one graph, and twice the weights |
| `Unrolled` | by autograd through the steps | the last step | grows with the steps |
| `Neumann` (iDARTS) | rate · Σ_{j<terms} (I - rate H)^j | w | one graph, whatever the terms |
| `ConjugateGradient` | (H + damping · I)⁻¹ | w | one graph, whatever the steps |

With 0 steps, terms or rate each is `FirstOrder`, bit for bit. Up to rounding, `Neumann` with T terms is `Unrolled` with T steps
where ∇_w g = 0, and of a quadratic g `FiniteDifference` is `Unrolled` with 1 step, anywhere.

A loss is a function: it is called several times, at different w, and must take the same batch and draw the same noise each time.
Nothing that is passed in is changed, gradients (``.grad``) neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from nasopt.errors import InputError

Tensors: TypeAlias = Sequence[Tensor]
Loss: TypeAlias = Callable[[Tensors, Tensors], Tensor]
"""(w, a) -> scalar. It is computed from the tensors it is given (`torch.func.functional_call`), not from a module's own."""
Hypergradient: TypeAlias = Callable[[Loss, Loss, Tensors, Tensors], list[Tensor]]
"""(outer, inner, w, a) -> one tensor of the shape of every a, zeros where nothing depends on it. InputError: a loss depends on no
tensor it was given; FloatingPointError: the result is not finite."""
Product: TypeAlias = Callable[[Tensors], list[Tensor]]
"""v -> H v."""


@dataclass(frozen=True)
class FirstOrder:
    """∇_a f at w, as if the weights did not respond (Liu et al., DARTS, ICLR 2019, with ξ = 0)."""

    @torch.enable_grad()
    def __call__(self, outer: Loss, inner: Loss, w: Tensors, a: Tensors) -> list[Tensor]:
        a = _leaves(a)
        return _finite(_gradient(outer(_leaves(w), a), a))


@dataclass(frozen=True)
class Unrolled:
    """Through ``steps`` steps of gradient descent on the inner loss, of length ``rate``, from w on."""

    steps: int
    rate: float

    def __post_init__(self) -> None:
        _check(self.steps, self.rate)

    @torch.enable_grad()
    def __call__(self, outer: Loss, inner: Loss, w: Tensors, a: Tensors) -> list[Tensor]:
        w, a = _leaves(w), _leaves(a)
        for _ in range(self.steps if self.rate else 0):
            w = _plus(w, -self.rate, _gradient(inner(w, a), w, graph=True))
        return _finite(_gradient(outer(w, a), a))


@dataclass(frozen=True)
class FiniteDifference:
    """One step, and ∇²_aw g · v by a central difference at w ± εv, ε = scale / ‖v‖ (Liu et al. 2019, eq. 7 and 8).

    Its error falls with scale² until rounding takes over: in single precision 0.01 is near the best.
    """

    rate: float
    scale: float = 0.01

    def __post_init__(self) -> None:
        _check(0, self.rate)
        if not 0 < self.scale < math.inf:
            raise InputError(f"the scale of a finite difference is {self.scale}: give a number above 0, such as 0.01.")

    @torch.enable_grad()
    def __call__(self, outer: Loss, inner: Loss, w: Tensors, a: Tensors) -> list[Tensor]:
        if self.rate == 0:  # adding 0 may change how a kernel lies in memory, and with it the last bits
            return FirstOrder()(outer, inner, w, a)
        w, a = _leaves(w), _leaves(a)
        ahead = _leaves(_plus(w, -self.rate, _gradient(inner(w, a), w)))
        v, direct = _parts(outer(ahead, a), ahead, a)
        length = math.sqrt(_dot(v, v))
        if length == 0:
            return _finite(direct)
        above, below = (_gradient(inner(_leaves(_plus(w, s * self.scale / length, v)), a), a) for s in (1, -1))
        return _finite(_plus(direct, -self.rate * length / (2 * self.scale), _plus(above, -1, below)))


@dataclass(frozen=True)
class Neumann:
    """H⁻¹ by the first ``terms`` terms of its series, rate · Σ_j (I - rate H)^j (Zhang et al., iDARTS, ICML 2021, arXiv
    2106.10784, whose K is terms - 1).

    It converges where H is positive and rate < 2 / λ_max; with rate ≤ 1 / λ_max at most (1 - rate λ_min)^terms ‖v‖ / λ_min is
    missing of H⁻¹v.
    """

    terms: int
    rate: float

    def __post_init__(self) -> None:
        _check(self.terms, self.rate)

    def __call__(self, outer: Loss, inner: Loss, w: Tensors, a: Tensors) -> list[Tensor]:
        return _implicit(outer, inner, w, a, self._solve)

    def _solve(self, hessian: Product, v: list[Tensor]) -> list[Tensor]:
        total, term = [torch.zeros_like(x) for x in v], v
        for j in range(self.terms):
            term = _plus(term, -self.rate, hessian(term)) if j else v
            total = _plus(total, self.rate, term)
        return total


@dataclass(frozen=True)
class ConjugateGradient:
    """(H + damping · I)⁻¹ by at most ``steps`` steps of conjugate gradients, until the residual is ``tolerance`` of ‖∇_w f‖
    (Hestenes & Stiefel 1952).

    Networks are not convex: before a direction along which the damped H is not positive it ends and keeps what it has (Steihaug
    1983). More damping makes that rarer and the response smaller.
    """

    steps: int
    tolerance: float = 0.0
    damping: float = 0.0

    def __post_init__(self) -> None:
        _check(self.steps, 0.0)
        if not (0 <= self.tolerance < 1 and 0 <= self.damping < math.inf):
            raise InputError(f"conjugate gradients got tolerance {self.tolerance} and damping {self.damping}: give a tolerance "
                             "from 0 to below 1 and a damping of 0 or more.")

    def __call__(self, outer: Loss, inner: Loss, w: Tensors, a: Tensors) -> list[Tensor]:
        return _implicit(outer, inner, w, a, self._solve)

    def _solve(self, hessian: Product, v: list[Tensor]) -> list[Tensor]:
        x, residual, direction = [torch.zeros_like(part) for part in v], v, v
        square = _dot(v, v)
        enough = self.tolerance**2 * square
        for _ in range(self.steps):
            if square <= enough:
                break
            image = _plus(hessian(direction), self.damping, direction)
            curvature = _dot(direction, image)
            if curvature <= 0:
                break
            x = _plus(x, square / curvature, direction)
            residual = _plus(residual, -square / curvature, image)
            before, square = square, _dot(residual, residual)
            direction = _plus(residual, square / before, direction)
        return x


# ---------------------------------------------------------------------------------------------------------------- parts
@torch.enable_grad()
def _implicit(outer: Loss, inner: Loss, w: Tensors, a: Tensors,
              solve: Callable[[Product, list[Tensor]], list[Tensor]]) -> list[Tensor]:
    """∇_a f - ∇²_aw g · x with x = solve(H, ∇_w f), all at w. One graph of ∇_w g serves all products."""
    w, a = _leaves(w), _leaves(a)
    v, direct = _parts(outer(w, a), w, a)
    slope = _gradient(inner(w, a), w, graph=True)
    x = solve(lambda direction: _product(slope, w, direction), v)
    return _finite(_plus(direct, -1, _product(slope, a, x)))


def _leaves(tensors: Tensors) -> list[Tensor]:
    """The same values, cut off from their past, with gradients of their own."""
    return [t.detach().requires_grad_() for t in tensors]


def _gradient(loss: Tensor, inputs: Tensors, graph: bool = False) -> list[Tensor]:
    if not loss.requires_grad:
        raise InputError("a loss depends on none of the tensors it was given: compute it from its arguments w and a.")
    return list(torch.autograd.grad(loss, inputs, create_graph=graph, allow_unused=True, materialize_grads=True))


def _parts(loss: Tensor, w: Tensors, a: Tensors) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients with respect to w and to a, of one backward pass."""
    both = _gradient(loss, [*w, *a])
    return both[:len(w)], both[len(w):]


def _product(slope: Tensors, inputs: Tensors, v: Tensors) -> list[Tensor]:
    """∇(slope · v) by a second backward pass, zeros where the slope is constant; its graph stays for the next product."""
    pairs = [(s, x) for s, x in zip(slope, v, strict=True) if s.requires_grad]
    if not pairs:
        return [torch.zeros_like(t) for t in inputs]
    slopes, directions = zip(*pairs, strict=True)
    return list(torch.autograd.grad(slopes, inputs, directions, retain_graph=True, allow_unused=True, materialize_grads=True))


def _plus(x: Tensors, factor: float, y: Tensors) -> list[Tensor]:
    """x + factor · y."""
    return [a + factor * b for a, b in zip(x, y, strict=True)]


def _dot(x: Tensors, y: Tensors) -> float:
    return float(sum((a * b).sum() for a, b in zip(x, y, strict=True)))


def _finite(gradient: list[Tensor]) -> list[Tensor]:
    if not all(bool(g.isfinite().all()) for g in gradient):
        raise FloatingPointError("a hypergradient is not finite: a loss has diverged, or the rate is too large for it.")
    return gradient


def _check(count: int, rate: float) -> None:
    if count < 0 or not 0 <= rate < math.inf:
        raise InputError(f"a hypergradient got {count} steps or terms and a rate of {rate}: give numbers of 0 or more.")
