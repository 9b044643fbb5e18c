"""Gaussian process regression with one length a group of features. numpy and scipy only: n is hundreds, not thousands.

The kernel is a Matérn correlation of the distance in which every group is divided by its length, plus a linear kernel: much of
what an operation does to time, memory and error adds up over the places where it is, and what adds up can be told from a few
architectures for all.

Notation: n observations, m points, G groups of features; theta = log (lengths (G,), weight of the linear part, noise variance),
the latter two in units of the variance of the Matérn part; L the Cholesky factor of the observations' covariances, C (n, m) those
with points.
Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006: chapters 2 (prediction), 4 (Matérn), 5 (likelihood).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from nasopt.surrogates.features import Groups

Floats: TypeAlias = NDArray[np.float64]

LENGTH_PRIOR = (1.0, 0.5)
"""Mean and deviation of the normal prior of log length; random architectures are at distance 1 in every group."""
LINEAR_PRIOR = (-1.0, 1.0)
"""The same of the log weight of the linear part."""
NOISE_PRIOR = (np.log(5e-2), 1.0)
"""The same of the log noise variance."""
SCALE_PRIOR = (2.0, 2.0)
"""What the inverse-gamma prior of the signal variance adds to its degrees of freedom and to its sum of squares."""
ITERATIONS = 30
"""Steps of L-BFGS in a fit, at most."""


def squared_distances(a: Floats, b: Floats) -> Floats:
    """Squared Euclidean distances of the rows of two matrices, (n, m)."""
    return np.asarray(np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * (a @ b.T), 0.0))


def covariance(a: Groups, b: Groups, theta: Floats) -> Floats:
    """The covariance of the function at n and m points, (n, m), in units of the variance of the Matérn part."""
    scales = np.exp(-theta[:-2])
    near = (np.concatenate([g * s for g, s in zip(groups, scales, strict=True)], axis=1) for groups in (a, b))
    products = np.concatenate(a, axis=1) @ np.concatenate(b, axis=1).T
    return np.asarray(matern(squared_distances(*near)) + np.exp(theta[-2]) * products)


def own_variance(a: Groups, theta: Floats) -> Floats:
    """The variance of the function at n points, (n,): the diagonal of `covariance`."""
    return np.asarray(1 + np.exp(theta[-2]) * sum((group**2).sum(axis=1) for group in a))


def matern(squares: Floats) -> Floats:
    """The Matérn correlation of smoothness 5/2 of squared scaled distances (R&W eq. 4.17)."""
    r = np.sqrt(5 * squares)
    return np.asarray((1 + r + r**2 / 3) * np.exp(-r))


def matern_slope(squares: Floats) -> Floats:
    """Its derivative with respect to the squared distance."""
    r = np.sqrt(5 * squares)
    return np.asarray(-5 / 6 * (1 + r) * np.exp(-r))


@dataclass(frozen=True, eq=False)
class Posterior:
    """Normal predictions of m points: means and standard deviations, (m,)."""

    mean: Floats
    deviation: Floats


@dataclass(frozen=True, eq=False)
class GaussianProcess:
    """A fitted process; make it with `fit`.

    Attributes:
        x: features of the observations.
        z: their values, shifted and scaled, (n,).
        theta: lengths, linear weight and noise.
        mean, scale: of the observed values: predictions are mean + scale * (what the process says).
        variance: of the Matérn part in units of scale^2.
    """

    x: Groups
    z: Floats
    theta: Floats
    mean: float
    scale: float
    variance: float
    _factor: Floats
    _score: Floats

    def predict(self, points: Groups) -> Posterior:
        """What would be observed at points, noise included (R&W eq. 2.25, 2.26): in a search the noise is mostly what the kernel
        cannot tell about an architecture, which an evaluation shows for good."""
        cross = covariance(self.x, points, self.theta)
        explained = solve_triangular(self._factor, cross, lower=True, check_finite=False)
        return self.posterior(explained, own_variance(points, self.theta))

    def posterior(self, explained: Floats, own: Floats) -> Posterior:
        """The same from L⁻¹C, (n, m), and the variances of the function at the points before anything was observed, (m,)."""
        left = np.maximum(own - np.einsum("nm,nm->m", explained, explained), 0.0)
        variance = (left + np.exp(self.theta[-1]) + 1e-8) * self.variance
        return Posterior(self.mean + self.scale * (self._score @ explained), self.scale * np.sqrt(variance))

    def sample(self, points: Groups, generator: np.random.Generator, n: int = 1) -> Floats:
        """``n`` joint draws of the noiseless function at m points, (n, m); O(m^3)."""
        cross = covariance(self.x, points, self.theta)
        explained = solve_triangular(self._factor, cross, lower=True, check_finite=False)
        joint = self.variance * (covariance(points, points, self.theta) - explained.T @ explained)
        draws = generator.standard_normal((n, len(joint))) @ _root(joint, 1e-9 * self.variance).T
        return np.asarray(self.mean + self.scale * (self._score @ explained + draws))

    def believing(self, points: Groups) -> GaussianProcess:
        """The same process, its lengths, noise and scale included, as if its means had been observed at points, too."""
        means = (self.predict(points).mean - self.mean) / self.scale
        x = tuple(np.concatenate([old, new]) for old, new in zip(self.x, points, strict=True))
        return _condition(x, np.concatenate([self.z, means]), self.theta, self.mean, self.scale, self.variance)


@dataclass(eq=False)
class Grid:
    """Predictions at the same m points by one process after another, as a search makes them of a whole space: O(n m) for an
    observation more, where the lengths stay as they were, instead of O(n² m) for all anew.

    With K = L Lᵀ and the covariances C of observations and points, means and variances need nothing but L⁻¹C (R&W, algorithm
    2.1), whose first rows an observation more does not change.
    """

    points: Groups
    _process: GaussianProcess | None = field(init=False, default=None)
    _explained: Floats = field(init=False)

    def __post_init__(self) -> None:
        self._explained = np.empty((0, len(self.points[0])))

    def predict(self, process: GaussianProcess) -> Posterior:
        """What ``process`` predicts for the points."""
        n, kept = len(process.z), self._kept(process)
        self._grow(n, kept)
        known, new = self._explained[:kept], tuple(group[kept:] for group in process.x)
        if kept < n:
            cross = covariance(new, self.points, process.theta) - process._factor[kept:, :kept] @ known
            self._explained[kept:n] = solve_triangular(process._factor[kept:, kept:], cross, lower=True, check_finite=False)
        self._process = process
        return process.posterior(self._explained[:n], own_variance(self.points, process.theta))

    def _kept(self, process: GaussianProcess) -> int:
        """How many rows are as they were."""
        last = self._process
        if last is None or not np.array_equal(last.theta, process.theta):
            return 0
        n = min(len(last.z), len(process.z))
        same = np.logical_and.reduce([(a[:n] == b[:n]).all(axis=1) for a, b in zip(last.x, process.x, strict=True)])
        return n if same.all() else int(same.argmin())

    def _grow(self, n: int, kept: int) -> None:
        """Makes room for n rows; the first ``kept`` stay."""
        if n > len(self._explained):
            more = np.empty((n + n // 4 + 8, len(self.points[0])))
            more[:kept] = self._explained[:kept]
            self._explained = more


@dataclass(frozen=True, eq=False)
class Everywhere:
    """A process that predicts the points of a grid, that very tuple, from there."""

    process: GaussianProcess
    grid: Grid

    def predict(self, points: Groups) -> Posterior:
        """As the process's."""
        return self.grid.predict(self.process) if points is self.grid.points else self.process.predict(points)

    def sample(self, points: Groups, generator: np.random.Generator, n: int = 1) -> Floats:
        """As the process's."""
        return self.process.sample(points, generator, n)

    def believing(self, points: Groups) -> Everywhere:
        """As the process's."""
        return Everywhere(self.process.believing(points), self.grid)


