"""Search strategies on tables of trained networks: how many queries until the optimum, how much of the front. ``--quick`` runs
few seeds; ``oracle201``, ``noisy201``, ``oracle101``, ``front201``, ``hybrid`` or ``overhead`` measures that part alone.

    python benchmarks/strategies.py [PART...] [--tables FOLDER] [--seeds N] [--only NAME,...] [--keep FOLDER] [--quick]

Every strategy has the settings of `nasopt.strategies.catalogue`, the same for every table. ``--keep`` also writes the whole
records, from which ``nasopt compare`` computes its tests; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import keep as keep_file
from common import write
from threadpoolctl import threadpool_limits

from nasopt import bench
from nasopt.analysis import stats
from nasopt.analysis.comparison import ALPHA, Measure, Pair, analyse
from nasopt.strategies import catalogue
from nasopt.trial import Ask, Constraint, Trial

ALL = ("random", "local", "rea", "nsga2", "optuna-tpe", "optuna-gp", "forest", "gp", "gp-lcb", "gp-ts", "hybrid")
"""In the order of the rows."""

SLOW = {"forest": (20, 300), "optuna-gp": (10, 300)}
"""Strategies that take long, and the seeds and the queries that they get at most."""

SLOW_FRONTS = {"gp": (6, 500), "hybrid": (6, 500), "optuna-tpe": (6, 200), "gp-lcb": (6, 150), "gp-ts": (6, 150),
               "forest": (6, 150), "optuna-gp": (6, 50)}
"""The same for three objectives."""

PROXIES = ("c10__naswot", "c10__logsynflow")
"""Zero-cost proxies that cost no training; their values come with NAS-Bench-201's table."""

ENERGY, LATENCY, DEPLOYABLE = "c10__edgegpu_energy", "c10__raspi4_latency", Constraint("c10__edgetpu_undeployable", 0.0)


def searches(task: bench.Task, names: Sequence[str], queries: int, options: argparse.Namespace,
             slow: Mapping[str, tuple[int, int]] = SLOW) -> list[dict[str, Any]]:
    """Runs what is not kept yet; prints how far it is."""
    began, runs = time.perf_counter(), list[dict[str, Any]]()
    for name in names:
        seeds, most = slow.get(name, (options.seeds, queries))
        runs += once(task, name, min(queries, most), min(options.seeds, seeds), options.keep)
        print(f"{task.table} {','.join(task.objectives)} {name}: {time.perf_counter() - began:.0f} s", flush=True)
    return runs


def once(task: bench.Task, name: str, queries: int, seeds: int, keep: Path | None) -> list[dict[str, Any]]:
    """The searches of one strategy; those that are kept are read."""
    words = [task.table, *task.objectives, *map(str, task.constraints), *(["hints"] if task.hints else []), name, queries, seeds]
    file = None if keep is None else keep / f"{'-'.join(map(str, words))}.json"
    if file is not None and file.is_file():
        return list(json.loads(file.read_text())["runs"])
    began = time.perf_counter()
    runs = bench.run(task, [name], queries, range(seeds))
    if file is not None:
        keep_file(file, bench.record(task, [name], queries, runs, time.perf_counter() - began))
    return runs


def number(value: float) -> float | str:
    """A count of queries, or that most runs did not get there."""
    return "not found" if np.isinf(value) else value


def to_the_optimum(table: str, objective: str, chosen: Sequence[str], queries: int, options: argparse.Namespace,
                   hints: Sequence[str] = ()) -> dict[str, Any]:
    """Queries to the optimum and the best value on the way, of one objective in oracle mode."""
    plain = bench.Task(table, tables(), (objective,), until_optimum=True)
    ready, marks = bench.prepare(plain), [q for q in (10, 25, 50, 100, 150, 200, 300) if q <= queries]
    runs = searches(plain, chosen, queries, options)
    if hints:
        helped = replace(plain, hints=tuple(hints))
        for run in searches(helped, [n for n in chosen if n in catalogue.HINTED], queries, options):
            runs.append(run | {"strategy": f"{run['strategy']} with proxies"})
    rows = []
    for row in bench.summary(ready.problem, runs, ready.front, marks):
        median, most, found = row["optimum"]
        rows.append([row["strategy"], row["seeds"], number(median), number(most), f"{found:.0%}",
                     *(-i.value for i in row["at"].values()), 1e3 * row["seconds"]])
    return {"caption": f"{table}, {objective}: queries to the optimum, at most {queries}, and interquartile mean of the best "
                       "so far",
            "columns": ["strategy", "seeds", "median", "95th percentile", "found", *(f"after {q}" for q in marks), "ms a query"],
            "rows": rows}


