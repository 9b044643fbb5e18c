"""Comparisons of search strategies that hold up: paired tests, many methods over many data sets, bootstraps over runs.

Which test belongs to which design of a comparison is told by mathematics older than the field: two methods on paired seeds by
Wilcoxon's signed ranks; many methods over many data sets by Friedman's ranks, then Nemenyi (all pairs) or Holm (against a
control) (Demšar, JMLR 7, 2006); few runs on several tasks by the interquartile mean with a stratified bootstrap and the
probability of improvement (Agarwal et al., NeurIPS 2021). scipy computes the distributions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from nasopt import seed as seeds
from nasopt.errors import InputError

Floats = NDArray[np.float64]

MIN_PAIRS = 6
"""Paired seeds below which Wilcoxon's test cannot reach p < .05, whatever the data (with 5 the least p is .0625)."""

EXACT_UP_TO = 50
"""Pairs up to which the signed-rank distribution is counted, not approximated."""


# ----------------------------------------------------------------------------------------------------------- one method
def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of a mean; None with fewer than 2 values."""
    if len(values) < 2:
        return None
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


# ---------------------------------------------------------------------------------------------------------- two methods
@dataclass(frozen=True)
class Paired:
    """Two methods on the same seeds.

    Attributes:
        n: pairs.
        p: two-sided, Wilcoxon's signed-rank test (pairs without a difference have ranks but no sign: Pratt's zero handling).
        shift: Hodges-Lehmann estimate of a - b, the median of all means of two differences.
        low, high: its interval, by inversion of the test; infinite where so few pairs allow none at this level.
        a12: Vargha and Delaney's effect size: the probability that a value of a is above one of b, ties half.
        level: of the interval.
    """

    n: int
    p: float
    shift: float
    low: float
    high: float
    a12: float
    level: float

    @property
    def significant(self) -> bool:
        """Whether the difference is significant at 1 - level.

        Raises:
            InputError: there are fewer than `MIN_PAIRS` pairs: the word is refused.
        """
        if self.n < MIN_PAIRS:
            raise InputError(f"{self.n} paired seeds can show no significance: run at least {MIN_PAIRS}, 20 for a claim.")
        return self.p < 1 - self.level


def paired(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Paired:
    """Compares values (n,) of two methods, the k-th of either from the same seed.

    Raises:
        InputError: different numbers of values, fewer than 2, or one that is not finite.
    """
    x, y = _pairs(a, b)
    difference = x - y
    if not difference.any():
        return Paired(len(x), 1.0, 0.0, 0.0, 0.0, a12(x, y), level)
    walsh = np.sort(_walsh(difference))
    k = _walsh_rank(len(x), level)
    low, high = (float(walsh[k - 1]), float(walsh[-k])) if k else (-math.inf, math.inf)
    return Paired(len(x), _signed_rank_p(difference), float(np.median(walsh)), low, high, a12(x, y), level)


def _pairs(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise InputError(f"a paired comparison needs one value of either method per seed, got {x.shape} and {y.shape}: "
                         "run both on the same seeds.")
    if len(x) < 2:
        raise InputError(f"{len(x)} seed is no comparison: run at least 2, and {MIN_PAIRS} to say more.")
    if not np.isfinite([x, y]).all():
        raise InputError("a paired comparison got values that are not finite: leave out the seeds in which a run failed.")
    return x, y


def _signed_rank_p(difference: Floats) -> float:
    """Two-sided p of Wilcoxon's test, given the sizes of the differences (n,), ties and zeros among them, not all zero: every
    combination of signs of those that are not zero is as likely."""
    if len(difference) > EXACT_UP_TO:
        return float(stats.wilcoxon(difference, zero_method="pratt", method="approx").pvalue)
    ranks = np.rint(2 * stats.rankdata(np.abs(difference))).astype(int)  # doubled, so that those of ties are whole
    positive = int(ranks[difference > 0].sum())
    tails = np.cumsum(_chances(ranks[difference != 0]))
    return min(1.0, 2 * float(tails[min(positive, len(tails) - 1 - positive)]))


def _chances(ranks: NDArray[np.int_]) -> Floats:
    """The probabilities of all sums of the ranks with a positive sign, from 0 on, if every sign is as likely."""
    chances = np.zeros(int(ranks.sum()) + 1)
    chances[0] = 1
    for rank in ranks:
        chances[rank:] = chances[rank:] + chances[:len(chances) - rank]
        chances /= 2
    return chances


def _walsh(difference: Floats) -> Floats:
    """The means of all pairs of differences, each with itself included, (n (n + 1) / 2,)."""
    i, j = np.triu_indices(len(difference))
    return np.asarray((difference[i] + difference[j]) / 2)


def _walsh_rank(n: int, level: float) -> int:
    """How many Walsh averages lie below the interval, plus 1: the largest k with P(T < k) <= (1 - level) / 2."""
    tail, most = (1 - level) / 2, n * (n + 1) // 2
    if n > EXACT_UP_TO:
        mean, deviation = most / 2, math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return max(0, math.floor(mean + deviation * float(stats.norm.ppf(tail)) + 0.5))
    return int(np.searchsorted(np.cumsum(_chances(np.arange(1, n + 1))), tail, side="right"))


def a12(a: ArrayLike, b: ArrayLike) -> float:
    """The probability that a value of ``a`` is above one of ``b``, ties half (Vargha & Delaney, JEBS 2000)."""
    x, y = np.asarray(a, dtype=float)[:, None], np.asarray(b, dtype=float)[None, :]
    return float((x > y).mean() + 0.5 * (x == y).mean())


# --------------------------------------------------------------------------------------------------------- many methods
@dataclass(frozen=True)
class Friedman:
    """Many methods over many data sets (Demšar 2006, §3.2).

    Attributes:
        ranks: mean rank of each method, 1 the best, (k,).
        datasets: N.
        chi2: Friedman's statistic, without a correction for ties.
        p: of the tie-corrected statistic.
        f: Iman and Davenport's statistic, distributed as F with k - 1 and (k - 1)(N - 1) degrees of freedom.
        f_p: of that.
    """

    ranks: Floats
    datasets: int
    chi2: float
    p: float
    f: float
    f_p: float

    @property
    def unit(self) -> float:
        """The standard error of a difference of two mean ranks, sqrt(k (k + 1) / (6 N))."""
        k = len(self.ranks)
        return math.sqrt(k * (k + 1) / (6 * self.datasets))


def friedman(scores: ArrayLike, minimise: bool = True) -> Friedman:
    """Ranks methods on every data set and tests whether they differ.

    Args:
        scores: (datasets, methods).
        minimise: whether small scores are good.

    Raises:
        InputError: fewer than 3 methods or 2 data sets, or a score that is not finite.
    """
    values = np.asarray(scores, dtype=float)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 3 or not np.isfinite(values).all():
        raise InputError(f"Friedman's test needs finite scores of at least 3 methods on 2 data sets, got shape {values.shape}: "
                         "two methods are compared in pairs.")
    n, k = values.shape
    ranks = stats.rankdata(values if minimise else -values, axis=1)
    means = ranks.mean(axis=0)
    chi2 = 12 * n / (k * (k + 1)) * float((means**2).sum() - k * (k + 1) ** 2 / 4)
    constant = (ranks == (k + 1) / 2).all()
    p = 1.0 if constant else float(stats.friedmanchisquare(*values.T).pvalue)
    rest = n * (k - 1) - chi2
    f = math.inf if rest <= 0 else (n - 1) * chi2 / rest
    return Friedman(means, n, chi2, p, f, float(stats.f.sf(f, k - 1, (k - 1) * (n - 1))))


def nemenyi(found: Friedman) -> Floats:
    """p-values of all pairs of methods, (k, k), by the studentised range (Nemenyi 1963)."""
    k = len(found.ranks)
    i, j = np.triu_indices(k, 1)
    p = np.ones((k, k))
    z = np.abs(found.ranks[i] - found.ranks[j]) / found.unit
    p[i, j] = p[j, i] = stats.studentized_range.sf(z * math.sqrt(2), k, np.inf)
    return p


def critical_difference(found: Friedman, alpha: float = 0.05) -> float:
    """The difference of mean ranks from which on Nemenyi's test tells two methods apart."""
    return float(stats.studentized_range.ppf(1 - alpha, len(found.ranks), np.inf)) / math.sqrt(2) * found.unit


