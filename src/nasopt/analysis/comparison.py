"""What a comparison of search strategies may say: its design decides the test, and few runs decide nothing.

With k strategies on P problems, all of them on the same n seeds, one measure is tested as follows.

* P < `MIN_PROBLEMS`: Wilcoxon's signed ranks over the seeds, for every pair of strategies and every problem, Holm's correction
  over all of them.
* P >= `MIN_PROBLEMS`, k = 2: Wilcoxon's signed ranks over the problems' medians (Demšar, JMLR 7, 2006, §3.1.3).
* P >= `MIN_PROBLEMS`, k > 2: Friedman's ranks of the problems' medians with Iman and Davenport's F; if it rejects, Nemenyi's test
  for all pairs, or Holm's against a control (§3.2).

The blocks of Friedman's test are the problems, not seeds times problems: what is claimed is claimed of problems, and more seeds
of one problem are not more problems, so that such blocks would be too sure of themselves. Medians, because the measures of a
search are skewed. With a control, only the comparisons with it are made. Every measure is a family of its own.

With several problems the interquartile mean of normalised scores and the probability of improvement are given too (Agarwal et
al., NeurIPS 2021). With fewer than `stats.MIN_PAIRS` seeds nothing is claimed, whatever the p-values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nasopt.analysis import stats
from nasopt.errors import InputError, unknown

Floats: TypeAlias = NDArray[np.float64]
Scores: TypeAlias = Mapping[str, Mapping[str, Floats]]
"""problem -> strategy -> one value a seed (seeds,), the k-th of every strategy from the same seed."""

ALPHA = 0.05
MIN_PROBLEMS = 6
"""Problems below which ranks over problems decide nothing: with 3 strategies on 2 or 3 equal problems Iman and Davenport's F
rejects in 17 and 20 % of the cases instead of 5 (20,000 simulations), from 6 problems on in at most 6 %, and Nemenyi's test after
it in at most 4.3 %."""
EVERYWHERE = "all problems"


@dataclass(frozen=True)
class Measure:
    """What is compared: a key, its name, its unit, and whether small values are good."""

    key: str
    label: str
    unit: str = ""
    minimise: bool = True


@dataclass(frozen=True)
class Pair:
    """Two strategies on one problem (or on `EVERYWHERE`: over the problems' medians).

    Attributes:
        n: pairs of runs, or problems.
        shift, low, high: Hodges-Lehmann estimate of a - b with its 95 % interval, in the measure's unit (over problems: of the
            scores normalised to 0, the worst run, and 1, the best).
        better: Vargha and Delaney's A12, the probability that a run of a is better than one of b, ties half.
        p: two-sided, of Wilcoxon's signed ranks.
        adjusted: after Holm's correction over the family.
        winner: the better one, where the difference may be called significant; else empty.
    """

    problem: str
    a: str
    b: str
    n: int
    shift: float
    low: float
    high: float
    better: float
    p: float
    adjusted: float
    winner: str


@dataclass(frozen=True)
class Ranking:
    """Mean ranks over problems.

    Attributes:
        strategies: best first.
        ranks: their mean ranks, 1 the best.
        f, f_p: Iman and Davenport's statistic and its p-value.
        chi2: Friedman's statistic.
        problems: N.
        difference: Nemenyi's critical difference at 5 %.
        groups: the largest sets of strategies that Nemenyi's test does not tell apart, by their places.
        control: the strategy that the others are compared with; empty: all pairs.
        p: (a, b, p): Nemenyi's p of all pairs, or Holm's of all others (a) against the control (b).
        winners: (a, b): a is significantly better than b.
    """

    strategies: tuple[str, ...]
    ranks: tuple[float, ...]
    f: float
    f_p: float
    chi2: float
    problems: int
    difference: float
    groups: tuple[tuple[int, ...], ...]
    control: str
    p: tuple[tuple[str, str, float], ...]
    winners: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Analysis:
    """One measure of a comparison.

    Attributes:
        scores: what was compared.
        couples: which strategies were compared with which.
        test: what was tested, in one sentence.
        refusal: why nothing is claimed; empty where it may be.
    """

    measure: Measure
    scores: Scores
    couples: tuple[tuple[str, str], ...]
    pairs: tuple[Pair, ...]
    test: str
    refusal: str = ""
    ranking: Ranking | None = None

    @cached_property
    def typical(self) -> dict[str, dict[str, stats.Interval]]:
        """problem -> strategy -> interquartile mean over the seeds, with its bootstrap interval."""
        return {p: {s: stats.iqm_interval([v]) for s, v in row.items()} for p, row in self.scores.items()}

    @cached_property
    def iqm(self) -> dict[str, stats.Interval]:
        """strategy -> interquartile mean of normalised scores over several problems; empty with one."""
        even = normalised(self.measure, self.scores) if len(self.scores) > 1 else {}
        return {s: stats.iqm_interval(_column(even, s)) for s in next(iter(self.scores.values())) if even}

    @cached_property
    def improvement(self) -> tuple[tuple[str, str, stats.Interval], ...]:
        """(a, b, probability that a run of a is better than one of b), mean over several problems; empty with one."""
        even = normalised(self.measure, self.scores) if len(self.scores) > 1 else {}
        return tuple((a, b, stats.probability_of_improvement(_column(even, a), _column(even, b)))
                     for a, b in self.couples if even)

    def verdict(self, pair: Pair) -> str:
        """What may be said of one of the pairs."""
        if pair.winner:
            return f"{pair.winner} is better, significant"
        if self.refusal:
            return "not judged"
        describes = len(self.scores) >= MIN_PROBLEMS and pair.problem != EVERYWHERE
        return "describes only" if describes else "no significant difference"

    def findings(self) -> list[str]:
        """Every claim with its numbers, or why there is none, in sentences."""
        by = f"By {self.measure.label}"
        if self.refusal or not self.claims:
            return [f"{by}: {self.refusal or 'no significant difference.' if self.pairs else self.test}"]
        if self.ranking and self.ranking.winners:
            place = dict(zip(self.ranking.strategies, self.ranking.ranks, strict=True))
            values = {frozenset((a, b)): p for a, b, p in self.ranking.p}
            return [f"{by}, {a} (mean rank {place[a]:.2f}) is significantly better than {b} ({place[b]:.2f}) over "
                    f"{self.ranking.problems} problems, {p_equals(values[frozenset((a, b))])}."
                    for a, b in self.ranking.winners]
        return [f"{by}, {p.winner} is significantly better than {p.b if p.winner == p.a else p.a} on {p.problem}: "
                f"{self.effect(p)}." for p in self.pairs if p.winner]

    def effect(self, pair: Pair) -> str:
        """``a - b = -0.21 % [-0.35, -0.08], A12 0.83, p = 0.0012``, the p-value after the correction."""
        unit = f" {self.measure.unit}" if self.measure.unit and pair.problem != EVERYWHERE else ""
        return (f"{pair.a} - {pair.b} = {pair.shift:.3g}{unit} [{pair.low:.3g}, {pair.high:.3g}], A12 {pair.better:.2f}, "
                f"{p_equals(pair.adjusted)}")

    @property
    def claims(self) -> list[tuple[str, str, str]]:
        """(better strategy, worse strategy, problem) of every significant difference."""
        ranked = [(a, b, EVERYWHERE) for a, b in self.ranking.winners] if self.ranking else []
        return ranked + [(p.winner, p.b if p.winner == p.a else p.a, p.problem) for p in self.pairs if p.winner]


def p_text(p: float) -> str:
    """A p-value in two digits."""
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"


def p_equals(p: float) -> str:
    """``p = 0.012`` or ``p < 0.0001``."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def analyse(measure: Measure, scores: Scores, control: str = "") -> Analysis:
    """Compares strategies by one measure with the test that the design asks for.

    Args:
        scores: of every problem and strategy, all strategies on the same seeds.
        control: compare the others with this one only.

    Raises:
        InputError: fewer than 2 seeds, seeds or strategies that differ between problems' cells, an unknown control.
    """
    strategies = _strategies(scores)
    if control and control not in strategies:
        raise unknown("control", control, strategies)
    couples = [(a, control) for a in strategies if a != control] if control else list(combinations(strategies, 2))
    seeds = min(len(v) for row in scores.values() for v in row.values())
    many = len(scores) >= MIN_PROBLEMS
    if not couples:
        return Analysis(measure, scores, (), (), "One strategy: nothing to compare.")
    refusal = _refusal(seeds)
    by_problem = _by_problem(measure, scores, couples, claim=not (refusal or many))
    over = (_over_problems(measure, scores, couples[0], claim=not refusal),) if many and len(strategies) == 2 else ()
    ranking = rank(measure, scores, control, claim=not refusal) if many and len(strategies) > 2 else None
    test = _test(len(scores), len(strategies), len(by_problem), control)
    return Analysis(measure, scores, tuple(couples), (*over, *by_problem), test, refusal, ranking)


