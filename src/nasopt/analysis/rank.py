"""Is a cheap measure's order to be trusted? Rank correlation with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from nasopt import seed as seeds


@dataclass(frozen=True)
class Correlation:
    """Kendall's tau-b with a percentile bootstrap interval over ``n`` pairs."""

    value: float
    low: float
    high: float
    n: int


def kendall(a: Sequence[float], b: Sequence[float], seed: int = 0, resamples: int = 2000, level: float = 0.95) -> Correlation:
    """Kendall's tau-b of two measures of the same networks (ties counted as such; 0 if one measure is constant).

    The interval is the percentile bootstrap over pairs; resamples in which one measure is constant are left out.

    Raises:
        ValueError: fewer than 3 pairs, or of different number.
    """
    if len(a) != len(b) or len(a) < 3:
        raise ValueError(f"a rank correlation needs at least 3 pairs, got {len(a)} and {len(b)} values.")
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    draws = seeds.rng(seed, 0, "bootstrap").integers(0, len(x), size=(resamples, len(x)))
    taus = np.array([_tau(x[d], y[d]) for d in draws])
    taus = taus[np.isfinite(taus)]
    value = _tau(x, y)
    value = 0.0 if np.isnan(value) else value
    tail = 50 * (1 - level)
    low, high = np.percentile(taus, [tail, 100 - tail]) if len(taus) else (-1.0, 1.0)
    return Correlation(value, float(low), float(high), len(x))


def _tau(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(stats.kendalltau(x, y).statistic)