def fit(x: Groups, y: Floats, start: Floats | None = None, iterations: int | None = None) -> GaussianProcess:
    """Fits theta by its posterior mode, the variance in closed form.

    Args:
        x: features of n observations.
        y: their values, (n,).
        start: theta to start from; None: the priors' means.
        iterations: of L-BFGS, `ITERATIONS` by default; with 0 ``start`` is kept.
    """
    mean, scale = float(y.mean()), float(y.std()) or 1.0
    z = (y - mean) / scale
    theta = _priors(len(x))[0] if start is None else start
    if iterations != 0:
        bounds = [(-4.0, 6.0)] * len(x) + [(-9.0, 6.0), (np.log(1e-6), np.log(10.0))]
        parts = np.stack([*(squared_distances(group, group) for group in x), sum(group @ group.T for group in x)])
        theta = minimize(_objective, theta, args=(parts, z), jac=True, method="L-BFGS-B", bounds=bounds,
                         options={"maxiter": iterations or ITERATIONS}).x
    return _condition(x, z, theta, mean, scale, None)


def _priors(groups: int) -> tuple[Floats, Floats]:
    """Means and deviations of the normal prior of theta."""
    mean, deviation = np.array([LENGTH_PRIOR] * groups + [LINEAR_PRIOR, NOISE_PRIOR]).T
    return mean, deviation