def oracle201(options: argparse.Namespace) -> None:
    """The test accuracy itself is the black box."""
    found = [to_the_optimum("nb201", column, names(options), 200, options, hints)
             for column, hints in (("test200_c10", PROXIES), ("test200_c100", tuple(p.replace("c10", "c100") for p in PROXIES)))]
    save("oracle201", "NAS-Bench-201, oracle", "The mean test accuracy after 200 epochs is both what a search sees and what is "
         "reported, as in the figures that others give for queries to the optimum (AG-Net, DiNAS: about 192). Proxies are known "
         "of every network without a query. The settings of Gaussian processes, the same for all tables, were chosen by what "
         "they find on these two and on NAS-Bench-101.", found, options)


def noisy201(options: argparse.Namespace) -> None:
    """Search on one noisy training, report another."""
    seen, reported = "split25k_test200_c10_1seed", "test200_c10"
    task, marks, rows = bench.Task("nb201", tables(), (seen,), (reported,)), (25, 50, 100, 200), []
    runs = searches(task, names(options), max(marks), options)
    for name in dict.fromkeys(run["strategy"] for run in runs):
        own = [incumbents(run, seen, reported) for run in runs if run["strategy"] == name]
        at = [stats.iqm_interval([[curve[min(q, len(curve)) - 1] for curve in own]]) for q in marks]
        rows.append([name, len(own), *(f"{i.value:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in at)])
    table = {"caption": f"Accuracy (%) by {reported} of the best by {seen} after so many queries: interquartile mean, 95 % "
                        "bootstrap interval", "columns": ["strategy", "seeds", *map(str, marks)], "rows": rows}
    save("noisy201", "NAS-Bench-201, a noisy signal", "The search sees one training on half the training images; what is "
         "reported is the mean of other trainings on all of them. Twins of one function differ by .25 points there.", [table],
         options)


def incumbents(run: Mapping[str, Any], seen: str, reported: str) -> list[float]:
    """The reported value of the best by what was seen, after every query."""
    best, curve = run["trials"][0]["metrics"], []
    for trial in run["trials"]:
        best = max(best, trial["metrics"], key=lambda metrics: metrics[seen])
        curve.append(best[reported])
    return curve


def oracle101(options: argparse.Namespace) -> None:
    """As `oracle201`, on NAS-Bench-101."""
    found = [to_the_optimum("nb101", "test108", [n for n in names(options) if n != "optuna-gp"], 300, options)]
    save("oracle101", "NAS-Bench-101, oracle", "The table holds no validation accuracy: the mean test accuracy after 108 epochs "
         "is what a search sees, so only what others found in the same mode compares (a plain Gaussian process: 94.227 after "
         "150).", found, options)


def front201(options: argparse.Namespace) -> None:
    """Three objectives, without and with a constraint."""
    found, marks = [], (50, 100, 150, 200, 500)
    for bounds in ((), (DEPLOYABLE,)):
        task = bench.Task("nb201", tables(), ("test200_c10", LATENCY, ENERGY), constraints=bounds)
        ready = bench.prepare(task)
        left_out = ("local", "rea", *(("optuna-gp",) if bounds else ()))  # which takes seconds a query
        chosen = [n for n in names(options) if n not in left_out] + ["nsga3", "optuna-nsga2"] * (options.only is None)
        runs = searches(task, chosen, max(marks), options, SLOW_FRONTS)
        if options.only is None:
            with ProcessPoolExecutor() as pool:
                work = ((task, seed, max(marks)) for seed in range(options.seeds))
                runs += pool.map(pymoo, *zip(*work, strict=True))
        rows = []
        for row in bench.summary(ready.problem, runs, ready.front, marks):
            asked = SLOW_FRONTS.get(row["strategy"], (0, max(marks)))[1]
            cells = [f"{i.value:.4f} [{i.low:.4f}, {i.high:.4f}]" if q <= asked else "–" for q, i in row["at"].items()]
            rows.append([row["strategy"], row["seeds"], *cells, 1e3 * row["seconds"]])
        text = f", {DEPLOYABLE}" if bounds else ""
        found.append({"caption": f"Hypervolume as a share of the true front's ({len(ready.front)} points{text}) after so many "
                                 "queries: interquartile mean, 95 % bootstrap interval",
                      "columns": ["strategy", "seeds", *map(str, marks), "ms a query"], "rows": rows})
    save("front201", "NAS-Bench-201, three objectives", f"Test accuracy on CIFAR-10, latency on a Raspberry Pi 4 ({LATENCY}) and "
         f"energy on an EdgeGPU ({ENERGY}), from HW-NAS-Bench; in the frame from the true front's ideal point to a tenth of its "
         "range beyond its nadir.", found, options)


def pymoo(task: bench.Task, seed: int, queries: int) -> dict[str, Any]:
    """pymoo's NSGA-II, population 20, on rows of integers; a record as `bench.one` makes it."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.problems.static import StaticProblem

    from nasopt.space import labels, layout

    ready = bench.prepare(task)
    lay, trials = layout(ready.problem.space), list[dict[str, Any]]()
    given = Problem(n_var=len(lay.genes), n_obj=len(ready.problem.objectives), n_ieq_constr=len(task.constraints), xl=0,
                    xu=lay.options - 1, vtype=int)
    algorithm = NSGA2(pop_size=20, sampling=IntegerRandomSampling(), crossover=UniformCrossover(prob=0.5),
                      mutation=PM(vtype=float, repair=RoundingRepair()), eliminate_duplicates=True)
    algorithm.setup(given, termination=("n_eval", queries), seed=seed, verbose=False)
    while algorithm.has_next():
        began = time.perf_counter()
        population = algorithm.ask()
        archs = lay.archs(lay.canonical(population.get("X").astype(np.int64)))
        metrics = [dict(ready.more(Ask(0, arch))) for arch in archs]
        values = np.nan_to_num([ready.problem.values(m) for m in metrics], posinf=1e9)
        over = np.array([[m.get(c.name, 0.0) - c.upper for c in task.constraints] for m in metrics])
        algorithm.evaluator.eval(StaticProblem(given, F=values, **({"G": over} if task.constraints else {})), population)
        algorithm.tell(infills=population)
        trials += [{"architecture": labels(ready.problem.space, arch), "metrics": m, "fidelity": 1.0,
                    "seconds": (time.perf_counter() - began) / len(archs)}
                   for arch, m in zip(archs, metrics, strict=True)]
    return {"strategy": "pymoo NSGA-II", "seed": seed, "trials": trials[:queries], "stopped": "", "seconds": 0.0}


MEMBERS = ("gp", "gp-lcb", "local", "nsga2")
"""What the hybrid is made of."""

PROBLEMS = (("nb201", ("test200_c10",)), ("nb201", ("test200_c100",)), ("nb201", ("split25k_test200_c10_1seed",)),
            ("nb201", ("val12_c100",)), ("nb101", ("test108",)), ("nbmacro_c10", ("test_acc",)),
            ("nb201", ("test200_c10", "c10__edgegpu_latency")), ("nb201", ("test200_c100", "c100__raspi4_latency")),
            ("nb201", ("test200_c10", LATENCY, ENERGY)), ("nb101", ("test108", "params")), ("nbmacro_c10", ("test_acc", "flops")))
"""(table, objectives)."""


def hybrid(options: argparse.Namespace) -> None:
    """The portfolio against each of its members, over all tables and objectives."""
    queries, scores = 100, dict[str, dict[str, Any]]()
    for table, objectives in PROBLEMS:
        task = bench.Task(table, tables(), objectives)
        ready, runs = bench.prepare(task), searches(task, ("hybrid", *MEMBERS), queries, options)
        optimum = ready.front[0, 0] if len(objectives) == 1 else 1.0
        scores[f"{table}: {', '.join(objectives)}"] = {
            name: np.array([abs(optimum - bench.quality(ready.problem, run, ready.front)).mean()
                            for run in runs if run["strategy"] == name]) for name in ("hybrid", *MEMBERS)}
    found = analyse(Measure("anytime", "what is missing, mean over all queries"), scores, control="hybrid")
    rows = []
    for problem, row in scores.items():
        pairs = {pair.a: pair for pair in found.pairs if pair.problem == problem}
        typical = found.typical[problem]
        rows.append([problem, *(f"{typical[name].value:.4f} [{typical[name].low:.4f}, {typical[name].high:.4f}]"
                                + (verdict(pairs[name]) if name in pairs else "") for name in row)])
    missing = {"caption": "What is missing to the optimum (points of accuracy) or to the hypervolume of the true front (share), "
                          f"mean over {queries} queries: interquartile mean, 95 % bootstrap interval; {options.seeds} seeds. "
                          "Against the hybrid: Wilcoxon's signed-rank test, Holm's correction over the whole table",
               "columns": ["problem", "hybrid", *MEMBERS], "rows": rows}
    if found.ranking is None:
        raise SystemExit("two problems at least are needed for ranks.")
    p = {a: value for a, _, value in found.ranking.p}
    ranks = {"caption": f"Friedman's ranks over {len(scores)} problems (Iman and Davenport's F, p = {found.ranking.f_p:.2g}); "
                        "Holm's test against the hybrid", "columns": ["strategy", "mean rank", "p against the hybrid"],
             "rows": [[name, rank, "" if name == "hybrid" else f"{p[name]:.2g}"]
                      for name, rank in zip(found.ranking.strategies, found.ranking.ranks, strict=True)]}
    save("hybrid", "The hybrid against its members", "All have the settings of `nasopt search`, which were chosen by looking "
         "at these tables. Single objectives are tables in oracle mode.", [ranks, missing], options)


def verdict(pair: Pair) -> str:
    """Whether the first of a pair, a member, differs from the hybrid; less is better."""
    return "" if pair.adjusted >= ALPHA else f" ({'better' if pair.shift < 0 else 'worse'}, p = {pair.adjusted:.1g})"


def overhead(options: argparse.Namespace) -> None:
    """Seconds that a strategy takes for one ask when it knows so many trials, one thread."""
    marks, rows = (100, 200, 1000), []
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for name in names(options):
            rows.append([name, *(1e3 * seconds_an_ask(name, told, 3 if name == "optuna-gp" else 20) for told in marks)])
            print(rows[-1], flush=True)
    save("overhead", "What an ask costs", "A strategy is told of random architectures and then asked for one at a time, and told "
         "of it.", [{"caption": "ms an ask and a tell, mean of 20 (of Optuna's Gaussian process: of 3), after so many trials of "
                                "NAS-Bench-201, one thread", "columns": ["strategy", *map(str, marks)], "rows": rows}],
         options, [0, 1])


def seconds_an_ask(name: str, told: int, asks: int) -> float:
    """The mean over so many asks and tells in a row, after one that is not timed."""
    ready = bench.prepare(bench.Task("nb201", tables(), ("test200_c10",)))
    strategy, others = catalogue.make(name, ready.problem, 0), catalogue.make("random", ready.problem, 1)
    strategy.tell([Trial(ask, ready.estimate(ask), 0.0) for ask in others.ask(told, 0)])
    for number in range(told, told + asks + 1):
        if number == told + 1:
            began = time.perf_counter()
        strategy.tell([Trial(ask, ready.estimate(ask), 0.0) for ask in strategy.ask(1, number)])
    return (time.perf_counter() - began) / asks


def names(options: argparse.Namespace) -> list[str]:
    return options.only.split(",") if options.only else [n for n in ALL if n in catalogue.STRATEGIES]


def tables() -> str:
    return os.environ["NASOPT_TABLES"]


def save(name: str, title: str, text: str, found: Sequence[Mapping[str, Any]], options: argparse.Namespace,
         seeds: Sequence[int] = ()) -> None:
    write(f"strategies_{name}{'_part' if options.only else ''}",
          {"title": title, "text": text, "tables": list(found)}, seeds or range(options.seeds))


PARTS = {"oracle201": oracle201, "noisy201": noisy201, "oracle101": oracle101, "front201": front201, "hybrid": hybrid,
         "overhead": overhead}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--tables", default=os.environ.get("NASOPT_TABLES", "tables"))
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--only", help="these strategies, with commas; the record is then called a part")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    chosen.seeds = 6 if chosen.quick else chosen.seeds
    os.environ["NASOPT_TABLES"] = chosen.tables
    for part in chosen.parts or PARTS:
        PARTS[part](chosen)
