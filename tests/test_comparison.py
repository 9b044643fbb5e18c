"""Which test a comparison gets, what it may claim, and how often it is wrong."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from nasopt.analysis import stats
from nasopt.analysis.comparison import (
    EVERYWHERE,
    MIN_PROBLEMS,
    Analysis,
    Measure,
    analyse,
    groups,
    normalised,
    rank,
)
from nasopt.errors import InputError
from nasopt.report import ranks
from test_stats import DEMSAR

AUC = Measure("auc", "AUC", minimise=False)
LOSS = Measure("loss", "loss", "%")
NAMES = ("C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf")
DEMSAR_SCORES = {f"data {k}": {name: np.array([v]) for name, v in zip(NAMES, row, strict=True)} for k, row in enumerate(DEMSAR)}


def drawn(seed: int, problems: int, strategies: int, seeds: int, shift: float = 0.0) -> dict[str, dict[str, np.ndarray]]:
    """Normal scores, those of the first strategy lower by ``shift``; every problem has its own level."""
    rng = np.random.default_rng(seed)
    return {f"problem {p}": {f"s{k}": rng.normal(p - (shift if k == 0 else 0), 1, seeds) for k in range(strategies)}
            for p in range(problems)}


# ------------------------------------------------------------------------------------------------------ reference values
def test_demsars_table_through_the_ranking() -> None:
    found = rank(AUC, DEMSAR_SCORES)
    assert found.strategies == ("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5")
    assert found.ranks == pytest.approx([1.964, 2.000, 2.893, 3.143], abs=5e-4)
    assert found.chi2 == pytest.approx(9.2786, abs=1e-4)
    assert found.f == pytest.approx(3.686, abs=5e-3)
    assert found.difference == pytest.approx(1.25, abs=5e-3)
    assert found.f_p < 0.05
    assert found.groups == ((0, 1, 2, 3),), "the largest difference is 1.179"
    assert found.winners == ()
    assert len(found.p) == 6


def test_demsars_table_against_a_control() -> None:
    found = rank(AUC, DEMSAR_SCORES, control="C4.5")
    assert {a: p for a, b, p in found.p if b == "C4.5"} == pytest.approx(
        {"C4.5+m": 0.0472, "C4.5+cf": 0.608, "C4.5+m+cf": 0.0472}, abs=5e-4)
    assert set(found.winners) == {("C4.5+m", "C4.5"), ("C4.5+m+cf", "C4.5")}
    assert rank(AUC, DEMSAR_SCORES, "C4.5", claim=False).winners == ()


def test_nemenyi_equals_scikit_posthocs() -> None:
    posthocs = pytest.importorskip("scikit_posthocs", reason="scikit-posthocs is not installed")
    for seed in range(5):
        scores = drawn(seed, 9, 5, 3, shift=1.0)
        found = rank(LOSS, scores)
        medians = np.array([[np.median(row[s]) for s in found.strategies] for row in scores.values()])
        theirs = np.asarray(posthocs.posthoc_nemenyi_friedman(medians))
        for a, b, p in found.p:
            assert p == pytest.approx(theirs[found.strategies.index(a), found.strategies.index(b)], abs=1e-6)


def test_what_the_critical_difference_joins() -> None:
    assert groups([1.0, 1.4, 2.9, 2.95, 5.0], 1.6) == ((0, 1), (1, 2, 3))
    assert groups([1.0, 2.0, 3.0], 0.5) == ()
    assert groups([1.0, 2.0, 3.0], 1.0) == (), "a difference as large as the critical one tells apart"
    assert groups([1.0, 2.0, 3.0], 9.0) == ((0, 1, 2),)


def test_the_diagram_shows_the_numbers() -> None:
    found = rank(AUC, DEMSAR_SCORES)
    drawing = ranks.svg(found)
    assert ranks.position(found, 1) == ranks.LEFT
    assert ranks.position(found, 4) == ranks.LEFT + ranks.WIDTH
    for name, value in zip(found.strategies, found.ranks, strict=True):
        assert f"{name} {value:.2f}" in drawing
        assert f'M{ranks.position(found, value):g} {ranks.TOP}' in drawing
    ends = [ranks.position(found, found.ranks[k]) for k in (0, 3)]
    assert f'class="same" d="M{ends[0] - 4:g} 70H{ends[1] + 4:g}"' in drawing
    assert f"H{ranks.position(found, 1 + found.difference):g}" in drawing
    assert "critical difference 1.25" in drawing
    against = ranks.svg(rank(AUC, DEMSAR_SCORES, "C4.5"))
    assert "critical difference" not in against
    assert 'class="same"' not in against
    assert "C4.5 (control)" in against


def test_normalised_scores() -> None:
    even = normalised(LOSS, {"p": {"a": np.array([1.0, 3.0]), "b": np.array([2.0, 5.0])},
                             "q": {"a": np.ones(2), "b": np.ones(2)}})
    assert even["p"]["a"].tolist() == [1.0, 0.5]
    assert even["p"]["b"].tolist() == [0.75, 0.0]
    assert even["q"]["a"].tolist() == [1.0, 1.0]
    assert normalised(AUC, {"p": {"a": np.array([1.0, 3.0])}})["p"]["a"].tolist() == [0.0, 1.0]


# ---------------------------------------------------------------------------------------------------- the design decides
def test_two_strategies_on_one_problem() -> None:
    scores = drawn(3, 1, 2, 20, shift=1.0)
    found = analyse(LOSS, scores)
    a, b = scores["problem 0"].values()
    expected = stats.paired(a, b)
    (pair,) = found.pairs
    assert (pair.shift, pair.low, pair.high, pair.p, pair.adjusted) == (
        expected.shift, expected.low, expected.high, expected.p, expected.p)
    assert pair.better == pytest.approx(1 - expected.a12)
    assert pair.better > 0.5
    assert found.claims == [("s0", "s1", "problem 0")]
    assert found.ranking is None
    assert found.verdict(pair) == "s0 is better, significant"
    assert "Wilcoxon" in found.test
    turned = analyse(AUC, scores)
    assert turned.claims == [("s1", "s0", "problem 0")]
    assert turned.pairs[0].better == pytest.approx(expected.a12)


def test_more_strategies_on_few_problems_are_corrected_over_all_of_them() -> None:
    scores = drawn(4, 2, 3, 12, shift=1.0)
    found = analyse(LOSS, scores)
    assert [(p.problem, p.a, p.b) for p in found.pairs] == [
        (p, a, b) for p in scores for a, b in combinations(("s0", "s1", "s2"), 2)]
    assert [p.adjusted for p in found.pairs] == pytest.approx(stats.holm([p.p for p in found.pairs]))
    assert "over 6 comparisons" in found.test
    against = analyse(LOSS, scores, control="s1")
    assert [(p.a, p.b) for p in against.pairs] == [("s0", "s1"), ("s2", "s1")] * 2
    assert [p.adjusted for p in against.pairs] == pytest.approx(stats.holm([p.p for p in against.pairs]))


def test_many_problems_are_ranked_and_single_ones_only_describe() -> None:
    scores = drawn(5, 12, 4, 8, shift=3.0)
    found = analyse(LOSS, scores)
    assert found.ranking is not None
    assert found.ranking.problems == 12
    assert ("s0", "s1") in found.ranking.winners
    assert all(p.winner == "" for p in found.pairs)
    assert found.verdict(found.pairs[0]) == "describes only"
    assert {c[2] for c in found.claims} == {EVERYWHERE}
    assert "Nemenyi" in found.test
    assert "Holm's test against s2" in analyse(LOSS, scores, "s2").test
    assert "mean rank 1.00" in found.findings()[0]
    fewer = analyse(LOSS, {p: row for k, (p, row) in enumerate(scores.items()) if k < MIN_PROBLEMS - 1})
    assert fewer.ranking is None


def test_two_strategies_on_many_problems() -> None:
    scores = drawn(6, 8, 2, 7, shift=2.0)
    found = analyse(LOSS, scores)
    even = normalised(LOSS, scores)
    expected = stats.paired(*([float(np.median(row[s])) for row in even.values()] for s in ("s0", "s1")))
    assert (found.pairs[0].problem, found.pairs[0].n) == (EVERYWHERE, 8)
    assert found.pairs[0].p == expected.p
    assert found.claims == [("s0", "s1", EVERYWHERE)]
    assert found.improvement[0][2].low > 0.5
    assert found.iqm["s0"].low > found.iqm["s1"].high


def test_nothing_is_claimed_of_few_seeds() -> None:
    for problems, strategies in ((1, 2), (1, 3), (8, 2), (8, 3)):
        found = analyse(LOSS, drawn(7, problems, strategies, 5, shift=50.0))
        assert found.claims == []
        assert found.refusal == "5 seeds decide nothing: run at least 6, 20 for a claim."
        said = " ".join([*found.findings(), *map(found.verdict, found.pairs)])
        assert "significant" not in said
        assert "decide nothing" in said
    assert analyse(LOSS, drawn(7, 1, 2, 6, shift=50.0)).claims


def test_one_strategy_is_described() -> None:
    found = analyse(LOSS, drawn(8, 1, 1, 9))
    assert found.pairs == ()
    low, value, high = (getattr(found.typical["problem 0"]["s0"], k) for k in ("low", "value", "high"))
    assert low < value < high
    assert value == pytest.approx(stats.iqm(found.scores["problem 0"]["s0"]))


def test_what_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="unknown control 's9'"):
        analyse(LOSS, drawn(0, 1, 2, 6), control="s9")
    with pytest.raises(InputError, match="one seed on problem 0 is no comparison"):
        analyse(LOSS, drawn(0, 1, 2, 1))
    scores = drawn(0, 2, 2, 6)
    with pytest.raises(InputError, match="'s1' was not run on every problem"):
        analyse(LOSS, {**scores, "problem 1": {"s0": np.ones(6)}})
    with pytest.raises(InputError, match="different numbers of runs"):
        analyse(LOSS, {"p": {"a": np.ones(6), "b": np.ones(7)}})


# ----------------------------------------------------------------------------------------------------------- error rates
@pytest.mark.slow
@pytest.mark.parametrize(("problems", "strategies", "seeds", "runs"), [(1, 2, 20, 2000), (1, 4, 10, 500), (3, 2, 10, 500)])
def test_false_claims_are_rare(problems: int, strategies: int, seeds: int, runs: int) -> None:
    """Of identical strategies 5 % (±1 % over 2,000 simulations) of single tests claim a difference; corrected families of tests
    do at most that (with a margin of two standard errors for 500)."""
    rate = np.mean([bool(analyse(LOSS, drawn(k, problems, strategies, seeds)).claims) for k in range(runs)])
    assert rate <= (0.06 if runs == 2000 else 0.07)
    assert rate >= (0.04 if runs == 2000 else 0.005), "a test that never claims anything is none"


def test_false_claims_over_many_problems_are_rare() -> None:
    found = [rank(LOSS, drawn(k, 10, 4, 1)) for k in range(400)]
    assert 0.005 <= np.mean([bool(r.winners) for r in found]) <= 0.07
    stopped = [r for r in found if r.f_p >= 0.05 and min(p for *_, p in r.p) <= 0.05]
    assert stopped, "there are cases in which Nemenyi's test alone would tell two apart"
    assert all(r.winners == () for r in stopped)


@pytest.mark.slow
def test_the_interval_of_the_shift_covers() -> None:
    def covered(found: Analysis) -> bool:
        return found.pairs[0].low <= -0.5 <= found.pairs[0].high

    assert 0.93 <= np.mean([covered(analyse(LOSS, drawn(k, 1, 2, 15, shift=0.5))) for k in range(2000)]) <= 0.97


def test_the_band_is_pointwise_the_bootstrap_of_the_interquartile_mean() -> None:
    curves = np.cumsum(np.random.default_rng(0).random((9, 4)), axis=1)
    value, low, high = stats.iqm_band(curves, resamples=4000)
    for k in range(4):
        one = stats.iqm_interval([curves[:, k]])
        assert value[k] == pytest.approx(one.value)
        assert (low[k], high[k]) == pytest.approx((one.low, one.high), abs=0.05)
    assert [v.tolist() for v in stats.iqm_band(curves[:1])] == [curves[0].tolist()] * 3


# --------------------------------------------------------------------------------------------------------- equivalence
def posterior(difference: np.ndarray, rope: float, samples: int, seed: int) -> np.ndarray:
    """Benavoli et al. 2014 written down: Dirichlet weights on the differences and on a pseudo-observation of 0 with strength 1/2;
    the shares of pairs of differences whose sum is below, within and above twice the rope."""
    z = np.concatenate([[0.0], difference])
    weights = np.random.default_rng(seed).dirichlet([0.5] + [1.0] * len(difference), samples)
    sums = z[:, None] + z[None, :]
    kinds = [sums < -2 * rope, np.abs(sums) <= 2 * rope, sums > 2 * rope]
    winners = np.argmax([np.einsum("ni,nj,ij->n", weights, weights, k.astype(float)) for k in kinds], axis=0)
    return np.bincount(winners, minlength=3) / samples


def test_the_bayesian_test_equals_its_definition() -> None:
    pytest.importorskip("baycomp", reason="baycomp is not installed")
    from nasopt.analysis.bayes import signed_rank

    rng = np.random.default_rng(2)
    a, b = rng.normal(0.3, 1, 12), rng.normal(0, 1, 12)
    above, equal, below = signed_rank(a, b, 0.25)
    assert above + equal + below == pytest.approx(1)
    assert (below, equal, above) == pytest.approx(posterior(a - b, 0.25, 10_000, 1), abs=0.03)
    assert (above, equal, below) == signed_rank(a, b, 0.25), "the same seed gives the same answer"
    assert signed_rank(a, b, 100.0)[1] == 1.0
    assert math.isclose(signed_rank(a + 50, b, 0.25)[0], 1.0)
