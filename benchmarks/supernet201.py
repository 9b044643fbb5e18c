"""Shows: what differentiable search finds on a real supernet, judged by a real table that it does not see: NAS-Bench-201.

    python benchmarks/supernet201.py --data CIFAR-10 [--tables FOLDER] [--only NAME[@NUMBER],...] [--seeds 5] [--steps 1000]
        [--channels 8] [--cells 1] [--size 16] [--images 10000] [--keep FOLDER]

The supernet is a small one (8 channels, 1 cell a stage) and so are the images (means of 2 x 2 pixels): half of them train the
weights, half the architecture. Short trainings of single networks (``random``, ``hybrid``) have twice the channels, twice the
images and 3 cells a stage. Every run has one thread; what it costs is its processor's time. Recipes get ``--steps``, ``random``,
``one-shot`` and ``hybrid`` get ``--minutes``; a number after a name is instead of that. With ``--keep`` every run is written
there and not repeated, and the record is of all runs there that had these sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import keep, write
from sklearn.linear_model import Ridge
from torch.nn import functional

from nasopt import seed as seeds
from nasopt import space
from nasopt.analysis import stats
from nasopt.analysis.comparison import Measure, analyse
from nasopt.benchmarks import tables
from nasopt.estimators.images import OneShot, StandAlone
from nasopt.estimators.zero_cost import ZeroCost
from nasopt.nets import supernet, train
from nasopt.nets.differentiable import DifferentiableSearch
from nasopt.nets.export import nchw
from nasopt.space import Arch
from nasopt.spaces.nb201 import SPACE, from_string, nb201
from nasopt.strategies.bayes import BayesianOptimization
from nasopt.strategies.gradient import RECIPES, Gradient
from nasopt.strategies.random import RandomSearch
from nasopt.tasks.data import load
from nasopt.trial import Ask, Objective, Problem, Trial

PROBLEM = Problem(SPACE, (Objective("error"),))
C10, C100 = "test200_c10", "test200_c100"
CONVOLUTIONS = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
PROXIES, MEASURED = ("naswot", "logsynflow"), 400
"""Zero-cost proxies, and of how many networks they are measured."""

BRIEF, WIDER, DEEP = train.Recipe(epochs=5.0), 2, 3
"""A short training of one network, how many times the channels and images it has, and its cells a stage: what skip connections
are good for, shallow networks do not show."""

MEMBERS = 4
"""Gradient searches of which the hybrid starts."""

Options = argparse.Namespace


# ----------------------------------------------------------------------------------------------------------------- the parts
@lru_cache(maxsize=2)
def images(path: str, size: int, count: int, seed: int) -> tuple[train.Images, train.Images]:
    """Two halves of so many training images, drawn by the seed, shrunk to so many pixels."""
    data = load(path)
    drawn = seeds.rng(seed, 0, "images").permutation(data.given["train"])[:count]
    x = nchw(torch.from_numpy(data.x[drawn]), data.layout)
    x = functional.avg_pool2d(x.float(), x.shape[2] // size)
    whole = train.Images.all(x, torch.from_numpy(data.y[drawn]), x.mean((0, 2, 3)), x.std((0, 2, 3)))
    return whole.part(torch.arange(count // 2)), whole.part(torch.arange(count // 2, count))


def network(options: Options, seed: int, partial: int = 1, affine: bool = False) -> torch.nn.Module:
    """The supernet."""
    torch.manual_seed(seeds.integer(seed, 0, "weights"))
    return nb201(10, options.channels, options.cells, partial=partial, affine=affine)


def augment(options: Options) -> train.Augment:
    return train.Augment.for_images((3, options.size, options.size))


def relaxed(options: Options, name: str, seed: int) -> Gradient:
    """A recipe's whole search, not begun."""
    recipe, halves = RECIPES[name], images(options.data, options.size, options.images, seed)
    search = DifferentiableSearch(network(options, seed, recipe.partial), *halves, recipe.within(options.steps), options.steps,
                                  seed, augment(options))
    return Gradient(PROBLEM, seed, search, name, recipe.flat)