def _column(scores: Scores, strategy: str) -> list[Floats]:
    """A strategy's scores on every problem."""
    return [row[strategy] for row in scores.values()]


def _strategies(scores: Scores) -> list[str]:
    """The strategies, which must be the same on every problem, with equally many seeds on each."""
    first = list(next(iter(scores.values())))
    for problem, row in scores.items():
        if set(row) != set(first):
            odd = min(set(row) ^ set(first))
            raise InputError(f"strategy {odd!r} was not run on every problem ({problem} among others differs): run it on all of "
                             "them, or compare the problems one at a time.")
        if len({len(v) for v in row.values()}) > 1:
            raise InputError(f"the strategies have different numbers of runs on {problem}: run all on the same seeds.")
        if min(len(v) for v in row.values()) < 2:
            raise InputError(f"one seed on {problem} is no comparison of strategies: run at least 2, {stats.MIN_PAIRS} for a "
                             "test, 20 for a claim.")
    return first


def _refusal(seeds: int) -> str:
    """Why nothing may be claimed of so few seeds; empty if something may."""
    if seeds >= stats.MIN_PAIRS:
        return ""
    return f"{seeds} seeds decide nothing: run at least {stats.MIN_PAIRS}, 20 for a claim."


def _test(problems: int, strategies: int, tests: int, control: str) -> str:
    """What `analyse` does with such a design, in words."""
    if problems < MIN_PROBLEMS:
        corrected = f", Holm's correction over {tests} comparisons" if tests > 1 else ""
        return f"Wilcoxon's signed-rank test over paired seeds{corrected}."
    if strategies == 2:
        return f"Wilcoxon's signed-rank test over the medians of {problems} problems; the rows of single problems only describe."
    after = f"Holm's test against {control}" if control else "Nemenyi's test of all pairs"
    return (f"Friedman's ranks of the medians of {problems} problems, Iman and Davenport's F, and where it rejects {after}; the "
            "rows of single problems only describe.")


