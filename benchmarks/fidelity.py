"""Shows: asynchronous halving, successive halving and Hyperband against random search at equal cost, where little effort gives
a wrong answer: on a synthetic problem with a known front, and between 12 and 200 epochs of NAS-Bench-201.

    python benchmarks/fidelity.py [--tables FOLDER] [--seeds 20] [--cost 100]

The cost of an evaluation is its fidelity: one training at a ninth of the epochs costs a ninth, and a promotion is trained anew
from its first epoch. A result counts only at full fidelity. One minute on one core.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import write

from nasopt.analysis import stats
from nasopt.analysis.hypervolume import bounds, hypervolume, reference_point
from nasopt.benchmarks import tables
from nasopt.benchmarks.synthetic import LowFidelity, dtlz2
from nasopt.protocols import Estimator, Strategy
from nasopt.strategies.halving import ASHA, THIRDS, Hyperband, SuccessiveHalving
from nasopt.strategies.random import RandomSearch
from nasopt.trial import Objective, Problem, Trial, nondominated

EPOCHS = (12 / 200, 1.0)
"""The fidelities of NAS-Bench-201."""


@dataclass(frozen=True)
class Case:
    """A problem of several fidelities.

    Attributes:
        fidelities, eta: the ladder; a rung costs eta times the one below.
        score: the accepted trials -> a number, large is good.
    """

    title: str
    problem: Problem
    estimate: Estimator
    fidelities: tuple[float, ...]
    eta: float
    score: Callable[[Sequence[Trial]], float]

    def strategies(self) -> Mapping[str, Callable[[int], Strategy]]:
        """By name, from a seed."""
        levels, eta, problem = self.fidelities, self.eta, self.problem
        return {"random": partial(RandomSearch, problem),
                "successive halving": lambda seed: SuccessiveHalving(problem, seed, width=round(eta ** (len(levels) - 1)),
                                                                     fidelities=levels, eta=eta),
                "hyperband": lambda seed: Hyperband(problem, seed, fidelities=levels, eta=eta),
                "asha": lambda seed: ASHA(problem, seed, fidelities=levels, eta=eta)}


def synthetic() -> Case:
    """DTLZ2 with three objectives, misjudged at low fidelity."""
    exact = dtlz2()
    reference = np.full(3, 2.5)
    whole = hypervolume(exact.front, reference)

    def score(trials: Sequence[Trial]) -> float:
        return hypervolume([exact.problem.values(t.metrics) for t in trials], reference) / whole

    return Case("DTLZ2, bias 0.15 and noise 0.15 at fidelity 0: hypervolume / that of the true front", exact.problem,
                LowFidelity(exact, 0.15, 0.15), THIRDS, 3, score)


def cells(table: tables.Table, latency: str = "") -> Case:
    """NAS-Bench-201 on CIFAR-10: searched on 12-epoch validation and 200-epoch results of one seed, reported on the 200-epoch
    test accuracy of other trainings."""
    seen = {"accuracy": {EPOCHS[0]: "val12_c10", 1.0: "split25k_test200_c10_1seed"}}
    aims = [Objective("accuracy", "%", minimise=False)]
    if latency:
        seen["latency"] = dict.fromkeys(EPOCHS, latency)
        aims.append(Objective("latency", "ms"))
    problem = Problem(table.space, tuple(aims))
    report = table.problem(["test200_c10", *([latency] if latency else [])])
    found = tables.Lookup(table, [o.name for o in report.objectives])
    front = table.front(report)
    reference = reference_point(*bounds(front))

    def score(trials: Sequence[Trial]) -> float:
        """Of the trials that look best, what they are on the report's columns."""
        looks = np.array([problem.values(t.metrics) for t in trials])
        true = np.array([report.values(found(t.ask)) for t, best in zip(trials, nondominated(looks), strict=True) if best])
        return hypervolume(true, reference) / hypervolume(front, reference) if latency else float(-true[:, 0].mean())

    title = ("NAS-Bench-201, CIFAR-10: " + ("accuracy and latency on a Raspberry Pi 4, hypervolume / that of the true front"
                                            if latency else "test accuracy of the best, % (optimum 94.37)"))
    return Case(title, problem, tables.Fidelities(table, seen), EPOCHS, round(1 / EPOCHS[0]), score)


def one(case: Case, strategy: Strategy, seed: int, costs: Sequence[float]) -> list[float]:
    """The score when each cost is spent, asking one after the other."""
    spent, number = 0.0, 0
    results: list[Trial] = []
    scores: list[float] = []
    while len(scores) < len(costs):
        (ask,) = strategy.ask(1, number)
        while len(scores) < len(costs) and spent + ask.fidelity > costs[len(scores)] + 1e-9:
            scores.append(case.score(results) if results else 0.0)
        trial = Trial(ask, case.estimate(ask), 0.0)
        spent, number = spent + ask.fidelity, number + 1
        strategy.tell([trial])
        if case.problem.accepts(trial):
            results.append(trial)
    return scores


def rows(case: Case, seeds: Sequence[int], costs: Sequence[float]) -> list[list[Any]]:
    """One row a strategy."""
    scores = {name: np.array([one(case, make(seed), seed, costs) for seed in seeds])
              for name, make in case.strategies().items()}
    others = [name for name in scores if name != "random"]
    tests = {name: stats.paired(scores[name][:, -1], scores["random"][:, -1]) for name in others}
    adjusted = dict(zip(others, stats.holm([tests[name].p for name in others]).tolist(), strict=True))
    out: list[list[Any]] = []
    for name, values in scores.items():
        t = tests.get(name)
        out.append([name, *(stats.iqm(values[:, k]) for k in range(len(costs))),
                    t and t.shift, t and f"{t.low:.4g} to {t.high:.4g}", t and t.a12, adjusted.get(name)])
        print(case.title, out[-1], flush=True)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Measures every case and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, default=Path(os.environ.get("NASOPT_TABLES", "tables")))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--cost", type=float, default=100.0)
    given = parser.parse_args(argv)
    table, seeds = tables.load(given.tables / "nb201"), range(given.seeds)
    costs = [given.cost / 4, given.cost / 2, given.cost]
    found = [{"caption": case.title,
              "columns": ["search", *(f"at cost {c:g}" for c in costs), "above random", "95 % interval", "A12", "p (Holm)"],
              "rows": rows(case, seeds, costs)} for case in (synthetic(), cells(table), cells(table, "c10__raspi4_latency"))]
    write("fidelity", {
        "title": "Halving against random search at equal cost",
        "text": "Cost: the sum of the fidelities of all evaluations, in full trainings; a promotion is trained anew. "
                f"Interquartile mean over {given.seeds} seeds of what full fidelity found. Against random search at the last "
                "cost: Hodges-Lehmann shift with its interval, A12, and the paired Wilcoxon test with Holm's adjustment within "
                f"the table. NAS-Bench-201: fidelities {EPOCHS[0]:g} (12 epochs, validation accuracy) and 1 (200 epochs, "
                "another training than the reported one).",
        "tables": found}, list(seeds))


if __name__ == "__main__":
    main()
