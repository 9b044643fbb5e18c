"""Is a cheap measure's order to be trusted? Rank correlation with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nasopt import seed as seeds


@dataclass(frozen=True)
class Correlation:
    """Kendall's tau-b with its interval, of ``n`` pairs."""

    value: float
    low: float
    high: float
    n: int


def kendall(a: Sequence[float], b: Sequence[float], seed: int = 0, resamples: int = 2000, level: float = 0.95) -> Correlation:
    """Kendall's tau-b of two measures of the same networks (ties counted as such; 0 if one measure is constant).

    The interval is the percentile bootstrap over pairs; resamples in which one measure is constant are left out. Where the order
    is the same, or the opposite, all resamples say so: the other end is then where (1 - τ)² = z² 2 (1 - τ²) / n, by the upper
    bound on the variance of an estimate of τ (Kendall, Rank Correlation Methods, 4th edition, 1970, §4.9).

    Raises:
        ValueError: fewer than 3 pairs, of different number, or values that are not finite.
    """
    if len(a) != len(b) or len(a) < 3:
        raise ValueError(f"a rank correlation needs at least 3 pairs, got {len(a)} and {len(b)} values.")
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if not np.isfinite([x, y]).all():
        raise ValueError("a rank correlation got values that are not finite.")
    draws = seeds.rng(seed, 0, "bootstrap").integers(0, len(x), size=(resamples, len(x)))
    taus = np.array([_tau(x[d], y[d]) for d in draws])
    taus = taus[np.isfinite(taus)]
    value = _tau(x, y)
    value = 0.0 if np.isnan(value) else value
    if abs(value) > 1 - 1e-12:
        share = 2 * float(stats.norm.ppf((1 + level) / 2)) ** 2 / len(x)
        low, high = sorted((value, value * (1 - share) / (1 + share)))
        return Correlation(value, low, high, len(x))
    tail = 50 * (1 - level)
    low, high = np.percentile(taus, [tail, 100 - tail]) if len(taus) else (-1.0, 1.0)
    return Correlation(value, float(low), float(high), len(x))


def _tau(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(stats.kendalltau(x, y).statistic)
