"""Recorded runs as a comparison: reads what `nasopt bench --json` wrote and computes what may be said about it.

What is measured of a run, always against the true optimum or front that the record holds:

* one objective: the regret (distance to the optimum, in the objective's unit), its mean over all queries (anytime performance,
  the area under the curve) and its value at the end; the queries to the optimum;
* several: the hypervolume as a share of the true front's, its mean over all queries and its value at the end; IGD+ and the
  additive epsilon at the end, on objectives scaled to the range of the true front.

Anytime performance is the measure chosen in advance; the others follow it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

from nasopt import bench
from nasopt import space as spaces
from nasopt.analysis import stats
from nasopt.analysis.comparison import (
    Attained,
    Comparison,
    Course,
    Equivalence,
    Measure,
    Subject,
    analyse,
)
from nasopt.analysis.hypervolume import bounds, normalise, reference_point
from nasopt.errors import InputError
from nasopt.run.search import EXHAUSTED
from nasopt.trial import Problem, problem_from_json, problem_to_json

Floats = NDArray[np.float64]

POINTS = 150
"""Queries at which a course is drawn, at most."""
SHARES = {"25 % of the runs": 25, "50 % of the runs": 50, "75 % of the runs": 75}
UNKNOWN = "not known"


# -------------------------------------------------------------------------------------------------------------- records
@dataclass(frozen=True)
class Record:
    """Runs of one problem.

    Attributes:
        name: of the problem: table, objectives and constraints.
        source: where it was read.
        queries: the budget of every run.
        front: the true one, (points, objectives), to be minimised.
        runs: strategy -> seed -> run, as `bench.one` returned it.
        origin: the rest of the record.
    """

    name: str
    source: str
    problem: Problem
    queries: int
    front: Floats
    runs: Mapping[str, Mapping[int, Mapping[str, Any]]]
    origin: Mapping[str, Any]


def read(path: str | Path) -> Record:
    """Reads what ``nasopt bench --json`` wrote.

    Raises:
        InputError: no such file, no record, or a damaged one.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as problem:
        raise InputError(f"record {str(path)!r} cannot be read ({problem.strerror}): name a file that nasopt bench --json "
                         "wrote.") from None
    except ValueError as problem:
        raise InputError(f"record {str(path)!r} is damaged or no JSON ({problem}): write it again with nasopt bench "
                         "--json.") from None
    return parse(data, str(path))