# ----------------------------------------------------------------------------------------------------------------- searches
def by_gradient(options: Options, name: str, seed: int) -> tuple[Arch, dict[str, float]]:
    """What a recipe comes to, and the share of its edges that are skips."""
    arch = relaxed(options, name, seed).finish()
    return arch, {"skips": float(np.mean([word == "skip_connect" for word in space.labels(SPACE, arch).values()]))}


def by_brief_trainings(options: Options, strategy: RandomSearch | BayesianOptimization, seed: int, until: float) -> list[Trial]:
    """Short trainings of what a strategy asks for, until the processor's time is over."""
    large = argparse.Namespace(**{**vars(options), "cells": DEEP, "channels": WIDER * options.channels})
    estimate = StandAlone(network(large, seed, affine=True), *images(options.data, options.size, WIDER * options.images, seed),
                          BRIEF, augment(options))
    trials: list[Trial] = []
    while time.process_time() < until:
        ask, = strategy.ask(1, len(trials))
        trials.append(Trial(Ask(ask.number, ask.arch, 1.0, 0), {"error": estimate(ask)["error"]}, 1.0))
        strategy.tell(trials[-1:])
    return trials


def at_random(options: Options, name: str, seed: int) -> tuple[Arch, dict[str, float]]:
    """The best of random networks by a short training each."""
    trials = by_brief_trainings(options, RandomSearch(PROBLEM, seed), seed, time.process_time() + 60 * options.minutes)
    return min(trials, key=lambda t: t.metrics["error"]).ask.arch, {"evaluations": float(len(trials))}


def one_shot(options: Options, name: str, seed: int) -> tuple[Arch, dict[str, float]]:
    """Uniform paths train shared weights for half of the time, the other half compares random networks with them."""
    began, net = time.process_time(), network(options, seed)
    training, validation = images(options.data, options.size, options.images, seed)
    recipe = train.Recipe(batch=128, lr=0.3, momentum=0.9, warmup=0.1)
    supernet.fit(network(options, seed), training, recipe, augment(options), 5, seed)
    steps = int(30 * options.minutes / ((time.process_time() - began) / 5))
    supernet.fit(net, training, recipe, augment(options), steps, seed)
    strategy, estimate, found = RandomSearch(PROBLEM, seed), OneShot(net, training, validation), dict[str, tuple[float, Arch]]()
    while time.process_time() < began + 60 * options.minutes:
        ask, = strategy.ask(1, len(found)) or (None,)
        if ask is None:
            break
        found[space.key(ask.arch)] = estimate(ask)["error"], ask.arch
    return min(found.values(), key=lambda pair: pair[0])[1], {"steps": float(steps), "evaluations": float(len(found))}


def together(options: Options, name: str, seed: int) -> tuple[Arch, dict[str, float]]:
    """`MEMBERS` searches by the recipe `nasopt`, whose alphas (their mean) are, beside two proxies, hints of a Gaussian process
    over short trainings, which begin with what the searches come to, for all of the time; the network of the best mean that the
    process predicts. The proxies are measured on `MEASURED` networks, and of the others predicted from the pairs of their
    operations."""
    began = time.process_time()
    searches = [relaxed(options, "nasopt", seeds.integer(seed, k, "members")) for k in range(MEMBERS)]
    cells = list({space.key(arch): arch for arch in (search.finish() for search in searches)}.values())
    likely = np.mean([search.history[-1].scores[0].log_softmax(1).double().numpy() for search in searches], axis=0)
    lay, measure = space.layout(SPACE), ZeroCost(network(options, seed, affine=True),
                                                 images(options.data, options.size, options.images, seed)[0], PROXIES, batch=32)
    drawn = lay.random(seeds.rng(seed, 0, "proxies"), MEASURED)
    values = measure.features(lay.archs(drawn), seed)
    values = np.where(np.isfinite(values), values, np.nanmin(values, axis=0))
    model = Ridge(1.0).fit(_pairs(drawn), (values - values.mean(0)) / values.std(0))

    def hints(rows: space.Rows) -> np.ndarray:
        own = likely[np.arange(rows.shape[1]), rows].sum(axis=1)
        return np.column_stack([own, model.predict(_pairs(rows))])

    strategy = BayesianOptimization(PROBLEM, seed, initial=cells, hints=hints)
    trials = by_brief_trainings(options, strategy, seed, began + 60 * options.minutes)
    rows = lay.canonical(lay.rows([t.ask.arch for t in trials]))
    means = strategy.model().objectives[0].predict(strategy._features(rows)).mean
    return trials[int(means.argmin())].ask.arch, {"evaluations": float(len(trials))}


