"""NSGA-II: its speed against pymoo's, and its run times against the theorems; NSGA-III against pymoo's. About five minutes
on a quiet machine, ``--quick`` for less than one; ``speed``, ``run_times``, ``ties`` or ``nsga3`` measures that part alone.

Both libraries search one problem, DTLZ2 on a grid, with population 100 for 100 generations: nasopt through its public
ask/tell with a trial object an evaluation, pymoo by `minimize` with integer variables and a vectorised evaluation. Runs
alternate in one process; the median of the processor time counts, which a busy machine distorts least. The hypervolume
of everything evaluated tells whether speed was bought.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from common import write
from pymoo.algorithms.moo.nsga2 import NSGA2 as PymooNSGA2  # noqa: N811
from pymoo.algorithms.moo.nsga3 import NSGA3 as PymooNSGA3  # noqa: N811
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem as PymooProblem
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.optimize import minimize

from nasopt.analysis.hypervolume import hypervolume
from nasopt.benchmarks.synthetic import Synthetic, dtlz2, lotz, one_min_max
from nasopt.space import layout
from nasopt.strategies.evolution import NSGA2, Evolution, balanced, plain
from nasopt.strategies.random import RandomSearch
from nasopt.strategies.reference import NSGA3, directions
from nasopt.trial import Trial

REFERENCE = np.full(3, 1.1)


def ours(s: Synthetic, seed: int, population: int, generations: int) -> np.ndarray:
    """All values evaluated, shape (evaluations, objectives)."""
    strategy, seen = NSGA2(s.problem, seed, population), []
    for k in range(generations):
        asks = strategy.ask(population, k * population)
        metrics = s.metrics([a.arch for a in asks])
        strategy.tell([Trial(a, m, 0.0) for a, m in zip(asks, metrics, strict=True)])
        seen += metrics
    return np.array([list(m.values()) for m in seen])


def theirs(s: Synthetic, seed: int, population: int, generations: int) -> np.ndarray:
    """The same with pymoo: uniform crossover, polynomial mutation with rounding, duplicates eliminated."""
    seen: list[np.ndarray] = []

    class Grid(PymooProblem):
        def __init__(self) -> None:
            super().__init__(n_var=10, n_obj=3, xl=0, xu=10, vtype=int)

        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *_: object, **__: object) -> None:
            out["F"] = s.measure(np.asarray(x, dtype=np.int64))
            seen.append(out["F"])

    algorithm = PymooNSGA2(pop_size=population, sampling=IntegerRandomSampling(), crossover=UniformCrossover(prob=0.5),
                           mutation=PM(vtype=float, repair=RoundingRepair()), eliminate_duplicates=True)
    minimize(Grid(), algorithm, ("n_gen", generations), seed=seed, verbose=False)
    return np.concatenate(seen)


def random(s: Synthetic, seed: int, population: int, generations: int) -> np.ndarray:
    """As many random evaluations."""
    asks = RandomSearch(s.problem, seed).ask(population * generations, 0)
    return np.array([list(m.values()) for m in s.metrics([a.arch for a in asks])])


def speed(repeats: int) -> dict[str, Any]:
    """Processor seconds and hypervolume of the three, alternating."""
    s = dtlz2()
    runs: dict[str, Callable[..., np.ndarray]] = {
        "nasopt NSGA-II": ours,
        "pymoo NSGA-II": theirs,
        "nasopt random search": random,
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    volume: dict[str, list[float]] = {name: [] for name in runs}
    for seed in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            values = run(s, seed, 100, 100)
            seconds[name].append(time.process_time() - start)
            volume[name].append(hypervolume(values, REFERENCE) / hypervolume(s.front, REFERENCE))
    base = median(seconds["pymoo NSGA-II"])
    rows = [
        [n, median(seconds[n]), min(seconds[n]), max(seconds[n]), base / median(seconds[n]), median(volume[n])]
        for n in runs
    ]
    return {
        "caption": f"10,000 evaluations (population 100, 100 generations), DTLZ2 with 10 variables of 11 levels and 3 "
        f"objectives; {repeats} alternating runs each",
        "columns": [
            "search",
            "CPU seconds (median)",
            "min",
            "max",
            "times as fast as pymoo",
            "hypervolume / true front's (median)",
        ],
        "rows": rows,
    }


def generations_to_the_front(s: Synthetic, strategy: Evolution, limit: int) -> int | None:
    """Generations until the population holds the whole front; None: not within ``limit``."""
    first = 0
    for k in range(limit):
        asks = strategy.ask(10**6, first)
        first += len(asks)
        strategy.tell([Trial(a, m, 0.0) for a, m in zip(asks, s.metrics([a.arch for a in asks]), strict=True)])
        if s.found(strategy.pool.values) == len(s.front):
            return k + 1
    return None


def run_times(sizes: list[int], seeds: range) -> dict[str, Any]:
    """Evaluations until the front is complete over what the theorems give."""
    rows: list[list[Any]] = []
    laws: list[tuple[str, Callable[[int], Synthetic], Callable[[int], float], float]] = [
        ("OneMinMax / (N n ln n)", one_min_max, lambda n: n * np.log(n), 2.0),
        ("LOTZ / (N n²)", lotz, lambda n: n**2, 0.6),
    ]
    for name, make, law, limit in laws:
        for n in sizes:
            s, ratios = make(n), []
            for seed in seeds:
                count = generations_to_the_front(
                    s, NSGA2(s.problem, seed, 4 * (n + 1), immigrants=0, repeat=True), 20 * n * n
                )
                ratios.append(float("inf") if count is None else count / law(n))
            rows.append([name, n, 4 * (n + 1), float(np.mean(ratios)), float(max(ratios)), limit, max(ratios) <= limit])
            print(rows[-1], flush=True)
    return {
        "caption": f"Evaluations until the whole front is held, as a ratio to the theorem's growth; {len(seeds)} seeds",
        "columns": ["ratio", "n", "N", "mean", "max", "limit", "within"],
        "rows": rows,
    }


def three_objectives(seeds: range, generations: int) -> dict[str, Any]:
    """Balanced against plain tie-breaking on the 3-objective OneMinMax with 121 points."""
    s, rows = one_min_max(20, 3), []
    for name, survival in (("balanced", balanced), ("plain", plain)):
        strategies = [NSGA2(s.problem, seed, 484, survival=survival, immigrants=0, repeat=True) for seed in seeds]
        counts = [generations_to_the_front(s, strategy, generations) for strategy in strategies]
        held = [s.found(strategy.pool.values) for strategy in strategies]
        done = [c for c in counts if c is not None]
        rows.append([name, len(done), max(done, default=None), min(held), max(held)])
    return {
        "caption": f"3-objective OneMinMax, n=20, 121 points, N=484, ≤ {generations} generations, {len(seeds)} seeds",
        "columns": [
            "ties in crowding distance",
            "complete",
            "generations (max)",
            "points held at the end (min)",
            "(max)",
        ],
        "rows": rows,
    }


def last_population(strategy: Evolution, s: Synthetic, generations: int) -> np.ndarray:
    """Its values, shape (population, objectives)."""
    first = 0
    for _ in range(generations):
        asks = strategy.ask(10**6, first)
        first += len(asks)
        strategy.tell([Trial(a, m, 0.0) for a, m in zip(asks, s.metrics([a.arch for a in asks]), strict=True)])
    return strategy.pool.values


def pymoo_nsga3(s: Synthetic, seed: int, population: int, generations: int) -> np.ndarray:
    """The last population of pymoo's NSGA-III with our directions and our variation."""
    lay, generator, m = layout(s.problem.space), np.random.default_rng(seed), len(s.problem.objectives)

    class Grid(PymooProblem):
        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *_: object, **__: object) -> None:
            out["F"] = s.measure(np.asarray(x, dtype=np.int64))

    class Vary(Mutation):
        def _do(self, problem: object, x: np.ndarray, **_: object) -> np.ndarray:
            return lay.vary(np.asarray(x, dtype=np.int64), generator)

    algorithm = PymooNSGA3(directions(m, population), pop_size=population, sampling=IntegerRandomSampling(),
                           crossover=UniformCrossover(prob=0.5), mutation=Vary(), eliminate_duplicates=True)
    grid = Grid(n_var=len(lay.genes), n_obj=m, xl=0, xu=lay.options - 1, vtype=int)
    return minimize(grid, algorithm, ("n_gen", generations), seed=seed, verbose=False).pop.get("F")


