"""Shows: the supernet computes on a path what the extracted network computes; NAS-Bench-201 networks have
the published sizes.

    python benchmarks/extraction.py [--archs 100]

For every built-in space: random architectures, random batch-normalisation statistics, evaluation mode, fp32; the
largest absolute difference of the logits. For NAS-Bench-201: 500 random rows of its table, if there is one (the folder
named by NASOPT_TABLES, by default ../shared/data/nas_tables beside the repository).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import write
from torch import nn

from nasopt import seed, space
from nasopt.cost.count import flops, params
from nasopt.nets import choices
from nasopt.spaces.cells import cells
from nasopt.spaces.nb201 import from_string, nb201

FOLDER = Path(os.environ.get("NASOPT_TABLES", Path(__file__).parents[2] / "shared/data/nas_tables"))
SPACES: dict[str, tuple[tuple[int, int, int], Callable[[], nn.Module]]] = {
    "cells 1x8x8": ((1, 8, 8), lambda: cells((1, 8, 8), 10)),
    "cells 3x32x32": ((3, 32, 32), lambda: cells((3, 32, 32), 10)),
    "cells 3x64x64": ((3, 64, 64), lambda: cells((3, 64, 64), 10)),
    "cells 1x8x8, each cell its own": ((1, 8, 8), lambda: cells((1, 8, 8), 10, shared=False)),
    "NAS-Bench-201": ((3, 32, 32), nb201),
}


def differences(net: nn.Module, shape: tuple[int, int, int], archs: int) -> list[float]:
    """|logits of the path - logits of the extraction|, the largest for every architecture."""
    generator = torch.Generator().manual_seed(0)
    for m in net.eval().modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.normal_(0, 0.1, generator=generator)
            m.running_var.uniform_(0.5, 2, generator=generator)
    x = torch.randn(2, *shape, generator=generator)
    rng, s, found = seed.rng(0, 0, "extraction"), choices.space_of(net), []
    for _ in range(archs):
        arch = space.sample(s, rng)
        choices.activate(net, arch)
        with torch.no_grad():
            found.append(float((net(x) - choices.extract(net, arch)(x)).abs().max()))
    return found


def published(rows: int) -> tuple[int, int]:
    """How many of ``rows`` random rows have equal parameters, and equal FLOPs to the last printed digit."""
    table = np.load(FOLDER / "nb201.npz", allow_pickle=False)
    net, example, same = nb201().eval(), torch.zeros(1, 3, 32, 32), [0, 0]
    for row in np.random.default_rng(0).choice(len(table["arch_str"]), rows, replace=False):
        text = table["arch_str"][row]
        alone = choices.extract(net, from_string(text.decode() if isinstance(text, bytes) else str(text)))
        same[0] += params(alone) == round(table["params_m_c10"][row] * 1e6)
        same[1] += round(flops(alone, example) / 1e6, 5) == round(float(table["flops_m_c10"][row]), 5)
    return same[0], same[1]


def main() -> None:
    """Measures and writes ``results/extraction.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archs", type=int, default=100)
    archs = parser.parse_args().archs
    tables = []
    rows = []
    for name, (shape, make) in SPACES.items():
        torch.manual_seed(0)
        net = make()
        found = differences(net, shape, archs)
        rows.append([name, f"{space.size(choices.space_of(net)):.3g}", archs, f"{max(found):.1e}"])
        print(*rows[-1], flush=True)
    tables.append(
        {
            "caption": "Path of the supernet against the extracted network (fp32, evaluation mode)",
            "columns": ["space", "architectures in it", "compared", "largest difference"],
            "rows": rows,
        }
    )
    if (FOLDER / "nb201.npz").exists():
        same = published(500)
        tables.append(
            {
                "caption": "NAS-Bench-201 networks against the published table (CIFAR-10)",
                "columns": ["rows", "equal parameters", "equal FLOPs"],
                "rows": [[500, *same]],
            }
        )
        print(500, *same)
    write(
        "extraction", {"title": "Extraction: one module, its paths and its stand-alone networks", "tables": tables}, [0]
    )


if __name__ == "__main__":
    main()
