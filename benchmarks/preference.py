"""Shows: one preference-conditioned search (nasopt.nets.preference) against NSGA-II on a supernet at equal CPU time, both with
the latency of a Raspberry Pi 4 known of 25 networks only, as an additive table; judged by the table of NAS-Bench-201.

    python benchmarks/preference.py --data CIFAR-10 [--tables FOLDER] [--seeds 0 1 2] [--steps 600] [--images 10000] [--size 16]
                                    [--channels 8] [--cells 1] [--quick]

The networks are small ones (channels, cells a stage, images averaged down to size x size), the objectives those of the published
ones: error after 200 epochs on CIFAR-10's test images, which no search sees, and measured latency. NSGA-II trains its supernet
for half of the CPU time that the preference-conditioned search took, and evaluates inherited weights for the other half. One
thread. --quick: a minute, to see that it runs; the record is then called preference-quick.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write
from torch.nn import functional

from nasopt import seed as seeds
from nasopt.analysis.hypervolume import bounds, hypervolume, normalise
from nasopt.benchmarks import tables
from nasopt.cost.lookup import Lookup, additive, compared
from nasopt.estimators.images import OneShot
from nasopt.nets import supernet, train
from nasopt.nets.expected import Cost
from nasopt.nets.export import nchw
from nasopt.nets.preference import Device, PreferenceSearch
from nasopt.run.search import Budget, search
from nasopt.space import Arch, layout
from nasopt.spaces.nb201 import SPACE, nb201
from nasopt.strategies.evolution import NSGA2
from nasopt.tasks.data import load, split
from nasopt.trial import Ask, Metrics, Objective, Problem

TEST, LATENCY, DEVICE = "test200_c10", "c10__raspi4_latency", "raspi4"
WORST = 15.0
"""Error in % of the front's other end, for the frame: networks that learn nothing have 90."""

GRID = [[1 - c, c] for c in np.linspace(0, 1, 41).tolist()]
AUGMENT = train.Augment(flip=True, translate=1)
TRIED = 8
"""Steps of the supernet that are timed beforehand; they are not counted."""


def images(path: str, count: int, size: int, seed: int) -> tuple[train.Images, train.Images]:
    """Two halves of so many training images, averaged down to size x size."""
    data = load(path)
    index = np.sort(seeds.rng(seed, 0, "images").permutation(split(data, seed).train)[:count])
    x = functional.adaptive_avg_pool2d(nchw(torch.from_numpy(data.x[index]), data.layout).float(), size)
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3))
    whole = train.Images.all(x, torch.from_numpy(data.y[index]), mean, std)
    order = torch.from_numpy(seeds.rng(seed, 0, "halves").permutation(len(index)))
    return whole.part(order[::2]), whole.part(order[1::2])


def lookup_of(table: tables.Table) -> tuple[Lookup, int]:
    """The additive table, and from how many measured networks it was made."""
    values, asked = table.column(LATENCY).values, list[int]()

    def measured(arch: Arch) -> float:
        asked.append(table.row(arch))
        return float(values[asked[-1]])

    return additive(SPACE, measured, "latency_ms", DEVICE, check=0), len(asked)


def network(given: argparse.Namespace, seed: int) -> torch.nn.Module:
    """The relaxed network, and the supernet: one class, one start."""
    torch.manual_seed(seed)
    return nb201(10, given.channels, given.cells, affine=False)


def preferences(given: argparse.Namespace, lookup: Lookup, parts: tuple[train.Images, train.Images],
                seed: int) -> tuple[list[Arch], float]:
    """The front of the search for all preferences, and its CPU seconds."""
    net, began = network(given, seed), time.process_time()
    found = PreferenceSearch(net, *parts, [Device([Cost(net, [lookup], DEVICE)])], given.steps, seed, AUGMENT)
    found.run(given.steps)
    front: list[Arch] = list(found.front(GRID))
    return front, time.process_time() - began


