"""Shows: what dropping options that are worse for certain saves, in queries to the optimum of a space with bad options, and how
often the certificate's promise is broken.

    python benchmarks/progressive.py [--seeds 20]

One minute on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from common import write

from nasopt import space
from nasopt.analysis import stats
from nasopt.benchmarks.synthetic import bad_options
from nasopt.protocols import Strategy
from nasopt.strategies.progressive import Progressive
from nasopt.strategies.random import RandomSearch
from nasopt.trial import Problem, Trial

SEARCHES: dict[str, Callable[[Problem, int], Strategy]] = {
    "random": RandomSearch,
    "progressive, draws only": lambda problem, seed: Progressive(problem, seed, steps=[], exploit=0.0),
    "progressive, draws only, nothing dropped": lambda problem, seed: Progressive(problem, seed, steps=[], exploit=0.0,
                                                                                  gamma=0.99),
    "progressive, half mutants": lambda problem, seed: Progressive(problem, seed, steps=[]),
}


def one(search: Strategy) -> tuple[int, int, bool]:
    """Queries to the optimum, or the size of the space if it was not found; options dropped by then, and whether none of the
    optimum is among them."""
    toy, number = bad_options(), 0
    while asks := search.ask(1, number):
        ask, = asks
        search.tell([Trial(ask, toy(ask), 0.0)])
        number += 1
        if toy(ask)["error"] == 0:
            dropped = search.certificate().dropped if isinstance(search, Progressive) else ()
            return number, len(dropped), all(d.option not in ("good", "0") for d in dropped)
    return space.size(toy.problem.space), len(search.certificate().dropped) if isinstance(search, Progressive) else 0, False


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    seeds = range(parser.parse_args(argv).seeds)
    problem, found, rows = bad_options().problem, dict[str, np.ndarray](), list[list[Any]]()
    for name, make in SEARCHES.items():
        found[name] = np.array([one(make(problem, seed)) for seed in seeds])
        needed = found[name][:, 0]
        test = None if name == "random" else stats.paired(needed, found["random"][:, 0])
        rows.append([name, float(np.median(needed)), int(needed.max()), float(np.median(found[name][:, 1])),
                     int(found[name][:, 2].sum()), test and test.shift, test and f"{test.low:.0f} to {test.high:.0f}",
                     test and test.p])
        print(rows[-1], flush=True)
    adjusted = iter(stats.holm([row[-1] for row in rows[1:]]).tolist())
    for row in rows[1:]:
        row[-1] = next(adjusted)
    write("progressive", {
        "title": "Progressive search in a space with bad options",
        "text": "8,192 architectures, one optimum, three choices of which one option is bad and five that matter little "
                "(`nasopt.benchmarks.synthetic.bad_options`); one after the other, delta = 0.1. Against random search: "
                "Hodges-Lehmann shift of the queries with its interval, paired Wilcoxon test with Holm's adjustment.",
        "tables": [{"caption": f"Queries to the optimum, {len(seeds)} seeds",
                    "columns": ["search", "median", "max", "options dropped (median)", "runs that kept the optimum",
                                "against random", "95 % interval", "p (Holm)"], "rows": rows}]}, list(seeds))


if __name__ == "__main__":
    main()