# ---------------------------------------------------------------------------------------------------------------- pairs
def _by_problem(measure: Measure, scores: Scores, couples: Sequence[tuple[str, str]], claim: bool) -> list[Pair]:
    """Every couple on every problem, with Holm's correction over all of them."""
    cells = [(p, a, b, row[a], row[b]) for p, row in scores.items() for a, b in couples]
    found = [stats.paired(x, y) for *_, x, y in cells]
    adjusted = stats.holm([f.p for f in found])
    return [_pair(measure, (p, a, b), f, float(q), claim)
            for (p, a, b, _, _), f, q in zip(cells, found, adjusted, strict=True)]


def _over_problems(measure: Measure, scores: Scores, couple: tuple[str, str], claim: bool) -> Pair:
    """Two strategies over the problems' medians of normalised scores, of which more is better."""
    even = normalised(measure, scores)
    x, y = ([float(np.median(v)) for v in _column(even, s)] for s in couple)
    found = stats.paired(x, y)
    return _pair(Measure("", "", minimise=False), (EVERYWHERE, *couple), found, found.p, claim)


def _pair(measure: Measure, names: tuple[str, str, str], found: stats.Paired, adjusted: float, claim: bool) -> Pair:
    _, a, b = names
    a_is_better = (found.shift < 0) == measure.minimise
    winner = (a if a_is_better else b) if claim and adjusted < ALPHA and found.shift != 0 else ""
    return Pair(*names, found.n, found.shift, found.low, found.high, 1 - found.a12 if measure.minimise else found.a12,
                found.p, adjusted, winner)


# ------------------------------------------------------------------------------------------------------- many problems
def rank(measure: Measure, scores: Scores, control: str = "", claim: bool = True) -> Ranking:
    """Ranks strategies by their medians on every problem.

    Raises:
        InputError: fewer than 3 strategies or 2 problems.
    """
    names = list(next(iter(scores.values())))
    medians = np.array([[float(np.median(row[s])) for s in names] for row in scores.values()])
    order = np.argsort(stats.friedman(medians, measure.minimise).ranks, kind="stable")
    found = stats.friedman(medians[:, order], measure.minimise)
    names = [names[k] for k in order]
    difference = stats.critical_difference(found)
    p = _ranked_pairs(names, found, control)
    place = {name: found.ranks[k] for k, name in enumerate(names)}
    told = [(a, b) for a, b, value in p if claim and found.f_p < ALPHA and value <= ALPHA]
    winners = tuple((a, b) if place[a] < place[b] else (b, a) for a, b in told)
    return Ranking(tuple(names), tuple(map(float, found.ranks)), found.f, found.f_p, found.chi2, found.datasets, difference,
                   groups(found.ranks, difference), control, tuple(p), winners)