def against_control(found: Friedman, control: int = 0) -> tuple[Floats, Floats]:
    """Every other method against one: z (k - 1,) and Holm's adjusted p-values (k - 1,) (Demšar 2006, §3.2.2)."""
    others = np.delete(found.ranks, control)
    z = (others - found.ranks[control]) / found.unit
    return z, holm(2 * stats.norm.sf(np.abs(z)))


def bonferroni_dunn(found: Friedman, alpha: float = 0.05) -> float:
    """The difference of mean ranks to a control from which on Bonferroni and Dunn's test tells a method apart."""
    return float(stats.norm.ppf(1 - alpha / (2 * (len(found.ranks) - 1)))) * found.unit


def holm(p: ArrayLike) -> Floats:
    """Holm's step-down adjustment of p-values (m,), in their order."""
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    adjusted = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    back = np.empty_like(adjusted)
    back[order] = adjusted
    return back


# ------------------------------------------------------------------------------------------------------- runs and tasks
@dataclass(frozen=True)
class Interval:
    """A statistic with its percentile-bootstrap interval."""

    value: float
    low: float
    high: float


def iqm(scores: ArrayLike) -> float:
    """The interquartile mean: the mean of the middle half of all values (Agarwal et al., NeurIPS 2021)."""
    return float(stats.trim_mean(np.asarray(scores, dtype=float).ravel(), 0.25))


