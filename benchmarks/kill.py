"""Kills a search 100 times with SIGKILL at random moments and counts what that costs.

Each run is a process that says every trial's number through a pipe once the loop has acknowledged it. The parent kills
it at a random moment, starts it again on the same file, and so on; a run that ends nevertheless is followed by another,
until the kills are used up. Then every run is finished and compared with one that was never interrupted.

    python benchmarks/kill.py [--kills 100]
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from common import write

from nasopt.benchmarks.synthetic import Synthetic, dtlz2
from nasopt.protocols import Strategy
from nasopt.run.search import Budget, Progress, load, search
from nasopt.run.storage import Memory, Sqlite
from nasopt.seed import rng
from nasopt.strategies.evolution import NSGA2
from nasopt.strategies.random import RandomSearch
from nasopt.trial import Ask, Metrics, Study, Trial

PAUSE = 0.002
"""Seconds that an evaluation sleeps, so that a kill can also fall into one."""


@dataclass(frozen=True)
class Run:
    """A strategy, how many trials it makes, and in which batches."""

    name: str
    make: Callable[[Synthetic], Strategy]
    trials: int
    batch: int


RUNS = (Run("random search, batches of 8", lambda s: RandomSearch(s.problem, 0), 1500, 8),
        Run("NSGA-II, batches of 8", lambda s: NSGA2(s.problem, 0, population=40), 1500, 8),
        Run("NSGA-II, one at a time", lambda s: NSGA2(s.problem, 0, population=40), 1500, 1))


@dataclass(frozen=True)
class Sleeps:
    """A synthetic problem that takes its time."""

    problem: Synthetic
    pause: float

    def __call__(self, ask: Ask, /) -> Metrics:
        time.sleep(self.pause)
        return self.problem(ask)


def go(run: Run, path: Path | None, pause: float, tell: Callable[[Progress], None] | None = None) -> Study:
    """Starts or resumes a run; in memory without a path."""
    synthetic = dtlz2()
    storage = Memory() if path is None else Sqlite(path)
    study = search(synthetic.problem, run.make(synthetic), Sleeps(synthetic, pause), budget=Budget(trials=run.trials),
                   storage=storage, batch=run.batch, watch=tell)
    storage.close()
    return study


def child(run: Run, path: Path) -> None:
    """What is killed: every number is written only after the loop acknowledged the trial."""
    go(run, path, PAUSE, lambda progress: print(progress.trial.ask.number, flush=True))


@dataclass
class Count:
    """What happened to one run."""

    kills: int = 0
    acknowledged: list[int] = field(default_factory=list)


def attack(run: Run, number: int, path: Path, kills: int, generator: np.random.Generator) -> Count:
    """Kills the run up to .25 s after its first trial (nine times of ten) or after its start, until it ends first."""
    count = Count()
    while count.kills < kills:
        with subprocess.Popen([sys.executable, __file__, "--child", str(number), str(path)], stdout=subprocess.PIPE,
                              text=True) as process:
            assert process.stdout is not None
            if generator.random() < 0.9:
                count.acknowledged += [int(line) for line in [process.stdout.readline()] if line]
            time.sleep(float(generator.uniform(0.0, 0.25)))
            early = process.poll() is not None
            process.send_signal(signal.SIGKILL)
            count.acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
        if early:
            if process.returncode != 0:
                raise RuntimeError(f"{run.name}: the child failed by itself with code {process.returncode}.")
            break
        count.kills += 1
    return count


def timeless(study: Study) -> list[Trial]:
    """Trials without what a clock measured."""
    return [replace(t, cost=0.0) for t in study.trials]


def judge(run: Run, number: int, path: Path, kills: int, generator: np.random.Generator) -> list[str | int]:
    """One run from its first start to its end, as a row of the table."""
    count = attack(run, number, path, kills, generator)
    storage = Sqlite(path)
    kept = [t.ask.number for t in load(storage).trials]
    storage.close()
    lost = len(set(count.acknowledged) - set(kept))
    resumed = go(run, path, 0.0)
    whole = go(run, None, 0.0)
    twice = len(resumed.trials) - len({t.ask.number for t in resumed.trials})
    same = timeless(resumed) == timeless(whole) and [t.ask for t in resumed.front()] == [t.ask for t in whole.front()]
    return [run.name, run.trials, count.kills, len(kept), len(count.acknowledged), lost, twice, "yes" if same else "NO"]


COLUMNS = ["run", "trials", "kills", "recorded when the kills were used up", "acknowledged to the watcher before that",
           "acknowledged and lost", "duplicates", "final trials and archive equal the uninterrupted run's"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--child", nargs=2, metavar=("RUN", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(RUNS[int(arguments.child[0])], Path(arguments.child[1]))
        return
    shares = [arguments.kills // len(RUNS) + (k < arguments.kills % len(RUNS)) for k in range(len(RUNS))]
    rows: list[list[str | int]] = []
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:  # /tmp may be in memory
        for number, (run, share) in enumerate(zip(RUNS, shares, strict=True)):
            generator, left = rng(0, number, "kill"), share
            while left > 0:
                rows.append(judge(run, number, Path(folder) / f"{len(rows)}.db", left, generator))
                left -= int(rows[-1][2])
                print(*rows[-1], sep=" | ", flush=True)
    write("kill", {"title": "A search killed with SIGKILL at random moments", "tables": [
        {"caption": f"{arguments.kills} kills; discretised DTLZ2, SQLite storage, serial executor",
         "columns": COLUMNS, "rows": rows}]}, [0])


if __name__ == "__main__":
    main()