def niching(seeds: range) -> dict[str, Any]:
    """Hypervolume of the last population after 60 generations, by method and problem."""
    rows: list[list[Any]] = []
    for objectives, levels, population in ((3, 11, 92), (3, 41, 92), (5, 11, 128)):
        s, reference = dtlz2(10, levels, objectives), np.full(objectives, 1.1)
        runs: dict[str, Callable[[int, Synthetic, int], np.ndarray]] = {
            "nasopt NSGA-III": lambda k, s, n: last_population(NSGA3(s.problem, k, n, immigrants=0), s, 60),
            "pymoo NSGA-III": lambda k, s, n: pymoo_nsga3(s, k, n, 60),
            "nasopt NSGA-II": lambda k, s, n: last_population(NSGA2(s.problem, k, n, immigrants=0), s, 60),
        }
        whole = hypervolume(s.front, reference)
        for name, run in runs.items():
            found = [hypervolume(run(seed, s, population), reference) / whole for seed in seeds]
            rows.append([objectives, levels, population, name, float(np.mean(found)), float(np.std(found, ddof=1))])
    return {
        "caption": f"Share of the true front's hypervolume that the last population has, DTLZ2 with 10 variables, 60 "
        f"generations, no immigrants; {len(seeds)} seeds",
        "columns": ["objectives", "levels a variable", "population", "method", "mean", "standard deviation"],
        "rows": rows,
    }


