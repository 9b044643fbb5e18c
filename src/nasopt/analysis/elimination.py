"""Which of several arms are worse, by confidence bounds that hold for all arms and at all times at once.

Notation: n arms, t losses in [0, 1] seen of an arm, independent and of one distribution with mean μ. Half of δ pays for
Hoeffding's inequality, half for the empirical Bernstein inequality (Maurer & Pontil, COLT 2009, arXiv 0907.3740, theorem 4), and
the narrower interval counts. Either half is spread over the arms, the two sides and all t by 6 / (π² t²), so that the probability
that any interval of any arm ever misses its mean is at most δ.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nasopt.errors import InputError

Floats = NDArray[np.float64]


def hoeffding(count: ArrayLike, arms: int, delta: float) -> Floats:
    """√(ln((π²/3) n t² / δ) / (2t)): half the width of the interval, infinite for t = 0. Any shape.

    Two sides and all t: Σ_t 2n exp(-2t r_t²) = Σ_t 6δ/(π² t²) = δ.
    """
    t = np.asarray(count, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(t > 0, np.sqrt(np.log(np.pi**2 / 3 * arms * t**2 / delta) / (2 * t)), np.inf)


def bernstein(count: ArrayLike, variance: ArrayLike, arms: int, delta: float) -> Floats:
    """√(2V ln(2/δ')/t) + 7 ln(2/δ') / (3(t-1)) with the sample variance V and δ' = 3δ/(π² n t²), one side's share of δ; infinite
    below t = 2. Any shape."""
    t = np.asarray(count, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log(2 * np.pi**2 * arms * t**2 / (3 * delta))
        return np.where(t > 1, np.sqrt(2 * np.asarray(variance) * log / t) + 7 * log / (3 * (t - 1)), np.inf)


def intervals(count: ArrayLike, mean: ArrayLike, variance: ArrayLike, arms: int, delta: float) -> tuple[Floats, Floats]:
    """The lower and the upper bound of each mean, within [0, 1].

    Args:
        count, mean, variance: of the losses seen, of one shape; the variance with t - 1 below. Where the count is 0 (1) the mean
            (variance) does not matter.
        arms: n, of all arms that share δ.
        delta: δ, in (0, 1).

    Raises:
        InputError: a δ outside (0, 1), or no arm.
    """
    if not 0 < delta < 1 or arms < 1:
        raise InputError(f"delta is {delta} for {arms} arms: give a probability between 0 and 1, and at least 1 arm.")
    radius = np.minimum(hoeffding(count, arms, delta / 2), bernstein(count, variance, arms, delta / 2))
    centre = np.where(np.asarray(count) > 0, mean, 0.5)
    return np.maximum(centre - radius, 0.0), np.minimum(centre + radius, 1.0)


def beaten(lower: Floats, upper: Floats) -> NDArray[np.int64]:
    """Who proves that an arm is worse: another whose upper bound lies below its lower bound in every objective; -1: nobody.

    With one objective an arm is kept if and only if its interval reaches down to the least upper bound. With several nothing
    that may be a compromise is given up: one and the same arm must be better in all of them.

    Args:
        lower, upper: shape (arms, objectives).

    Returns:
        Shape (arms,). The arm with the least sum of upper bounds if there are several.
    """
    worse = np.asarray((upper[None, :, :] < lower[:, None, :]).all(axis=2))
    order = np.argsort(upper.sum(axis=1), kind="stable")
    first = order[worse[:, order].argmax(axis=1)]
    return np.where(worse.any(axis=1), first, -1)
