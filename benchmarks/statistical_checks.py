"""Shows: the statistics against published values, and what they promise under simulation: false positives where there is no
difference, and how often intervals hold what they are for.

    python benchmarks/statistical_checks.py [--runs 2000]

One minute on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from common import write

from nasopt.analysis import stats

DEMSAR = np.array([
    [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967], [0.628, 0.661, 0.654, 0.657],
    [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931], [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625],
    [0.775, 0.838, 0.866, 0.875], [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.9751, 0.975], [0.957, 0.978, 0.946, 0.970]])
"""AUC of four classifiers on 14 data sets (Demšar, JMLR 7, 2006, table 6)."""


def published() -> list[list[Any]]:
    """(quantity, published, ours)."""
    found = stats.friedman(DEMSAR, minimise=False)
    z, p = stats.against_control(found)
    return [["average ranks", "3.143, 2.000, 2.893, 1.964", ", ".join(f"{r:.3f}" for r in found.ranks)],
            ["Friedman's chi²", 9.2786, found.chi2], ["Iman and Davenport's F", 3.686, found.f],
            ["Nemenyi's critical difference, .05", 1.25, stats.critical_difference(found)],
            ["the same, .10", 1.12, stats.critical_difference(found, 0.1)],
            ["Bonferroni-Dunn's, .10", 1.04, stats.bonferroni_dunn(found, 0.1)],
            ["|z| against the control", "2.342, .512, 2.415", ", ".join(f"{abs(v):.3f}" for v in z)],
            ["Holm's p", ".0472, .608, .0472", ", ".join(f"{v:.4f}" for v in p)],
            ["A12 of 1..5 and 2..6", 0.32, stats.a12(range(1, 6), range(2, 7))], ["IQM of 1..8", 4.5, stats.iqm(range(1, 9))],
            ["least p of 5 pairs (Wilcoxon)", 0.0625, stats.paired(np.arange(1.0, 6), np.zeros(5)).p],
            ["least p of 6 pairs", 0.03125, stats.paired(np.arange(1.0, 7), np.zeros(6)).p]]


def simulated(runs: int) -> list[list[Any]]:
    """(promise, nominal, share of the runs, wanted)."""
    def share(seed: int, once: Callable[[np.random.Generator], bool], count: int = runs) -> float:
        rng = np.random.default_rng(seed)
        return float(np.mean([once(rng) for _ in range(count)]))

    def pairs(rng: np.random.Generator, shift: float, n: int = 20) -> stats.Paired:
        return stats.paired(rng.normal(shift, 1, n), rng.normal(size=n))

    def iqm(rng: np.random.Generator) -> bool:
        found = stats.iqm_interval([rng.normal(mean, 1, 25) for mean in (0.0, 1.0)], int(rng.integers(2**31)), resamples=500)
        return found.low <= 0.5 <= found.high

    def improvement(rng: np.random.Generator) -> bool:
        a, b = ([rng.normal(mean, 1, 20) for _ in range(2)] for mean in (1.0, 0.0))
        found = stats.probability_of_improvement(a, b, int(rng.integers(2**31)), resamples=500)
        return found.low <= 0.7602 <= found.high

    def shifted(rng: np.random.Generator) -> bool:
        found = pairs(rng, 0.5)
        return found.low <= 0.5 <= found.high

    false = share(0, lambda rng: pairs(rng, 0).significant)
    return [["paired test of 20 seeds without a difference: significant", "5 %", f"{false:.2%}",
             "4 to 6 %", runs],
            ["interval of a shift of .5, 20 seeds: holds it", "95 %", f"{share(1, shifted):.2%}", "93 to 97 %", runs],
            ["bootstrap interval of the IQM, 2 tasks of 25 runs: holds it", "95 %", f"{share(2, iqm, runs // 4):.2%}",
             "bootstraps of few runs are a little narrow", runs // 4],
            ["the same of the probability of improvement, 2 tasks of 20 runs", "95 %", f"{share(3, improvement, runs // 4):.2%}",
             "likewise", runs // 4]]


def main(argv: Sequence[str] | None = None) -> None:
    """Computes and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    runs = parser.parse_args(argv).runs
    tables = [{"caption": "Published values and ours", "columns": ["quantity", "published", "ours"], "rows": published()},
              {"caption": "Promises under simulation", "columns": ["promise", "nominal", "found", "wanted", "runs"],
               "rows": simulated(runs)}]
    for table in tables:
        print(*table["rows"], sep="\n")
    write("statistical_checks", {"title": "Statistics: reference values and error rates", "tables": tables }, [0])


if __name__ == "__main__":
    main()
