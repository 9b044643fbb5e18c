"""Shows: what the members of the hybrid with gradients have of one another. 81 networks of which every training is known (those
of `benchmarks/mini.py`) are searched with every arrow between α and the others, and with each of them cut.

    python benchmarks/arrows.py [--seeds 20] [--queries 24] [--steps 300] [--epochs 20] [--keep FOLDER]

A query is the test error of one of a network's three trainings, drawn by the seed; what is found is judged by the mean of the
three. The training of the relaxed network is not charged and all members are asked as often, so that only what is told differs.
About ten minutes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mini
import numpy as np
import torch
from common import write

from nasopt import seed as seeds
from nasopt import space
from nasopt.analysis.comparison import Measure, analyse
from nasopt.nets import choices, train
from nasopt.nets.differentiable import DifferentiableSearch
from nasopt.pipeline.relaxed import PULL
from nasopt.protocols import Strategy
from nasopt.strategies.bayes import DESIGN
from nasopt.strategies.catalogue import members
from nasopt.strategies.gradient import RECIPES, Gradient
from nasopt.strategies.hybrid import Portfolio
from nasopt.strategies.random import Unseen
from nasopt.trial import Ask, Objective, Problem, Trial

RECIPE, STRIDE = "nasopt", 5
"""Of the gradients; slices before each of their asks, so that four asks see the end of their training."""

ARROWS = {"all arrows": (True, PULL), "α seeds nobody": (False, PULL), "nothing draws α": (True, 0.0),
          "neither": (False, 0.0), "without gradients": None}
"""Whether the others hear of what the gradients asked for, and how strongly the best trials draw α; None: no such member."""


@dataclass
class Deaf:
    """A member that does not hear of the trials of another."""

    member: Strategy
    to: str

    def ask(self, n: int, first: int) -> Sequence[Ask]:
        """What the member asks."""
        return self.member.ask(n, first)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Passes on the trials of all but one."""
        self.member.tell([t for t in trials if t.ask.by != self.to])


def strategy(name: str, problem: Problem, seed: int, steps: int) -> Portfolio:
    """The hybrid with these arrows."""
    unseen = Unseen(problem)
    found: dict[str, Strategy] = dict(members(problem, seed, (), None, unseen))
    if (arrows := ARROWS[name]) is not None:
        heard, pull = arrows
        training, validation, _ = mini.digits()
        search = DifferentiableSearch(mini.network(seed), training, validation, RECIPES[RECIPE].within(steps), steps, seed,
                                      train.Augment.for_images((1, 8, 8)))
        found = found if heard else {key: Deaf(member, RECIPE) for key, member in found.items()}
        found[RECIPE] = Gradient(problem, seed, search, RECIPE, stride=STRIDE, pull=pull, unseen=unseen)
    return Portfolio(problem, seed, found, start=DESIGN, floor=1.0)


def once(job: tuple[str, int, dict[str, list[float]], argparse.Namespace]) -> list[float]:
    """The mean error of the best network so far, by its one training, after every query."""
    name, seed, errors, options = job
    torch.set_num_threads(1)
    problem = Problem(choices.space_of(mini.network(seed)), (Objective("error"),))
    hybrid, curve, best = strategy(name, problem, seed, options.steps), list[float](), (np.inf, np.inf)
    draws = dict(zip(errors, seeds.rng(seed, 0, "training").integers(mini.TRUTHS, size=len(errors)), strict=True))
    for number in range(options.queries):
        ask, = hybrid.ask(1, number)
        key = space.key(ask.arch)
        seen = errors[key][draws[key]]
        hybrid.tell([Trial(ask, {"error": seen / 100}, 1.0)])
        best = min(best, (seen, float(np.mean(errors[key]))))
        curve.append(best[1])
    return curve


def main() -> None:
    """Trains what is not kept, searches, writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--epochs", type=float, default=20.0)
    for name, default in (("seeds", 20), ("queries", 24), ("steps", 300), ("processes", os.cpu_count() or 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    archs = list(space.everything(choices.space_of(mini.network(0))))
    with ProcessPoolExecutor(options.processes) as pool:
        table = mini.truths(pool, archs, options.epochs, options.keep)
        errors = {space.key(arch): row.tolist() for arch, row in zip(archs, table, strict=True)}
        curves: dict[str, Any] = {}
        for name in ARROWS:
            jobs = [(name, seed, errors, options) for seed in range(options.seeds)]
            curves[name] = np.array(list(pool.map(once, jobs))) - table.mean(axis=1).min()
            print(name, curves[name].mean().round(3), flush=True)
    report(curves, options)


def report(curves: dict[str, Any], options: argparse.Namespace) -> None:
    """Writes the record."""
    control = next(iter(ARROWS))
    found = analyse(Measure("regret", "mean regret", "points"), {"81 networks": {k: c.mean(axis=1) for k, c in curves.items()}},
                    control=control)
    pairs = {pair.a: pair for pair in found.pairs}
    rows, at = [], [max(1, options.queries * k // 3) for k in (1, 2, 3)]
    for name, c in curves.items():
        pair = pairs.get(name)
        told = [None] * 3 if pair is None else [f"{pair.shift:.3f} [{pair.low:.3f}, {pair.high:.3f}]", pair.p, pair.adjusted]
        rows.append([name, len(c), *(float(c[:, k - 1].mean()) for k in at), float(c.mean()), *told])
    text = f"{options.queries} queries, {RECIPE} with {options.steps} steps as a member. {found.test} {found.refusal}"
    write("arrows", {
        "title": "The hybrid with gradients, with each arrow cut", "text": text.strip(),
        "curves": {name: c.tolist() for name, c in curves.items()},
        "tables": [{"caption": "Regret in points: mean test error of the best network so far, less that of the best one",
                    "columns": ["arrows", "seeds", *(f"after {k}" for k in at), "mean over the queries",
                                f"more than {control}: Hodges-Lehmann estimate, 95 % interval", "p", "adjusted"],
                    "rows": rows}]}, list(range(options.seeds)))


if __name__ == "__main__":
    main()
