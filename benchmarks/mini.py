"""Shows: how much worse than the best of an enumerated space is what each gradient recipe comes to. 81 networks, every one
trained three times on the digits, are the truth.

    python benchmarks/mini.py [--only NAME,...] [--seeds 12] [--steps 600] [--epochs 20] [--keep FOLDER]

Random search trains as many networks alone, once, as fit into the processor's time of the recipe, and takes the one of the least
validation error. About ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import keep, write
from torch import nn

from nasopt import seed as seeds
from nasopt import space
from nasopt.analysis import stats
from nasopt.analysis.comparison import ALPHA
from nasopt.nets import choices, train
from nasopt.nets.choices import BatchNorm2d, Conv2d, OneOf
from nasopt.nets.differentiable import DifferentiableSearch
from nasopt.nets.export import nchw
from nasopt.space import Arch
from nasopt.strategies.gradient import RECIPES, Gradient
from nasopt.tasks.data import load, split
from nasopt.trial import Objective, Problem

WIDTH, TRUTHS = 8, 3
"""Channels; trainings of every network."""

Options = argparse.Namespace


def conv(kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Sequential(Conv2d(WIDTH, WIDTH, kernel, stride, kernel // 2, groups=groups, bias=False), BatchNorm2d(WIDTH))


def network(seed: int) -> nn.Module:
    """1 x 8 x 8 -> 10: four choices of three options each, of which none is best for being largest."""
    torch.manual_seed(seeds.integer(seed, 0, "weights"))
    return nn.Sequential(
        Conv2d(1, WIDTH, 3, padding=1, bias=False), BatchNorm2d(WIDTH), nn.ReLU(),
        OneOf({"conv1": conv(1), "conv3": conv(3), "conv5": conv(5)}),
        OneOf({"relu": nn.ReLU(), "tanh": nn.Tanh(), "gelu": nn.GELU()}),
        OneOf({"max": nn.MaxPool2d(2), "average": nn.AvgPool2d(2), "strided": conv(3, 2)}),
        OneOf({"skip": nn.Identity(), "depthwise": conv(3, groups=WIDTH), "conv3": conv(3)}),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10))


@lru_cache(maxsize=1)
def digits() -> tuple[train.Images, train.Images, train.Images]:
    """Training, validation, test."""
    data = load("digits")
    parts = split(data, 0)
    x = nchw(torch.from_numpy(data.x), data.layout)
    seen = x[torch.from_numpy(parts.train)].float()
    whole = train.Images.all(x, torch.from_numpy(data.y), seen.mean((0, 2, 3)), seen.std((0, 2, 3)))
    return tuple(whole.part(torch.from_numpy(p)) for p in (parts.train, parts.val, parts.test))  # type: ignore[return-value]


def alone(arch: Arch, seed: int, epochs: float) -> tuple[float, float]:
    """Validation and test error, in percent, of a network after a training of its own."""
    training, validation, test = digits()
    net = choices.extract(network(seed), arch)
    train.fit(net, training, train.Recipe(epochs=epochs), train.Augment.for_images((1, 8, 8)), seed)
    return 100 * train.error(net, validation), 100 * train.error(net, test)


def truth(job: tuple[Arch, int, float]) -> float:
    """The test error of one training."""
    torch.set_num_threads(1)
    return alone(*job)[1]


def truths(pool: Executor, archs: Sequence[Arch], epochs: float, folder: Path | None) -> np.ndarray:
    """The test errors of all trainings, (networks, `TRUTHS`)."""
    errors = kept(folder, f"mini-truth-{epochs:g}", lambda: list(pool.map(
        truth, [(arch, 1000 + k, epochs) for arch in archs for k in range(TRUTHS)], chunksize=9)))
    return np.array(errors).reshape(len(archs), TRUTHS)


def gradient(job: tuple[str, int, Options]) -> dict[str, Any]:
    """What a recipe comes to, and random search in the same processor's time."""
    name, seed, options = job
    torch.set_num_threads(1)
    training, validation, _ = digits()
    recipe, net = RECIPES[name], network(seed)
    began = time.process_time()
    search = DifferentiableSearch(net, training, validation, recipe.within(options.steps), options.steps, seed,
                                  train.Augment.for_images((1, 8, 8)))
    arch = Gradient(Problem(choices.space_of(net), (Objective("error"),)), seed, search, name, recipe.flat).finish()
    cost, best, drawn = time.process_time() - began, (np.inf, arch), 0
    generator, began = seeds.rng(seed, 0, "random search"), time.process_time()
    while not drawn or time.process_time() - began < cost:
        other, drawn = space.sample(choices.space_of(net), generator), drawn + 1
        best = min(best, (alone(other, 100 + drawn, options.epochs)[0], other), key=lambda pair: pair[0])
    return {"recipe": name, "seed": seed, "found": dict(arch), "random": dict(best[1]), "drawn": drawn, "seconds": cost}