def _condition(x: Groups, z: Floats, theta: Floats, mean: float, scale: float, variance: float | None) -> GaussianProcess:
    factor = cholesky(_noisy(covariance(x, x, theta), theta), lower=True, check_finite=False)
    score = solve_triangular(factor, z, lower=True, check_finite=False)
    if variance is None:
        variance = float((score @ score + SCALE_PRIOR[1]) / (len(z) + SCALE_PRIOR[0]))
    return GaussianProcess(x, z, theta, mean, scale, variance, factor, score)


def _objective(theta: Floats, parts: Floats, z: Floats) -> tuple[float, Floats]:
    """The negative log posterior of theta with the signal variance at its mode, and its gradient (R&W eq. 5.8, 5.9).

    Args:
        parts: squared distances in every group, and the inner products, (G + 1, n, n).
        z: the values, (n,).
    """
    n, precision, (linear, noise) = len(z), np.exp(-2 * theta[:-2]), np.exp(theta[-2:])
    total = np.tensordot(precision, parts[:-1], 1)
    try:
        factor = cholesky(_noisy(matern(total) + linear * parts[-1], theta), lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        return 1e10, np.zeros_like(theta)
    inverse = cho_solve((factor, True), np.eye(n), check_finite=False)
    weights = inverse @ z
    freedom = n + SCALE_PRIOR[0]
    variance = (z @ weights + SCALE_PRIOR[1]) / freedom
    value = 0.5 * freedom * np.log(variance) + np.log(np.diag(factor)).sum()
    outer = inverse - np.outer(weights, weights) / variance  # twice the derivative with respect to the covariance
    slope = outer * matern_slope(total)
    gradient = np.array([*(-p * (slope * d).sum() for p, d in zip(precision, parts[:-1], strict=True)),
                         0.5 * linear * (outer * parts[-1]).sum(), 0.5 * noise * np.trace(outer)])
    mean, deviation = _priors(len(precision))
    off = (theta - mean) / deviation
    return float(value + 0.5 * (off @ off)), gradient + off / deviation


def _noisy(covariances: Floats, theta: Floats) -> Floats:
    """Covariances of observations: the noise is theirs alone."""
    return np.asarray(covariances + (np.exp(theta[-1]) + 1e-8) * np.eye(len(covariances)))


def _root(matrix: Floats, jitter: float) -> Floats:
    """A square root of a covariance matrix that may be singular."""
    while True:
        try:
            return np.asarray(np.linalg.cholesky(matrix + jitter * np.eye(len(matrix))))
        except np.linalg.LinAlgError:
            jitter *= 10