def evolution(given: argparse.Namespace, lookup: Lookup, parts: tuple[train.Images, train.Images], seed: int,
              seconds: float) -> tuple[list[Arch], float, int]:
    """The front by inherited weights and the same lookup, CPU seconds, and evaluations."""
    began = time.process_time()
    supernet.fit(network(given, seed), parts[0], train.Recipe(batch=64), AUGMENT, TRIED, seed)
    a_step = (time.process_time() - began) / TRIED
    net, began = network(given, seed), time.process_time()
    supernet.fit(net, parts[0], train.Recipe(batch=64), AUGMENT, max(1, int(seconds / 2 / a_step)), seed)
    one_shot = OneShot(net, *parts, calibration=512)

    def estimate(ask: Ask) -> Metrics:
        return {**one_shot(ask), "latency_ms": float(lookup.costs([ask.arch])[0])}

    problem = Problem(SPACE, (Objective("error"), Objective("latency_ms", "ms")))
    study = search(problem, NSGA2(problem, seed), estimate, budget=Budget(trials=15_625), seed=seed,
                   stop=lambda trials: "CPU time" if trials and time.process_time() - began > seconds else "")
    return [t.ask.arch for t in study.front()], time.process_time() - began, len(study.trials)


def judged(table: tables.Table, archs: Sequence[Arch]) -> np.ndarray:
    """Published error and latency, (n, 2)."""
    rows = [table.row(arch) for arch in archs]
    return np.stack([100 - table.column(TEST).values[rows], table.column(LATENCY).values[rows]], axis=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Searches with every seed and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tables", type=Path, default=Path(os.environ.get("NASOPT_TABLES", "tables")))
    for name, default in (("steps", 600), ("images", 10_000), ("size", 16), ("channels", 8), ("cells", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(argv)
    if given.quick:
        given.steps, given.images, given.size, given.channels, given.seeds = 60, 512, 8, 4, [0]
    torch.set_num_threads(1)
    table = tables.load(given.tables / "nb201")
    lookup, measured = lookup_of(table)
    fit = compared(lookup, lambda a: float(table.column(LATENCY).values[table.row(a)]), 1000)
    true = table.front(table.problem([TEST, LATENCY])) + np.array([100.0, 0.0])
    frame = bounds(true[true[:, 0] <= WORST])

    def volume(values: np.ndarray) -> float:
        """Within the frame and its margin."""
        return hypervolume(normalise(values, *frame), [1.1, 1.1])

    whole, lines = volume(true), list[list[Any]]()
    for seed in given.seeds:
        parts = images(given.data, given.images, given.size, seed)
        front, seconds = preferences(given, lookup, parts, seed)
        other, spent, evaluations = evolution(given, lookup, parts, seed, seconds)
        drawn = layout(SPACE).archs(layout(SPACE).random(seeds.rng(seed, 0, "random front"), len(front)))
        for name, archs, took, count in (("preference", front, seconds, None), ("nsga2", other, spent, evaluations),
                                         ("random, as many as preference's front", drawn, 0.0, None)):
            values = judged(table, archs)
            lines.append([seed, name, len(archs), count, round(took, 1), volume(values) / whole, float(values[:, 0].min()),
                          float(values[:, 1].min())])
            print(*lines[-1], flush=True)
    write("preference-quick" if given.quick else "preference", {
        "title": "One preference-conditioned search against NSGA-II on NAS-Bench-201",
        "text": f"{given.channels} channels, {given.cells} cells a stage, {given.images} images of {given.size}x{given.size}, "
                f"{given.steps} steps. Latency of a Raspberry Pi 4 as an additive table of {measured} measured networks, "
                f"Spearman {fit.spearman:.3f} with the {fit.n} others compared, mean relative error {100 * fit.mean:.1f} %. "
                "Hypervolume of published test error and measured latency, as a share of the true front's, in the frame of its "
                f"part up to {WORST:g} % error with a margin of 0.1. NSGA-II: half of the CPU time trains its supernet, half "
                "evaluates.",
        "tables": [{"caption": "Fronts", "rows": lines,
                    "columns": ["seed", "search", "architectures", "evaluations", "CPU seconds", "hypervolume", "least error, %",
                                "least latency, ms"]}]}, given.seeds)


if __name__ == "__main__":
    main()
