"""Many searches of one table or synthetic problem, over strategies and seeds, side by side in processes."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from nasopt import space as spaces
from nasopt.analysis import stats
from nasopt.analysis.hypervolume import bounds, curve, reference_point
from nasopt.benchmarks import synthetic, tables
from nasopt.errors import InputError, unknown
from nasopt.machine import machine, versions
from nasopt.protocols import Estimator
from nasopt.run.search import Budget, search
from nasopt.strategies import catalogue
from nasopt.surrogates.features import Hints
from nasopt.trial import Constraint, Problem, Trial, problem_to_json

Floats = NDArray[np.float64]

SYNTHETIC: Mapping[str, Callable[[], synthetic.Synthetic]] = {
    "oneminmax": lambda: synthetic.one_min_max(20),
    "oneminmax3": lambda: synthetic.one_min_max(20, 3),
    "lotz": lambda: synthetic.lotz(20),
    "dtlz2": synthetic.dtlz2,
}
"""Synthetic problems by name."""

FOUND = "the optimum is found"


@dataclass(frozen=True)
class Task:
    """What is searched, by plain values, so that every process can build it.

    Attributes:
        table: a file of the tables' folder or the name of a synthetic problem.
        folder: of the tables.
        objectives: columns that the search sees and aims at; none for a synthetic problem, which has its own.
        report: columns that are written down beside them, and that no strategy sees.
        constraints: upper bounds on columns.
        hints: columns that strategies which can use them know of every architecture beforehand (`catalogue.HINTED`).
        until_optimum: end a search of one objective with the query that finds the optimum: nothing changes after it.
    """

    table: str
    folder: str
    objectives: tuple[str, ...]
    report: tuple[str, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    hints: tuple[str, ...] = ()
    until_optimum: bool = False


@dataclass(frozen=True)
class Bench:
    """A task made ready.

    Attributes:
        estimate: gives the strategies what they may see.
        more: gives the reported columns too.
        front: the true front, (points, objectives), to be minimised.
        hints: what is known beforehand.
    """

    problem: Problem
    estimate: Estimator
    more: Estimator
    front: Floats
    hints: Hints | None = None


@lru_cache(maxsize=4)
def prepare(task: Task) -> Bench:
    """Reads the table.

    Raises:
        InputError: no such table, a damaged one, unknown columns, constraints that no architecture meets, or an optimum asked
            for where there is a front.
    """
    for what, names in (("objective", task.objectives), ("reported column", task.report), ("hint", task.hints)):
        _refuse_twice(what, names)
    ready = _prepared(task)
    if task.until_optimum and len(ready.problem.objectives) > 1:
        raise InputError(f"{task.table} with {len(ready.problem.objectives)} objectives has no single optimum: leave out "
                         "--until-optimum.")
    return ready


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"the {what} {twice[0]!r} is named twice: name each once.")


def _prepared(task: Task) -> Bench:
    if task.table in SYNTHETIC:
        if task.objectives or task.report or task.constraints or task.hints:
            raise InputError(f"{task.table} has its own objectives: leave out --objective, --hint, --report and --constraint.")
        known = SYNTHETIC[task.table]()
        return Bench(known.problem, known, known, known.front)
    path = Path(task.folder, task.table)
    if not tables.file_of(path).is_file() and Path(task.folder).is_dir():
        raise unknown("table", task.table, [*SYNTHETIC, *(p.stem for p in Path(task.folder).glob("*.npz"))])
    table = tables.load(path)
    if not task.objectives:
        raise InputError(f"name what to optimise in {table.name} with --objective: {', '.join(sorted(table.columns))}.")
    problem = table.problem(task.objectives, task.constraints)
    for name in task.report:
        table.column(name)
    seen = [*task.objectives, *(c.name for c in task.constraints)]
    return Bench(problem, tables.Lookup(table, seen), tables.Lookup(table, [*seen, *task.report]), table.front(problem),
                 table.hints(task.hints) if task.hints else None)


def one(task: Task, strategy: str, seed: int, queries: int) -> dict[str, Any]:
    """One search: {strategy, seed, trials, stopped, seconds}; a trial is {architecture, fidelity, metrics, seconds}, its seconds
    those of the strategy and the loop since the one before it."""
    ready = prepare(task)
    rows: list[dict[str, Any]] = []
    last = started = time.perf_counter()

    def note(trial: Trial) -> None:
        nonlocal last
        now = time.perf_counter()
        metrics = dict(ready.more(trial.ask)) if trial.error is None else {}
        rows.append({"architecture": spaces.labels(ready.problem.space, trial.ask.arch), "fidelity": trial.ask.fidelity,
                     "metrics": metrics, "seconds": now - last})
        last = time.perf_counter()

    def end(trials: Sequence[Trial]) -> str:
        last = trials[-1]
        best = ready.problem.accepts(last) and ready.problem.values(last.metrics)[0] <= ready.front[0, 0]
        return FOUND if best else ""

    asker = catalogue.make(strategy, ready.problem, seed, hints=ready.hints)
    study = search(ready.problem, asker, ready.estimate, budget=Budget(trials=queries), seed=seed,
                   watch=lambda progress: note(progress.trial), stop=end if task.until_optimum else None)
    return {"strategy": strategy, "seed": seed, "trials": rows, "stopped": study.stopped, "seconds": last - started}


def run(task: Task, strategies: Sequence[str], queries: int, seeds: Sequence[int], jobs: int | None = None,
        watch: Callable[[int, int], None] | None = None) -> list[dict[str, Any]]:
    """All searches, ordered by strategy and seed.

    Raises:
        InputError: what `prepare` refuses, a strategy that is unknown or does not suit the problem, or nothing to run.
    """
    ready = prepare(task)
    _refuse_twice("strategy", strategies)
    for name in strategies:
        catalogue.make(name, ready.problem, 0)
    if task.hints and not any(name in catalogue.HINTED for name in strategies):
        raise InputError(f"none of {', '.join(strategies)} takes hints: leave out --hint, or choose of "
                         f"{', '.join(catalogue.HINTED)}.")
    if len(strategies) > 1 and len(seeds) < 2:
        raise InputError("one seed is no comparison of strategies: run at least 2, 6 for a test, 20 for a claim.")
    if queries < 1 or not seeds or not strategies:
        raise InputError(f"{queries} queries, {len(seeds)} seeds and {len(strategies)} strategies are no comparison: "
                         "give at least 1 of each.")
    work = [(task, name, seed, queries) for name in strategies for seed in seeds]
    jobs = min(jobs or os.cpu_count() or 1, len(work))
    found = []
    with ProcessPoolExecutor(jobs, initializer=_one_thread) as pool:
        for done, record in enumerate(pool.map(one, *zip(*work, strict=True)), 1):
            found.append(record)
            if watch is not None:
                watch(done, len(work))
    return found


def record(task: Task, strategies: Sequence[str], queries: int, runs: Sequence[Mapping[str, Any]],
           seconds: float) -> dict[str, Any]:
    """Runs with all that `nasopt.compare` needs to know of them, as plain JSON values.

    Args:
        runs: what `run` returned, in ``seconds`` of wall time.

    Returns:
        {table, objectives, queries, runs; problem: as `trial.problem_to_json` has it; front: the true one, (points, objectives),
        to be minimised; reported, synthetic, command, seconds, machine, versions}.
    """
    ready = prepare(task)
    return {"table": task.table, "objectives": [o.name for o in ready.problem.objectives], "queries": queries, "runs": list(runs),
            "problem": problem_to_json(ready.problem), "front": ready.front.tolist(), "reported": list(task.report),
            "synthetic": task.table in SYNTHETIC, "command": command(task, strategies, queries, [r["seed"] for r in runs]),
            "seconds": seconds, "machine": machine(), "versions": versions()}


def command(task: Task, strategies: Sequence[str], queries: int, seeds: Sequence[int]) -> str:
    """The command line that repeats the runs, wherever the tables are."""
    words = ["nasopt", "bench", task.table, "--strategy", ",".join(strategies), "--queries", f"{queries}", "--seeds",
             f"{len(set(seeds))}"]
    words += ["--objective", ",".join(task.objectives)] if task.objectives else []
    words += ["--hint", ",".join(task.hints)] if task.hints else []
    words += ["--report", ",".join(task.report)] if task.report else []
    words += ["--until-optimum"] if task.until_optimum else []
    return shlex.join(words + [w for c in task.constraints for w in ("--constraint", f"{c.name}<={float(c.upper)!r}")])


def _one_thread() -> None:
    """Processes side by side use one thread each."""
    import torch

    torch.set_num_threads(1)
    threadpool_limits(1)


# ------------------------------------------------------------------------------------------------------------- summaries
def values(problem: Problem, record: Mapping[str, Any]) -> Floats:
    """The objectives of a run's trials, (n, objectives), to be minimised; infinite where infeasible or below full fidelity. A
    query is a query: tables give every fidelity at one price."""
    rows = [t["metrics"] for t in record["trials"]]
    found = np.array([problem.values(m) for m in rows]).reshape(len(rows), len(problem.objectives))
    found[[t["fidelity"] < 1 or not all(c.met(t["metrics"]) for c in problem.constraints) for t in record["trials"]]] = np.inf
    return found


def queries_to_optimum(problem: Problem, record: Mapping[str, Any], front: Floats) -> float:
    """How many queries a run of one objective took to the optimum; infinite if it never came."""
    hits = np.flatnonzero(values(problem, record)[:, 0] <= front[0, 0])
    return float(hits[0] + 1) if len(hits) else np.inf


def quality(problem: Problem, record: Mapping[str, Any], front: Floats) -> Floats:
    """How good a run is after each query, (n,): with one objective the best so far, to be minimised; with several the
    hypervolume as a share of that of the true front, in the frame from its ideal point to a tenth of its range beyond its nadir.
    """
    found = values(problem, record)
    if len(problem.objectives) == 1:
        return np.asarray(np.minimum.accumulate(found[:, 0]))
    ideal, nadir = bounds(front)
    reference = reference_point(ideal, nadir)
    whole = curve(front, reference)[-1]
    return np.asarray(curve(found, reference) / whole)


def summary(problem: Problem, records: Sequence[Mapping[str, Any]], front: Floats, at: Sequence[int]) -> list[dict[str, Any]]:
    """One row a strategy: {strategy, seeds, seconds a query, optimum, at}. ``optimum`` (one objective only) is the median and the
    95th percentile of the queries to the optimum and the share of runs that found it; ``at`` the interquartile mean of `quality`
    after each number of queries, with its bootstrap interval.
    """
    rows = []
    for name in dict.fromkeys(r["strategy"] for r in records):
        own = [r for r in records if r["strategy"] == name]
        row: dict[str, Any] = {"strategy": name, "seeds": len(own),
                               "seconds": float(np.mean([t["seconds"] for r in own for t in r["trials"]]))}
        if len(problem.objectives) == 1:
            needed = np.sort([queries_to_optimum(problem, r, front) for r in own])
            row["optimum"] = [*(float(needed[max(0, int(np.ceil(q * len(needed))) - 1)]) for q in (0.5, 0.95)),
                              float(np.isfinite(needed).mean())]
        curves = [quality(problem, r, front) for r in own]
        reached = {q: [float(c[min(q, len(c)) - 1]) for c in curves if len(c)] for q in at}
        row["at"] = {q: stats.iqm_interval([v]) if len(v) > 1 else stats.Interval(v[0], v[0], v[0]) for q, v in reached.items()}
        rows.append(row)
    return rows
