"""What the loop itself costs: milliseconds a trial, in memory and with the durable log, beside Optuna's.

The strategy is random search and the evaluation costs nothing: all that is measured is bookkeeping. Optuna searches the
same space with its random sampler, in memory and in an SQLite file. The methods take turns within every repetition, so
that a busy machine disturbs all of them.

    python benchmarks/loop.py [--trials 1000] [--repetitions 5]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import optuna
from common import write

from nasopt.benchmarks.synthetic import dtlz2
from nasopt.protocols import Storage
from nasopt.run.search import Budget, search
from nasopt.run.storage import Memory, Sqlite
from nasopt.space import layout
from nasopt.strategies.random import RandomSearch

FREE = {"f0": 0.25, "f1": 0.5, "f2": 0.75}


Seconds = tuple[float, float]
"""Wall time and the processor time of this process."""


def clock() -> Seconds:
    """Both clocks."""
    return time.perf_counter(), time.process_time()


def since(began: Seconds) -> Seconds:
    """What both clocks say was used since."""
    wall, cpu = clock()
    return wall - began[0], cpu - began[1]


def nasopt_seconds(storage: Storage, trials: int, seed: int, batch: int) -> Seconds:
    """Time for a whole search."""
    problem = dtlz2().problem
    metrics = dict(zip([o.name for o in problem.objectives], FREE.values(), strict=True))
    strategy = RandomSearch(problem, seed)
    began = clock()
    study = search(problem, strategy, lambda ask: metrics, budget=Budget(trials=trials), storage=storage, batch=batch)
    seconds = since(began)
    storage.close()
    if len(study.feasible()) != trials:
        raise RuntimeError("a trial is missing.")
    return seconds


def optuna_seconds(storage: str | None, trials: int, seed: int) -> Seconds:
    """Time for a whole study."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    genes = layout(dtlz2().problem.space).genes

    def objective(trial: optuna.Trial) -> tuple[float, ...]:
        for gene in genes:
            trial.suggest_int(gene.path, 0, len(gene.labels) - 1)
        return tuple(FREE.values())

    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed),
                                directions=["minimize"] * len(FREE))
    began = clock()
    study.optimize(objective, n_trials=trials)
    return since(began)


def flush_seconds(path: Path, times: int) -> Seconds:
    """Time for as many bare appends of 8 KB, each flushed to the disk."""
    file = os.open(path, os.O_CREAT | os.O_WRONLY)
    began = clock()
    for _ in range(times):
        os.write(file, b"x" * 8192)
        os.fdatasync(file)
    seconds = since(began)
    os.close(file)
    return seconds


def methods(folder: Path, trials: int, few: int, seed: int) -> dict[str, tuple[int, Callable[[], Seconds]]]:
    """What is compared: how many trials, and how to measure their time."""
    return {
        "nasopt, in memory": (trials, lambda: nasopt_seconds(Memory(), trials, seed, 1)),
        "nasopt, in memory, batches of 8": (trials, lambda: nasopt_seconds(Memory(), trials, seed, 8)),
        "nasopt, SQLite, flushed at every trial": (
            trials, lambda: nasopt_seconds(Sqlite(folder / f"{seed}.db"), trials, seed, 1)),
        "nasopt, SQLite, flushed, batches of 8": (
            trials, lambda: nasopt_seconds(Sqlite(folder / f"{seed}-8.db"), trials, seed, 8)),
        "one flushed append of 8 KB (the disk alone)": (trials, lambda: flush_seconds(folder / f"{seed}.raw", trials)),
        "Optuna, random sampler, in memory": (trials, lambda: optuna_seconds(None, trials, seed)),
        "Optuna, random sampler, SQLite": (
            few, lambda: optuna_seconds(f"sqlite:///{folder}/{seed}.optuna", few, seed)),
    }


def summary(times: Sequence[Seconds]) -> list[float]:
    """Median, least and most wall time, and the median of the processor time."""
    wall, cpu = zip(*times, strict=True)
    return [round(v, 3) for v in (median(wall), min(wall), max(wall), median(cpu))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    few = max(1, arguments.trials // 10)
    found: dict[str, list[Seconds]] = {}
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:  # /tmp may be in memory
        for seed in range(arguments.repetitions):
            for name, (count, run) in methods(Path(folder), arguments.trials, few, seed).items():
                wall, cpu = run()
                found.setdefault(name, []).append((wall / count * 1e3, cpu / count * 1e3))
                counts[name] = count
    rows = [[name, counts[name], *summary(times)] for name, times in found.items()]
    for row in rows:
        print(*row, sep=" | ")
    write("loop", {"title": "What the search loop costs", "tables": [
        {"caption": f"Milliseconds a trial, {arguments.repetitions} repetitions; ten choices, three objectives; "
                    "wanted: at most 0.2 in memory, 2 durable",
         "columns": ["method", "trials", "median ms", "least ms", "most ms", "median ms of processor"],
         "rows": rows}]},
        list(range(arguments.repetitions)))


if __name__ == "__main__":
    main()