def _ranked_pairs(names: Sequence[str], found: stats.Friedman, control: str) -> list[tuple[str, str, float]]:
    if control:
        place = names.index(control)
        others = [name for name in names if name != control]
        return [(a, control, float(q)) for a, q in zip(others, stats.against_control(found, place)[1], strict=True)]
    matrix = stats.nemenyi(found)
    return [(names[i], names[j], float(matrix[i, j])) for i, j in combinations(range(len(names)), 2)]


def groups(ranks: Sequence[float] | Floats, difference: float) -> tuple[tuple[int, ...], ...]:
    """The largest sets of methods, at least two each, whose mean ranks lie closer together than the critical difference.

    Args:
        ranks: ascending, (k,).
    """
    runs = [tuple(j for j in range(i, len(ranks)) if ranks[j] - ranks[i] < difference) for i in range(len(ranks))]
    return tuple(r for r in runs if len(r) > 1 and not any(set(r) < set(other) for other in runs))


def normalised(measure: Measure, scores: Scores) -> dict[str, dict[str, Floats]]:
    """Scores with 0 for the worst and 1 for the best of all runs on a problem; 1 where all are equal."""
    out = {}
    for problem, row in scores.items():
        losses = {s: np.asarray(v, dtype=float) * (1 if measure.minimise else -1) for s, v in row.items()}
        everything = np.concatenate(list(losses.values()))
        best, span = everything.min(), np.ptp(everything) or 1.0
        out[problem] = {s: np.asarray(1 - (v - best) / span) for s, v in losses.items()}
    return out


# ------------------------------------------------------------------------------------------------- what a page is made of
@dataclass(frozen=True)
class Course:
    """Interquartile mean of the performance after each of some numbers of queries, with its bootstrap band; all (points,)."""

    queries: Sequence[int]
    value: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Attained:
    """Empirical attainment of two objectives: ``surfaces`` are share of runs -> points (n, 2) that this share attains."""

    objectives: tuple[str, str]
    surfaces: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
    front: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Subject:
    """One problem of a comparison.

    Attributes:
        name: table and objectives.
        facts: (name, value) of what was searched and how.
        performance: what the courses show.
        courses: strategy -> course.
        attained: for two objectives.
        found: strategy -> (median queries to the optimum, share of runs that found it), for one objective.
        bound: the best possible performance, where it is known.
    """

    name: str
    facts: tuple[tuple[str, str], ...]
    performance: Measure
    courses: Mapping[str, Course]
    attained: Attained | None
    found: Mapping[str, tuple[float, float]]
    bound: float | None


@dataclass(frozen=True)
class Equivalence:
    """Bayesian signed-rank test: the probabilities that a is better than b by more than ``rope``, that they are practically
    equivalent, and that b is better by more."""

    measure: Measure
    problem: str
    a: str
    b: str
    rope: float
    better: float
    equivalent: float
    worse: float


@dataclass(frozen=True)
class Comparison:
    """Everything that is said about recorded runs.

    Attributes:
        seeds: the seeds of each problem.
        analyses: the first one is of the measure that was chosen in advance: anytime performance.
        checklist: (question, answer).
        origin: (name, value): machine, versions, commands.
    """

    strategies: tuple[str, ...]
    seeds: Mapping[str, Sequence[int]]
    subjects: tuple[Subject, ...]
    analyses: tuple[Analysis, ...]
    equivalences: tuple[Equivalence, ...]
    checklist: tuple[tuple[str, str], ...]
    origin: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not finite becomes None."""
        plain: dict[str, Any] = _plain(asdict(self))
        for entry, analysis in zip(plain["analyses"], self.analyses, strict=True):
            entry |= _plain({"typical": {p: {s: asdict(i) for s, i in row.items()} for p, row in analysis.typical.items()},
                             "iqm": {s: asdict(i) for s, i in analysis.iqm.items()},
                             "improvement": [(a, b, asdict(i)) for a, b, i in analysis.improvement],
                             "findings": analysis.findings()})
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