PARTS = {
    "speed": (
        "NSGA-II: speed",
        "nasopt runs through its public ask/tell with one ask and one trial object an evaluation; pymoo evaluates "
        "whole matrices."),
    "run_times": (
        "NSGA-II: run times against the theorems",
        "Zheng, Liu & Doerr (AAAI 2022) prove O(N n log n) and O(N n²) evaluations for N ≥ 4(n+1). Mutation with "
        "uniform crossover (probability 1/2), binary tournaments."),
    "ties": (
        "NSGA-II: ties with three objectives",
        "With plain tie-breaking a constant fraction of the front is missed for exponential time (Zheng & Doerr, arXiv "
        "2211.13084); balanced: Doerr, Ivan & Krejca (arXiv 2412.11931)."),
    "nsga3": (
        "NSGA-III: against pymoo's, and against NSGA-II with more objectives",
        "Both implementations of NSGA-III (Deb & Jain, IEEE TEC 2014) have the same reference directions and variation."),
}


def main(parts: list[str], quick: bool) -> None:
    """Measures the parts and writes a record each."""
    for part in parts:
        seeds = range(3 if quick else 9 if part == "speed" else 20)
        if part == "speed":
            table = speed(len(seeds))
        elif part == "run_times":
            table = run_times([10, 20] if quick else [10, 20, 30, 40], seeds)
        elif part == "nsga3":
            table = niching(seeds)
        else:
            table = three_objectives(seeds, 60)
        title, text = PARTS[part]
        write(f"evolution_{part}", {"title": title, "text": text, "tables": [table]}, list(seeds))


if __name__ == "__main__":
    chosen = [a for a in sys.argv[1:] if a in PARTS]
    main(chosen or list(PARTS), "--quick" in sys.argv)