def parse(data: Any, source: str) -> Record:
    """A record from its JSON values.

    Args:
        source: what errors call it.

    Raises:
        InputError: it is not one, or its runs do not belong together.
    """
    try:
        problem = problem_from_json(data["problem"])
        front = np.array(data["front"], dtype=float).reshape(-1, len(problem.objectives))
        runs: dict[str, dict[int, Mapping[str, Any]]] = {}
        for run in data["runs"]:
            _check_run(run, problem, int(data["queries"]), source)
            own = runs.setdefault(str(run["strategy"]), {})
            if int(run["seed"]) in own:
                raise InputError(f"{source} holds two runs of {run['strategy']!r} with seed {run['seed']}: keep one of them.")
            own[int(run["seed"])] = run
        bad = not runs or not len(front) or not np.isfinite(front).all()
        name = _name(str(data["table"]), problem)
        queries = int(data["queries"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as fault:
        if isinstance(fault, InputError):
            raise
        raise InputError(f"{source} is no record of runs, or is damaged ({type(fault).__name__}: {fault}): write it again with "
                         "nasopt bench --json.") from None
    if bad:
        raise InputError(f"{source} holds no runs or no true front: write it again with nasopt bench --json.")
    return Record(name, source, problem, queries, front, runs, {k: v for k, v in data.items() if k != "runs"})


def _name(table: str, problem: Problem) -> str:
    """``nb201: test200_c10, raspi4_latency; raspi4_latency <= 20``."""
    bounds_ = [str(c) for c in problem.constraints]
    return f"{table}: {', '.join(o.name for o in problem.objectives)}{'; ' if bounds_ else ''}{', '.join(bounds_)}"


def _check_run(run: Mapping[str, Any], problem: Problem, queries: int, source: str) -> None:
    """Raises InputError unless the run is one of this problem that used its budget."""
    who = f"the run of {run['strategy']!r} with seed {run['seed']} in {source}"
    metrics = [t["metrics"] for t in run["trials"]]
    for number in (*(t["fidelity"] for t in run["trials"]), *(value for row in metrics for value in row.values())):
        float(number)
    known = {name for row in metrics for name in row}
    needed = {o.name for o in problem.objectives} | {c.name for c in problem.constraints}
    if (known or not metrics) and needed - known:  # a run all of whose trials failed has found nothing
        raise InputError(f"{who} never measured {min(needed - known)!r}, so it is of another problem: keep the runs of one "
                         "problem in one record.")
    if len(metrics) > queries or (len(metrics) < queries and run["stopped"] not in (EXHAUSTED, bench.FOUND)):
        raise InputError(f"{who} has {len(metrics)} queries instead of {queries}: compare runs of one budget, finished ones.")


def merge(records: Sequence[Record]) -> list[Record]:
    """Records of one problem joined, in the order of their first files.

    Raises:
        InputError: they differ in the problem, its front or the budget, or hold a run twice.
    """
    joined: dict[str, Record] = {}
    for new in records:
        old = joined.setdefault(new.name, new)
        if old is not new:
            joined[new.name] = _join(old, new)
    return list(joined.values())


def _join(old: Record, new: Record) -> Record:
    where = f"{old.source} and {new.source}"
    if problem_to_json(old.problem) != problem_to_json(new.problem) or not np.array_equal(old.front, new.front):
        raise InputError(f"{where} call different problems {old.name!r}: compare runs of one table in one version.")
    if old.queries != new.queries:
        raise InputError(f"{where} hold runs of {old.queries} and of {new.queries} queries on {old.name}: compare runs of one "
                         "budget.")
    runs = {name: dict(own) for name, own in old.runs.items()}
    for name, own in new.runs.items():
        if twice := sorted(set(own) & set(runs.get(name, {}))):
            raise InputError(f"{where} both hold a run of {name!r} with seed {twice[0]} on {old.name}: give each run once.")
        runs.setdefault(name, {}).update(own)
    origin = {**old.origin, "command": f"{old.origin.get('command', '')}\n{new.origin.get('command', '')}".strip(),
              "seconds": _sum(old.origin.get("seconds"), new.origin.get("seconds")),
              "machine": _same(old.origin.get("machine"), new.origin.get("machine")),
              "versions": _same(old.origin.get("versions"), new.origin.get("versions"))}
    return Record(old.name, where, old.problem, old.queries, old.front, runs, origin)


def _sum(a: Any, b: Any) -> float | None:
    return a + b if isinstance(a, int | float) and isinstance(b, int | float) else None


def _same(a: Any, b: Any) -> Any:
    """The common value, or None where they differ."""
    return a if a == b else None


def _seeds(record: Record) -> list[int]:
    """The seeds, which must be the same for every strategy.

    Raises:
        InputError: they are not, or there is but one.
    """
    (first, own), *others = record.runs.items()
    for name, theirs in others:
        if odd := sorted(set(own) ^ set(theirs)):
            raise InputError(f"the runs of {first!r} and {name!r} on {record.name} are not paired (seed {odd[0]} is missing in "
                             "one): run both on the same seeds.")
    if len(own) < 2:
        raise InputError(f"one seed of {record.name} is no comparison of strategies: run at least 2, {stats.MIN_PAIRS} for a "
                         "test, 20 for a claim.")
    return sorted(own)


# ------------------------------------------------------------------------------------------------------------- measures
@dataclass(frozen=True)
class _Results:
    """What the runs of a record reached: strategy -> performance after every query (seeds, queries), objectives of every trial
    (seeds; trials, objectives), to be minimised, and the queries to the optimum (seeds,)."""

    record: Record
    seeds: Sequence[int]
    performance: Mapping[str, Floats]
    values: Mapping[str, Sequence[Floats]]
    needed: Mapping[str, Floats]

    @property
    def single(self) -> bool:
        return len(self.record.problem.objectives) == 1


def _results(record: Record) -> _Results:
    seeds, problem, front = _seeds(record), record.problem, record.front
    runs = {name: [own[s] for s in seeds] for name, own in record.runs.items()}
    curves = {name: np.array([_full(bench.quality(problem, r, front), record.queries) for r in own])
              for name, own in runs.items()}
    if len(problem.objectives) == 1:
        everything = np.concatenate([c.ravel() for c in curves.values()])
        if not np.isfinite(everything).any():
            raise InputError(f"no run of {record.name} found a result of full fidelity that meets all constraints: give more "
                             "queries.")
        worst = everything[np.isfinite(everything)].max()  # what a run counts as before it found anything
        curves = {name: np.where(np.isfinite(c), c, worst) for name, c in curves.items()}
    needed = {name: np.array([bench.queries_to_optimum(problem, r, front) for r in own]) for name, own in runs.items()}
    return _Results(record, seeds, curves, {name: [bench.values(problem, r) for r in own] for name, own in runs.items()}, needed)


def _full(curve: Floats, queries: int) -> Floats:
    """The curve with its last value carried on to the budget: the space was exhausted, or the optimum found."""
    return np.concatenate([curve, np.full(queries - len(curve), curve[-1])])


Measured = tuple[Measure, Callable[[_Results, str], Floats]]


def _measures(results: Sequence[_Results]) -> list[Measured]:
    """What the runs are compared by, the measure chosen in advance first: (measure, (results, strategy) -> (seeds,))."""
    unit = _unit([r.record for r in results])
    if not results[0].single:
        return [(Measure("anytime", "hypervolume, mean over all queries", unit, minimise=False),
                 lambda r, s: np.asarray(r.performance[s].mean(axis=1))),
                (Measure("final", "hypervolume after all queries", unit, minimise=False), lambda r, s: r.performance[s][:, -1]),
                (Measure("igd_plus", "IGD+ after all queries"), lambda r, s: _indicator(moocore.igd_plus, r, s)),
                (Measure("epsilon", "additive epsilon after all queries"),
                 lambda r, s: _indicator(moocore.epsilon_additive, r, s))]
    measures: list[Measured] = [
        (Measure("anytime", "regret, mean over all queries", unit),
         lambda r, s: np.asarray((r.performance[s] - r.record.front[0, 0]).mean(axis=1))),
        (Measure("final", "regret after all queries", unit), lambda r, s: r.performance[s][:, -1] - r.record.front[0, 0])]
    if any(np.isfinite(n).any() for r in results for n in r.needed.values()):
        measures.append((Measure("queries", "queries to the optimum", "queries"),
                         lambda r, s: np.minimum(r.needed[s], r.record.queries + 1)))
    return measures


def _unit(records: Sequence[Record]) -> str:
    """The unit of the performance, if all problems have the same."""
    if len(records[0].problem.objectives) > 1:
        return "share of the true front's"
    units = {r.problem.objectives[0].unit for r in records}
    return units.pop() if len(units) == 1 else ""


def _indicator(measure: Callable[..., float], results: _Results, strategy: str) -> Floats:
    """An indicator of everything each run found against the true front, (seeds,), with the front's range scaled to 1 in every
    objective; a run that found nothing counts as if it had found the reference point of the hypervolume."""
    front = results.record.front
    ideal, nadir = bounds(front)
    reference = normalise(reference_point(ideal, nadir)[None], ideal, nadir)

    def one(values: Floats) -> float:
        finite = values[np.isfinite(values).all(axis=1)]
        return float(measure(normalise(finite, ideal, nadir) if len(finite) else reference, ref=normalise(front, ideal, nadir)))

    return np.array([one(v) for v in results.values[strategy]])


# ----------------------------------------------------------------------------------------------------------- comparison
def compare(records: Sequence[Record], control: str = "", rope: float | None = None) -> Comparison:
    """The comparison of all strategies of all records.

    Args:
        control: compare the others with this strategy only; empty: all pairs.
        rope: half the width of the region of practical equivalence, in the unit of the performance.

    Raises:
        InputError: records that do not fit together, unpaired runs, fewer than 2 seeds, an unknown control, a rope that is not
            above 0 or has no unit, or baycomp is missing for it.
    """
    if not records:
        raise InputError("there is nothing to compare: name at least one record that nasopt bench --json wrote.")
    results = [_results(r) for r in merge(records)]
    if len({r.single for r in results}) > 1:
        raise InputError("problems of one objective and of several have different measures: compare them apart.")
    scored = [(measure, {r.record.name: {s: of(r, s) for s in r.performance} for r in results})
              for measure, of in _measures(results)]
    analyses = tuple(analyse(measure, scores, control) for measure, scores in scored)
    strategies = tuple(results[0].performance)
    equal = [] if rope is None else _equivalences(scored[:2], analyses[0].couples, _checked(rope, results))
    return Comparison(strategies, {r.record.name: r.seeds for r in results}, tuple(map(_subject, results)), analyses,
                      tuple(equal), checklist([r.record for r in results]), _origin([r.record for r in results]))


def _checked(rope: float, results: Sequence[_Results]) -> float:
    if not 0 < rope < math.inf:
        raise InputError(f"--rope {rope:g} is no half-width of a region of practical equivalence: give a number above 0.")
    if len({r.record.problem.objectives[0].unit for r in results}) > 1 and results[0].single:
        raise InputError("--rope needs one unit, but the problems have several: compare them one at a time.")
    return rope


def _equivalences(scored: Sequence[tuple[Measure, Mapping[str, Mapping[str, Floats]]]], couples: Sequence[tuple[str, str]],
                  rope: float) -> list[Equivalence]:
    """Every couple on every problem by anytime and final performance."""
    from nasopt.analysis.bayes import signed_rank

    found = []
    for measure, scores in scored:
        for problem, row in scores.items():
            for a, b in couples:
                above, equal, below = signed_rank(row[a], row[b], rope)
                better, worse = (below, above) if measure.minimise else (above, below)
                found.append(Equivalence(measure, problem, a, b, rope, better, equal, worse))
    return found


# -------------------------------------------------------------------------------------------------------- what is drawn
def _subject(results: _Results) -> Subject:
    record, problem = results.record, results.record.problem
    aim = problem.objectives[0]
    sign = -1 if results.single and not aim.minimise else 1
    performance = (Measure("performance", f"best {aim.name} so far", aim.unit, aim.minimise) if results.single
                   else Measure("performance", "hypervolume", "share of the true front's", minimise=False))
    at = np.unique(np.round(np.geomspace(1, record.queries, POINTS)).astype(int))
    found = {name: (float(np.sort(n)[(len(n) - 1) // 2]), float(np.isfinite(n).mean())) for name, n in results.needed.items()}
    return Subject(record.name, _facts(results), performance,
                   {name: _course(sign * curves, at) for name, curves in results.performance.items()},
                   _attained(results) if len(problem.objectives) == 2 else None, found if results.single else {},
                   sign * float(record.front[0, 0]) if results.single else 1.0)


def _course(curves: Floats, at: NDArray[np.int64]) -> Course:
    value, low, high = stats.iqm_band(curves[:, at - 1])
    return Course(at.tolist(), value.tolist(), low.tolist(), high.tolist())


def _attained(results: _Results) -> Attained:
    """The surfaces that a quarter, half and three quarters of the runs attain (empirical attainment function)."""
    record = results.record
    signs = np.array([1 if o.minimise else -1 for o in record.problem.objectives])
    found = {s: [v[np.isfinite(v).all(axis=1)] for v in values] for s, values in results.values.items()}
    beyond = np.concatenate([record.front, *(v for values in found.values() for v in values)]).max(axis=0) + 1

    def surface(runs: Sequence[Floats], percent: int) -> list[list[float]]:
        points = [v if len(v) else beyond[None] for v in runs]  # a run that found nothing counts, and attains nothing
        sets = np.repeat(np.arange(len(points)), [len(v) for v in points])
        reached = moocore.eaf(np.concatenate(points), sets, percentiles=[percent])[:, :2]
        reached = reached[(reached < beyond).all(axis=1)]
        return list((reached[np.argsort(reached[:, 0])] * signs).tolist())

    first, second = (f"{o.name} ({o.unit})" if o.unit else o.name for o in record.problem.objectives)
    return Attained((first, second), {s: {name: surface(runs, p) for name, p in SHARES.items()} for s, runs in found.items()},
                    (record.front * signs).tolist())


def _facts(results: _Results) -> tuple[tuple[str, str], ...]:
    record, problem = results.record, results.record.problem
    objectives = [f"{o.name}{' (' + o.unit + ')' if o.unit else ''}, {'lower' if o.minimise else 'higher'} is better"
                  for o in problem.objectives]
    reported = [str(name) for name in record.origin.get("reported", ())]
    optimum = float(record.front[0, 0]) * (1 if problem.objectives[0].minimise else -1)
    return (("Table", str(record.origin["table"])), ("Objectives", "; ".join(objectives)),
            ("Constraints", ", ".join(map(str, problem.constraints)) or "none"),
            ("Search space", f"{spaces.counted(problem.space, ',')} architectures"),
            ("True front", f"optimum {optimum:g}" if results.single else f"{len(record.front)} points"),
            ("Queries of every run", f"{record.queries}"), ("Seeds", ", ".join(map(str, results.seeds))),
            *((("Reported beside, not seen by any strategy", ", ".join(reported)),) if reported else ()))


# -------------------------------------------------------------------------------------------------------------- origins
def _origin(records: Sequence[Record]) -> tuple[tuple[str, str], ...]:
    origins = [r.origin for r in records]
    seconds = [o.get("seconds") for o in origins]
    known = [s for s in seconds if isinstance(s, int | float)]
    versions, machine = _common(origins, "versions"), _common(origins, "machine")
    return (("Machine", ", ".join(f"{k} {v}" for k, v in machine.items()) if machine else UNKNOWN),
            ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items()) if versions else UNKNOWN),
            ("Time of all runs", f"{sum(known):.0f} s" if len(known) == len(seconds) else UNKNOWN),
            ("Commands", "\n".join(str(o["command"]) for o in origins if o.get("command")) or UNKNOWN))


def _common(origins: Sequence[Mapping[str, Any]], key: str) -> Mapping[str, Any]:
    """What all origins say of something; empty where they do not say it or differ."""
    first = origins[0].get(key)
    return first if isinstance(first, Mapping) and all(o.get(key) == first for o in origins) else {}


def checklist(records: Sequence[Record]) -> tuple[tuple[str, str], ...]:
    """The NAS best-practice checklist (Lindauer & Hutter, JMLR 21:243, 2020), answered from the records alone: whatever they do
    not hold is not known."""
    origins = [r.origin for r in records]
    strategies, fewest = list(records[0].runs), min(len(own) for r in records for own in r.runs.values())
    versions, machine = _common(origins, "versions"), _common(origins, "machine")
    tabular = all(o.get("synthetic") is False for o in origins)
    spent = dict(_origin(records))["Time of all runs"]
    return (
        ("Code of the training pipeline", f"{UNKNOWN}: the record holds results of training, not how they were made"),
        ("Code of the search space", "in the record, as data"),
        ("Hyper-parameters and seeds of the final evaluation", UNKNOWN),
        ("Code of the search methods", f"nasopt {versions['nasopt']}" if "nasopt" in versions else UNKNOWN),
        ("Hyper-parameters and seeds of the search methods",
         f"seeds: in the record; settings: those of the catalogue of nasopt {versions['nasopt']}" if "nasopt" in versions
         else f"seeds: in the record; settings: {UNKNOWN}"),
        ("Same search space, data and training for all methods", "yes: one table a problem, which was checked"),
        ("Confounding factors: hardware, versions", "the same for all runs" if versions and machine
         else f"{UNKNOWN}: the records name none, or different ones"),
        ("Ablation studies", UNKNOWN),
        ("Same evaluation protocol", "yes: the same budget of queries and the same seeds, which was checked"),
        ("Performance over time", "yes: over queries; the time of training is not in the record"),
        ("Random search as a baseline", "yes" if "random" in strategies else "no: it is not among the strategies"),
        ("Several runs", f"{fewest} seeds" + ("" if fewest >= 20 else ", fewer than the 20 that a claim should have")),
        ("Tabular or surrogate benchmarks", "yes" if tabular else "no: a synthetic problem is among them"
         if any(o.get("synthetic") for o in origins) else UNKNOWN),
        ("How hyper-parameters were tuned, and its cost", UNKNOWN),
        ("Time of the whole method, end to end", f"of the searches {spent}; of training {UNKNOWN}"),
        ("All details of the experimental set-up", "commands, machine and versions are below" if versions and machine
         else f"{UNKNOWN} in part: see below"))
