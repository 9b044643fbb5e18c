"""Shows: whether brief trainings rank networks better that start with the relaxed network's weights. Each of the 81 networks of
`benchmarks/mini.py` is trained for a few steps from either start and ranked by its validation error.

    python benchmarks/warm_weights.py [--seeds 8] [--steps 300] [--epochs 20] [--networks 24] [--keep FOLDER]

The truth is the mean test error of three long trainings. A seed decides the initial weights, which are the relaxed network's as
well, the relaxed network's training, and the batches. About twelve minutes.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import mini
import numpy as np
import torch
from common import write
from scipy import stats
from torch import nn

from nasopt import seed as seeds
from nasopt import space
from nasopt.analysis.comparison import Analysis, Measure, analyse
from nasopt.nets import choices, train
from nasopt.nets.differentiable import DifferentiableSearch
from nasopt.strategies.gradient import RECIPES, SLICES, Gradient
from nasopt.trial import Objective, Problem

NETWORKS, COLD, MOVING = 81, "initial weights", ", of the moment"
STARTS = {COLD: (10, 40, 80), "nasopt": (10, 40), "darts1": (10, 40), "nasopt" + MOVING: (10, 40)}
"""What the networks start with, and for how many steps each is trained: the initial weights, those that a recipe's relaxed
network has in the end, or those that it has when it is their turn, spread over its training."""

EQUAL = {"as many steps": ((10, 10), (40, 40)), "as much time": ((80, 40),)}
"""Steps from initial weights and from a relaxed network's that are compared. The training of the relaxed network takes about as
long as 40 steps of each of 24 networks."""

JUDGED = ("tau", "some")
"""The measures whose differences are tested."""

DRAWS = 2000
"""Random sets of networks, over which the regret of the one that looks best is averaged."""

Found = dict[str, list[list[float]]]


def portions(name: str, seed: int, steps: int) -> Iterator[tuple[nn.Module, Sequence[int]]]:
    """A network and which of all networks begin with its weights now: all of them, or those whose turn, in random order, is after
    this slice of its training."""
    net, recipe = mini.network(seed), name.removesuffix(MOVING)
    turns = seeds.rng(seed, 0, "turns").permutation(NETWORKS)
    if name != COLD:
        training, validation, _ = mini.digits()
        search = DifferentiableSearch(net, training, validation, RECIPES[recipe].within(steps), steps, seed,
                                      train.Augment.for_images((1, 8, 8)))
        gradient = Gradient(Problem(choices.space_of(net), (Objective("error"),)), seed, search, recipe)
        for k in range(SLICES):
            gradient.ask(1, k)
            if name != recipe:
                yield net, turns[NETWORKS * k // SLICES:NETWORKS * (k + 1) // SLICES].tolist()
    if name in (COLD, recipe):
        yield net, range(NETWORKS)


def once(job: tuple[str, int, argparse.Namespace]) -> Found:
    """The validation errors of all networks after every number of steps, and the processor seconds of the source and of a
    network's training."""
    name, seed, options = job
    torch.set_num_threads(1)
    training, validation, _ = mini.digits()
    archs, epoch = list(space.everything(choices.space_of(mini.network(0)))), train.steps_of(training, train.Recipe(epochs=1))
    lengths, began = STARTS[name], time.process_time()
    errors, seconds = np.empty((len(lengths), NETWORKS)), np.zeros(len(lengths))
    for net, some in portions(name, seed, options.steps):
        for k, steps in enumerate(lengths):
            before = time.process_time()
            for one in some:
                alone = choices.extract(net, archs[one])
                train.fit(alone, training, train.Recipe(epochs=steps / epoch), train.Augment.for_images((1, 8, 8)), seed)
                errors[k, one] = 100 * train.error(alone, validation)
            seconds[k] += time.process_time() - before
    source = time.process_time() - began - float(seconds.sum())
    return {"source": [[source]], "errors": errors.tolist(), "seconds": (seconds[:, None] / NETWORKS).tolist()}


