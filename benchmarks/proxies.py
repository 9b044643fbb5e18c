"""Shows: how well zero-cost proxies, computed by us on networks that we build, rank the networks of NAS-Bench-201, and whether
they agree with the published values of the same proxies.

    python benchmarks/proxies.py --data CIFAR-10 [--tables FOLDER] [--networks 200] [--channels 16] [--cells 5] [--batch 64]

The networks are drawn from the 15,625 at random, untrained, of the published size (16 channels, 5 cells a stage) unless told
otherwise. One thread; about ten minutes for 200 networks of the published size.
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
from scipy import stats

from nasopt import seed as seeds
from nasopt import space
from nasopt.benchmarks import tables
from nasopt.estimators.zero_cost import ZeroCost
from nasopt.nets import train
from nasopt.nets.export import nchw
from nasopt.nets.proxies import PROXIES
from nasopt.spaces.nb201 import nb201
from nasopt.tasks.data import load, normalisation, split

TEST = "test200_c10"
PUBLISHED = {"synflow": ("synflow", "nbsz_synflow"), "logsynflow": ("logsynflow",), "snip": ("nbsz_snip",),
             "grad_norm": ("nbsz_grad_norm",), "jacov": ("nbsz_jacov",), "naswot": ("naswot", "nbsz_nwot"), "zen": ("nbsz_zen",),
             "params": (), "flops": ("nbsz_flops",)}
"""The columns of the table, after ``c10__``, that hold the same proxy: of FreeREA, and (nbsz) of NAS-Bench-Suite-Zero."""


def images(path: str, seed: int) -> train.Images:
    """The training part of a data set."""
    data = load(path)
    part = split(data, seed).train
    mean, std = (torch.from_numpy(v) for v in normalisation(data, part))
    whole = train.Images.all(nchw(torch.from_numpy(data.x), data.layout), torch.from_numpy(data.y), mean, std)
    return whole.part(torch.from_numpy(part))


def correlation(a: np.ndarray, b: np.ndarray) -> tuple[float | None, int]:
    """Spearman's coefficient over the networks that have both, and their number."""
    both = ~np.isnan(a) & ~np.isnan(b)
    value = float(stats.spearmanr(a[both], b[both]).statistic) if both.sum() > 2 else float("nan")
    return (None if np.isnan(value) else value), int(both.sum())


def rows(table: tables.Table, places: np.ndarray, found: np.ndarray, seconds: np.ndarray) -> list[list[Any]]:
    """One row for every proxy and published column of it."""
    test, out = table.column(TEST).values[places], list[list[Any]]()
    for k, name in enumerate(PROXIES):
        for column in PUBLISHED[name] or (None,):
            other = None if column is None else table.column(f"c10__{column}").values[places]
            agree, n = (None, None) if other is None else correlation(found[:, k], other)
            theirs = None if other is None else correlation(other, test)[0]
            own, count = correlation(found[:, k], test)
            out.append([name, own, count, column or "none", theirs, agree, n, float(np.median(seconds[:, k]))])
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Computes every proxy of every network and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tables", type=Path, default=Path(os.environ.get("NASOPT_TABLES", "tables")))
    for name, default in (("networks", 200), ("channels", 16), ("cells", 5), ("batch", 64), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    table, data = tables.load(given.tables / "nb201"), images(given.data, given.seed)
    net = nb201(channels=given.channels, cells=given.cells)
    places = seeds.rng(given.seed, 0, "networks").permutation(len(table.archs))[:given.networks]
    archs = space.layout(table.space).archs(table.archs[places])
    found, seconds = (np.full((len(archs), len(PROXIES)), np.nan) for _ in range(2))
    for i, arch in enumerate(archs):
        for k, name in enumerate(PROXIES):
            started = time.perf_counter()
            found[i, k] = ZeroCost(net, data, (name,), given.batch).features([arch], given.seed)[0, 0]
            seconds[i, k] = time.perf_counter() - started
        print(f"\r{i + 1} of {len(archs)} networks, {seconds[:i + 1].sum():.0f} s", end="", flush=True)
    lines = rows(table, places, found, seconds)
    print("", *lines, sep="\n")
    write("proxies", {
        "title": "Zero-cost proxies on NAS-Bench-201",
        "text": f"{given.networks} networks drawn at random, {given.channels} channels, {given.cells} cells a stage, untrained, "
                f"{given.batch} images of CIFAR-10, one thread. Spearman's coefficient with the table's 200-epoch test accuracy, "
                "and with the published values of the same proxy (FreeREA; nbsz: NAS-Bench-Suite-Zero), over the networks that "
                "have both. Published proxies were computed with other draws of weights and images, and partly other details.",
        "tables": [{"caption": "Rank correlations", "rows": lines,
                    "columns": ["proxy", "with test accuracy", "networks", "published column", "published: with test accuracy",
                                "ours with published", "networks with both", "seconds a network (median)"]}]}, [given.seed])


if __name__ == "__main__":
    main()
