"""Statistics against published values, other formulas, and what they promise under simulation."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats as reference

from nasopt.analysis import stats
from nasopt.errors import InputError

DEMSAR = np.array([
    [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967], [0.628, 0.661, 0.654, 0.657],
    [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931], [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625],
    [0.775, 0.838, 0.866, 0.875], [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.9751, 0.975], [0.957, 0.978, 0.946, 0.970]])
"""AUC of C4.5 and three variants on 14 data sets (Demšar, JMLR 7, 2006, table 6; its ranks of "voting" tell apart what
it prints as .975 twice)."""


def test_demsars_example() -> None:
    found = stats.friedman(DEMSAR, minimise=False)
    assert found.ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert found.chi2 == pytest.approx(9.2786, abs=1e-4)
    assert found.f == pytest.approx(3.686, abs=5e-3)
    assert found.f_p == pytest.approx(float(reference.f.sf(found.f, 3, 39)))
    assert float(reference.f.ppf(0.95, 3, 39)) == pytest.approx(2.845, abs=1e-3)
    assert found.p == pytest.approx(float(reference.chi2.sf(10.228, 3)), abs=1e-4), "tie-corrected"
    assert stats.critical_difference(found) == pytest.approx(1.25, abs=5e-3)
    assert stats.critical_difference(found, 0.1) == pytest.approx(1.12, abs=5e-3)
    assert stats.bonferroni_dunn(found, 0.1) == pytest.approx(1.04, abs=5e-3)
    z, p = stats.against_control(found)
    assert np.abs(z) == pytest.approx([2.342, 0.512, 2.415], abs=5e-4)
    assert p == pytest.approx([0.0472, 0.608, 0.0472], abs=5e-4)


def test_students_interval_of_a_mean() -> None:
    values = [0.3, 0.1, 0.8, 0.4]
    low, high = reference.t.interval(0.9, 3, np.mean(values), reference.sem(values))
    assert stats.t_interval(values, 0.9) == pytest.approx((low, high))
    assert stats.t_interval(values[:1]) is None


def test_nemenyi_and_its_critical_difference_agree() -> None:
    for seed in range(20):
        found = stats.friedman(np.random.default_rng(seed).normal(size=(9, 4)))
        apart = np.abs(found.ranks[:, None] - found.ranks[None, :]) >= stats.critical_difference(found)
        assert (apart == (stats.nemenyi(found) <= 0.05)).all()


def test_small_scores_are_good_unless_said_otherwise() -> None:
    scores = np.tile([1.0, 2.0, 3.0], (5, 1))
    assert stats.friedman(scores).ranks.tolist() == [1, 2, 3]
    assert stats.friedman(scores, minimise=False).ranks.tolist() == [3, 2, 1]
    assert stats.friedman(scores).f == math.inf
    assert stats.friedman(np.ones((5, 3))).p == 1.0


def test_effect_size_and_interquartile_mean() -> None:
    assert stats.a12([1, 2, 3, 4, 5], [2, 3, 4, 5, 6]) == pytest.approx(0.32)
    assert stats.iqm(range(1, 9)) == 4.5
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_the_smallest_p_of_few_pairs() -> None:
    assert stats.paired(np.arange(1.0, 6), np.zeros(5)).p == pytest.approx(0.0625)
    assert stats.paired(np.arange(1.0, 7), np.zeros(6)).p == pytest.approx(0.03125)
    with pytest.raises(InputError, match="at least 6"):
        _ = stats.paired(np.arange(1.0, 6), np.zeros(5)).significant
    assert stats.paired(np.arange(1.0, 7), np.zeros(6)).significant


@pytest.mark.parametrize("values", [
    [0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 2, 3, 4], [0, 0, 1, 1, -1, 2, 2], [1, 1, 1, 1, 1, 1, -2], [0, 0.5, -0.5, 3]])
def test_p_with_ties_and_zeros_counts_all_signs(values: list[float]) -> None:
    ranks = reference.rankdata(np.abs(values))
    ranks[np.array(values) == 0] = 0
    sums = np.array([np.dot(signs, ranks) for signs in product((0, 1), repeat=len(values))])
    centre, seen = ranks.sum() / 2, ranks[np.array(values) > 0].sum()
    expected = np.mean(np.abs(sums - centre) >= abs(seen - centre) - 1e-9)
    assert stats.paired(values, np.zeros(len(values))).p == pytest.approx(expected, abs=1e-12)


def test_p_of_many_pairs_is_scipys_approximation() -> None:
    x = np.random.default_rng(0).normal(0.2, 1, 60).round(1)
    expected = float(reference.wilcoxon(x, zero_method="pratt", method="approx").pvalue)
    assert stats.paired(x, np.zeros(60)).p == pytest.approx(expected)


@pytest.mark.parametrize("n", [6, 13, 30])
def test_the_interval_is_the_inverted_test(n: int) -> None:
    x = np.random.default_rng(n).normal(0.4, 1, n)
    found = stats.paired(x, np.zeros(n))
    assert found.p == pytest.approx(float(reference.wilcoxon(x, method="exact").pvalue), abs=1e-12)
    assert found.low < found.shift < found.high
    for shift in np.linspace(-1, 2, 200):
        inside = found.low < shift < found.high
        assert inside == (reference.wilcoxon(x - shift, method="exact").pvalue > 0.05)


def test_few_pairs_have_no_interval() -> None:
    found = stats.paired([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert stats.paired([1.0, 2.0], [1.0, 2.0]).p == 1.0


def test_false_positives_and_coverage_under_the_null() -> None:
    rng, n, runs = np.random.default_rng(0), 20, 2000
    found = [stats.paired(rng.normal(size=n), rng.normal(size=n)) for _ in range(runs)]
    assert 0.04 <= np.mean([f.significant for f in found]) <= 0.06
    assert 0.93 <= np.mean([f.low <= 0 <= f.high for f in found]) <= 0.97


def test_the_approximate_rank_joins_the_exact_one() -> None:
    exact = stats._walsh_rank(50, 0.95)
    assert abs(stats._walsh_rank(51, 0.95) - exact) <= 20
    assert stats._walsh_rank(20, 0.95) == 53, "52 is the critical value of the signed-rank table"


def test_the_bootstrap_covers() -> None:
    rng = np.random.default_rng(1)
    hits = []
    for k in range(150):
        tasks = [rng.normal(mean, 1, 25) for mean in (0.0, 1.0)]
        found = stats.iqm_interval(tasks, seed=k, resamples=300)
        hits.append(found.low <= 0.5 <= found.high)
    assert np.mean(hits) >= 0.88


@pytest.mark.parametrize("infinite", [1, 4, 6, 19, 20])
def test_runs_that_found_nothing_make_ends_infinite_and_never_unknown(infinite: int) -> None:
    values = [*np.random.default_rng(0).normal(93, 1, 20 - infinite), *[np.inf] * infinite]
    found = stats.iqm_interval([values])
    assert found.low <= found.value <= found.high and found.low > 90
    assert np.isfinite(found.high) == (infinite < 2) and np.isfinite(found.low) == (infinite < 10)
    _, low, high = stats.iqm_band(np.array(values)[:, None])
    assert not np.isnan([low, high]).any() and low <= high


def test_the_probability_of_improvement_covers() -> None:
    rng, hits = np.random.default_rng(3), []
    for k in range(150):
        a, b = ([rng.normal(mean, 1, 20) for _ in range(2)] for mean in (1.0, 0.0))
        found = stats.probability_of_improvement(a, b, seed=k, resamples=300)
        assert found.value == pytest.approx(np.mean([stats.a12(x, y) for x, y in zip(a, b, strict=True)]))
        hits.append(found.low <= 0.7602 <= found.high)
    assert np.mean(hits) >= 0.88


def test_probability_of_improvement() -> None:
    rng = np.random.default_rng(2)
    found = stats.probability_of_improvement([rng.normal(1, 1, 40)], [rng.normal(0, 1, 30)])
    assert found.low < 0.76 < found.high, "the probability that one normal is above another one lower by 1: .760"
    same = stats.probability_of_improvement([[1.0, 2.0]], [[1.0, 2.0]])
    assert same.value == 0.5


def test_what_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="same seeds"):
        stats.paired([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="1 seed is no comparison"):
        stats.paired([1.0], [1.0])
    with pytest.raises(InputError, match="not finite"):
        stats.paired([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(InputError, match="compared in pairs"):
        stats.friedman(np.ones((5, 2)))
    with pytest.raises(InputError, match="same ones"):
        stats.probability_of_improvement([[1.0, 2.0]], [])
    with pytest.raises(InputError, match="at least 2 runs"):
        stats.iqm_interval([[1.0]])