def _pairs(rows: space.Rows) -> np.ndarray:
    """Which operations there are, and which two together."""
    single = np.eye(int(rows.max(initial=4)) + 1)[rows]
    both = np.einsum("nia,njb->nijab", single, single)[:, *np.triu_indices(rows.shape[1], 1)]
    return np.column_stack([single.reshape(len(rows), -1), both.reshape(len(rows), -1)])


SEARCHES: Mapping[str, Callable[[Options, str, int], tuple[Arch, dict[str, float]]]] = {
    **dict.fromkeys(RECIPES, by_gradient), "random": at_random, "one-shot": one_shot, "hybrid": together}


def kept(options: Options, run: str) -> Path:
    """The file of a run; of "*": the pattern of all of these sizes."""
    return Path(options.keep / f"supernet201-{options.channels}-{options.cells}-{options.size}-{options.images}-{run}.json")


def once(options: Options, name: str, seed: int) -> dict[str, Any]:
    """One search: the architecture that it comes to, the minutes of processor time, and what else it says."""
    torch.set_num_threads(1)
    options.steps = int(options.steps)
    what = f"{options.steps} steps" if name in RECIPES else f"{options.minutes:g} minutes"
    file = None if options.keep is None else kept(options, f"{name}-{seed}-{what.replace(' ', '-')}")
    if file is not None and file.is_file():
        return dict(json.loads(file.read_text()))
    began = time.process_time()
    arch, about = SEARCHES[name](options, name, seed)
    found = {"search": name, "seed": seed, "given": what, "architecture": dict(arch),
             "minutes": (time.process_time() - began) / 60, **about}
    if file is not None:
        keep(file, found)
    print(name, seed, f"{found['minutes']:.1f} min", flush=True)
    return found