def _check_runs(tasks: Sequence[Floats]) -> None:
    if not tasks or min(len(t) for t in tasks) < 2:
        raise InputError("a bootstrap needs at least 2 runs of every task: run more seeds.")


def _ends(drawn: Floats, level: float) -> Floats:
    """The two ends of the interval, (2, ...), of a resampled statistic, (resamples, ...). Between finite values they are
    interpolated; where some are infinite, as of runs that found nothing, an end may be."""
    at = [(1 - level) / 2, (1 + level) / 2]
    return np.quantile(drawn, at, axis=0, method="linear" if np.isfinite(drawn).all() else "inverted_cdf")


def iqm_interval(scores: Sequence[ArrayLike], seed: int = 0, resamples: int = 2000, level: float = 0.95) -> Interval:
    """The interquartile mean over all runs of all tasks, (runs,) each, with its stratified bootstrap interval.

    Raises:
        InputError: fewer than 2 runs of a task.
    """
    tasks = [np.asarray(s, dtype=float) for s in scores]
    _check_runs(tasks)
    rng = seeds.rng(seed, 0, "bootstrap")
    drawn = np.concatenate([t[rng.integers(0, len(t), (resamples, len(t)))] for t in tasks], axis=1)
    low, high = _ends(stats.trim_mean(drawn, 0.25, axis=1), level)
    return Interval(iqm(np.concatenate(tasks)), float(low), float(high))


def iqm_band(curves: ArrayLike, seed: int = 0, resamples: int = 1000, level: float = 0.95) -> tuple[Floats, Floats, Floats]:
    """The interquartile mean of curves (runs, points) at every point and its pointwise bootstrap interval: three (points,).

    Whole runs are resampled. A single run is its own band.
    """
    values = np.asarray(curves, dtype=float)
    draws = seeds.rng(seed, 0, "bootstrap").integers(0, len(values), (resamples, len(values)))
    slices = np.array_split(draws, draws.size * values.shape[1] // 2_000_000 + 1)  # to bound the memory
    means = np.concatenate([stats.trim_mean(values[d], 0.25, axis=1) for d in slices])
    low, high = _ends(means, level)
    return np.asarray(stats.trim_mean(values, 0.25, axis=0)), low, high


def probability_of_improvement(a: Sequence[ArrayLike], b: Sequence[ArrayLike], seed: int = 0, resamples: int = 2000,
                               level: float = 0.95) -> Interval:
    """How probably a run of ``a`` is above one of ``b``, mean over tasks (Agarwal et al. 2021).

    Args:
        a, b: for every task the values (runs,); the two may have different numbers of runs.

    Raises:
        InputError: different numbers of tasks, or fewer than 2 runs of one.
    """
    if len(a) != len(b):
        raise InputError(f"the two methods were run on {len(a)} and {len(b)} tasks: compare them on the same ones.")
    tasks = [(np.asarray(x, dtype=float), np.asarray(y, dtype=float)) for x, y in zip(a, b, strict=True)]
    _check_runs([v for pair in tasks for v in pair])
    rng, draws = seeds.rng(seed, 0, "bootstrap"), np.zeros(resamples)
    for x, y in tasks:
        wins = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
        p, q = (rng.multinomial(len(v), np.full(len(v), 1 / len(v)), resamples) / len(v) for v in (x, y))
        draws += ((p @ wins) * q).sum(axis=1) / len(tasks)  # A12 of a resample is a form in how often each run was drawn
    low, high = _ends(draws, level)
    return Interval(float(np.mean([a12(x, y) for x, y in tasks])), float(low), float(high))