def regret(errors: np.ndarray, truth: np.ndarray, networks: int) -> float:
    """By how much the network that looks best of so many random ones is worse than the best of all; the mean over `DRAWS` sets,
    the same for every start."""
    generator = seeds.rng(0, networks, "sets")
    sets = np.array([generator.permutation(len(truth))[:networks] for _ in range(DRAWS)])
    best = sets[np.arange(DRAWS), errors[sets].argmin(axis=1)]
    return float(truth[best].mean() - truth.min())


def main() -> None:
    """Trains what is not kept, writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--epochs", type=float, default=20.0)
    for name, default in (("seeds", 8), ("steps", 300), ("networks", 24), ("processes", os.cpu_count() or 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    archs = list(space.everything(choices.space_of(mini.network(0))))
    with ProcessPoolExecutor(options.processes) as pool:
        table = mini.truths(pool, archs, options.epochs, options.keep)
        runs: dict[str, list[Found]] = {}
        for name, lengths in STARTS.items():
            key = "-".join(map(str, ("warm", name.replace(" ", "_"), *lengths, options.seeds, options.steps)))
            jobs = [(name, seed, options) for seed in range(options.seeds)]
            runs[name] = mini.kept(options.keep, key, lambda jobs=jobs: list(pool.map(once, jobs)))
    report(runs, table.mean(axis=1), options)


def report(runs: dict[str, list[Found]], truth: np.ndarray, options: argparse.Namespace) -> None:
    """Writes the record."""
    measures = {
        Measure("tau", "Kendall's τ", minimise=False): lambda errors: float(stats.kendalltau(errors, truth).statistic),
        Measure("rho", "Spearman's ρ", minimise=False): lambda errors: float(stats.spearmanr(errors, truth).statistic),
        Measure("some", f"regret, best of {options.networks}", "points"): lambda errors: regret(errors, truth, options.networks),
        Measure("all", "regret, best of all", "points"): lambda errors: regret(errors, truth, NETWORKS)}
    scores = {(measure.key, name, steps): np.array([of(np.array(run["errors"][k])) for run in found])
              for measure, of in measures.items() for name, found in runs.items() for k, steps in enumerate(STARTS[name])}
    rows, compared = list[list[Any]](), list[list[Any]]()
    for name, found in runs.items():
        before = float(np.mean([run["source"] for run in found]))
        for k, steps in enumerate(STARTS[name]):
            seconds = options.networks * float(np.mean([run["seconds"][k] for run in found]))
            rows.append([name, steps, *(float(scores[m.key, name, steps].mean()) for m in measures), seconds, before + seconds])
    for measure in (m for m in measures if m.key in JUDGED):
        means = {at: {name: np.mean([scores[measure.key, name, cold if name == COLD else warm] for cold, warm in pairs], axis=0)
                      for name in STARTS} for at, pairs in EQUAL.items()}
        judged = analyse(measure, means, control=COLD)
        compared += told(judged)
    text = (f"{NETWORKS} networks, relaxed networks of {options.steps} steps. \"As many steps\" is the mean of 10 and 40 steps "
            "from either start, as in a run that trains a relaxed network anyway; \"as much time\" compares 80 steps from "
            f"{COLD} with 40. {judged.test} {judged.refusal}")
    write("warm_weights", {
        "title": "Brief trainings from the relaxed network's weights", "text": text.strip(),
        "scores": {f"{key}, {name}, {steps} steps": values.tolist() for (key, name, steps), values in scores.items()},
        "tables": [
            {"caption": "The order by validation error after a brief training, against the truth; means over the seeds",
             "columns": ["start", "steps", *(m.label for m in measures), f"seconds for {options.networks}",
                         "and the relaxed network"], "rows": rows},
            {"caption": f"Against {COLD}", "columns": ["measure", "at", "start", "Hodges-Lehmann estimate, 95 % interval", "p",
                                                       "adjusted", "verdict"], "rows": compared}]},
        list(range(options.seeds)))


def told(found: Analysis) -> list[list[Any]]:
    """A row for every pair of a comparison."""
    return [[found.measure.label, pair.problem, pair.a, f"{pair.shift:.3f} [{pair.low:.3f}, {pair.high:.3f}]", pair.p,
             pair.adjusted, found.verdict(pair)] for pair in found.pairs]


if __name__ == "__main__":
    main()