# ------------------------------------------------------------------------------------------------------------------- results
def baselines(table: tables.Table, samples: int = 1000) -> list[list[Any]]:
    """What needs no search: convolutions everywhere, and the best of so many random networks by a proxy's published value."""
    rows = [["3x3 convolutions everywhere", *_accuracies(table, [from_string(CONVOLUTIONS)])]]
    lay = space.layout(table.space)
    for proxy in ("naswot", "synflow"):
        values, archs = table.column(f"c10__{proxy}").values, []
        for seed in range(samples // 50):
            drawn = seeds.rng(seed, 0, "sample").choice(len(values), samples, replace=False)
            best = drawn[np.nanargmax(np.where(np.isfinite(values[drawn]), values[drawn], np.nan))]
            archs += lay.archs(table.archs[[best]].astype(np.int64))
        rows.append([f"best of {samples} by {proxy} ({len(archs)} samples)", *_accuracies(table, archs)])
    return rows


def _accuracies(table: tables.Table, archs: Sequence[Arch]) -> list[Any]:
    """Mean, deviation and minimum on CIFAR-10, and the mean on CIFAR-100, in percent."""
    at = [table.row(arch) for arch in archs]
    ten, hundred = table.column(C10).values[at], table.column(C100).values[at]
    return [float(ten.mean()), float(ten.std(ddof=1)) if len(ten) > 1 else None, float(ten.min()), float(hundred.mean())]


def report(table: tables.Table, runs: Sequence[Mapping[str, Any]], options: Options) -> None:
    """Writes the record."""
    rows = []
    for name, given in dict.fromkeys((run["search"], run["given"]) for run in runs):
        own = [run for run in runs if (run["search"], run["given"]) == (name, given)]
        ten = table.column(C10).values[[table.row(run["architecture"]) for run in own]]
        skips = [run["skips"] for run in own if "skips" in run]
        rows.append([name, given, len(own), *_accuracies(table, [run["architecture"] for run in own]), _interval(ten),
                     float(np.mean([run["minutes"] for run in own])), float(np.mean(skips)) if skips else None])
    rows.sort(key=lambda row: -row[3])
    text = (f"Supernet of {options.channels} channels and {options.cells} cells a stage, {options.images} images of "
            f"{options.size} x {options.size} pixels, steps of 64 images; shared weights without gradients are trained in steps "
            f"of 128, short trainings of `random` and `hybrid` are of networks of {WIDER * options.channels} channels and "
            f"{DEEP} cells a stage with {WIDER * options.images:,} images. The table gives the accuracy of the network that a "
            "search comes to after 200 epochs of full training; no search sees it. Processor minutes are those of each run's own "
            "machine, which is not this record's for all of them.")
    found = {"caption": "Found (%)", "rows": rows, "columns": [
        "search", "given", "seeds", "CIFAR-10", "deviation", "minimum", "CIFAR-100 (transfer)",
        "CIFAR-10: interquartile mean, 95 % interval", "processor minutes", "skip share"]}
    without = {"caption": "Without a search (%)", "rows": baselines(table),
               "columns": ["network", "CIFAR-10", "deviation", "minimum", "CIFAR-100"]}
    write("supernet201", {"title": "NAS-Bench-201: a real supernet, judged by the table", "text": text, "runs": list(runs),
                          "tables": [without, found, *ablation(table, runs)]}, sorted({run["seed"] for run in runs}))


ABLATION = ("nasopt", "darts1", "beta_darts", "darts_pt")
"""`nasopt`, without its two parts, with decay instead of them, and with one of them."""


def ablation(table: tables.Table, runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each of these recipes with the most steps that it was given, against `nasopt`, paired by seeds; empty where not all of
    them were run on the same seeds."""
    error, seeds = dict[str, np.ndarray](), set[tuple[int, ...]]()
    for name in ABLATION:
        steps = max((int(run["given"].split()[0]) for run in runs if run["search"] == name), default=0)
        own = sorted((run for run in runs if (run["search"], run["given"]) == (name, f"{steps} steps")), key=lambda r: r["seed"])
        seeds.add(tuple(run["seed"] for run in own))
        error[f"{name}, {steps} steps"] = np.array([100 - table.column(C10).values[table.row(r["architecture"])] for r in own])
    if len(seeds) > 1 or len(next(iter(error.values()))) < 2:
        return []
    found = analyse(Measure("error", "test error", "%"), {"CIFAR-10": error}, control=next(iter(error)))
    return [{"caption": f"The parts of nasopt. {found.test} {found.refusal}".strip(), "columns": [
        "recipe", "seeds", "more test error than nasopt: Hodges-Lehmann estimate, 95 % interval (points)", "p", "adjusted"],
             "rows": [[pair.a, pair.n, f"{pair.shift:.2f} [{pair.low:.2f}, {pair.high:.2f}]", pair.p, pair.adjusted]
                      for pair in found.pairs]}]


def _interval(values: np.ndarray) -> str | None:
    """The interquartile mean with its interval, of two values at least."""
    if len(values) < 2:
        return None
    found = stats.iqm_interval([list(map(float, values))])
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is not kept and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tables", type=Path, default=Path(os.environ.get("NASOPT_TABLES", "tables")))
    parser.add_argument("--only", default=",".join(SEARCHES))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--keep", type=Path)
    for name, default in (("seeds", 5), ("steps", 1000), ("channels", 8), ("cells", 1), ("size", 16), ("images", 10_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args(argv)
    asked = [(name, {"steps" if name in RECIPES else "minutes": float(number)} if number else {})
             for name, _, number in (word.partition("@") for word in options.only.split(","))]
    jobs = [(argparse.Namespace(**{**vars(options), **own}), name, seed) for name, own in asked for seed in range(options.seeds)]
    with ProcessPoolExecutor(options.processes) as pool:
        runs = list(pool.map(once, *zip(*jobs, strict=True)))
    if options.keep is not None:
        runs = [json.loads(file.read_text()) for file in sorted(options.keep.glob(kept(options, "*").name))]
    report(tables.load(options.tables / "nb201"), runs, options)


if __name__ == "__main__":
    main()