def main(argv: Sequence[str] | None = None) -> None:
    """Trains everything, searches, writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(RECIPES))
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--epochs", type=float, default=20.0)
    for name, default in (("seeds", 12), ("steps", 600), ("processes", os.cpu_count() or 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(argv)
    archs = list(space.everything(choices.space_of(network(0))))
    with ProcessPoolExecutor(options.processes) as pool:
        table = truths(pool, archs, options.epochs, options.keep)
        runs = [run for name in options.only.split(",")
                for run in kept(options.keep, f"mini-{name}-{options.seeds}-{options.steps}-{options.epochs:g}",
                                lambda name=name: list(pool.map(gradient, [(name, k, options) for k in range(options.seeds)])))]
    report({space.key(arch): float(row.mean()) for arch, row in zip(archs, table, strict=True)}, table, runs, options)


def kept(folder: Path | None, name: str, compute: Any) -> Any:
    """What was computed before, or now."""
    file = None if folder is None else folder / f"{name}.json"
    if file is not None and file.is_file():
        return json.loads(file.read_text())
    found = compute()
    if file is not None:
        keep(file, found)
    print(name, flush=True)
    return found


def report(errors: dict[str, float], table: np.ndarray, runs: Sequence[dict[str, Any]], options: Options) -> None:
    """Writes the record."""
    least, rows = min(errors.values()), []
    for name in dict.fromkeys(run["recipe"] for run in runs):
        own = [run for run in runs if run["recipe"] == name]
        found, random = (np.array([errors[space.key(run[k])] - least for run in own]) for k in ("found", "random"))
        rows.append([name, len(own), float(np.median(found)), float(found.max()), float(np.median(random)),
                     float(np.mean([run["drawn"] for run in own])), float(np.mean([run["seconds"] for run in own])),
                     stats.paired(found.round(9), random.round(9)) if len(own) > 1 else None])
    adjusted = stats.holm([1.0 if pair is None else pair.p for *_, pair in rows])
    rows = [[*row, verdict(pair, float(p))] for (*row, pair), p in zip(rows, adjusted, strict=True)]
    deviation = float(np.sqrt(table.var(axis=1, ddof=1).mean()))
    text = (f"{len(errors)} networks, {TRUTHS} trainings of {options.epochs:g} epochs each: test error "
            f"{least:.2f} to {max(errors.values()):.2f} % (median {np.median(list(errors.values())):.2f} %), deviation of one "
            f"training {deviation:.2f}. Regret: the mean test error of the network found, less that of the best one.")
    write("mini", {"title": "Gradient recipes on an enumerated space", "text": text, "runs": list(runs), "tables": [{
        "caption": f"Regret in points, {options.steps} steps", "rows": rows, "columns": [
            "recipe", "seeds", "median regret", "largest", "random search: median regret", "random networks", "processor seconds",
            "against random search"]}]}, list(range(options.seeds)))


def verdict(pair: stats.Paired | None, adjusted: float) -> str:
    """What may be said of a recipe against random search, paired by seed, with p adjusted for all recipes (Holm)."""
    if pair is None or pair.n < stats.MIN_PAIRS:
        return "too few seeds to say"
    if adjusted >= ALPHA:
        return f"no difference shown (p = {pair.p:.2g}, adjusted {adjusted:.2g})"
    return f"{'better' if pair.shift < 0 else 'worse'} (adjusted p = {adjusted:.2g})"


if __name__ == "__main__":
    main()
