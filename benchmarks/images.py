"""Shows: the main job on a data set of images, over seeds: best test accuracy, the front, hypervolume against random search
with an equal budget and against the two hand-designed networks.

    python benchmarks/images.py --data PATH --budget 30m --seeds 0 1 2 [--space cells] [--name cifar10] [--runs FOLDER]

Every seed is one complete run of `nasopt.search` in FOLDER/NAME-SEED (default runs/); runs that are there already are read,
unfinished ones resumed. Leave the machine idle: latencies are measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import settle, write

import nasopt
from nasopt.goals import format_metric
from nasopt.tasks.data import load

KEYS = ("test_error", "latency_ms", "memory_mb")


def dominates(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    """Whether ``a`` is no worse than ``b`` in every objective and better in one."""
    return all(a[k] <= b[k] for k in KEYS) and any(a[k] < b[k] for k in KEYS)


def one(given: argparse.Namespace, seed: int) -> Mapping[str, Any]:
    """The record of one run."""
    folder = given.runs / f"{given.name}-{seed}"
    settle(given.runs / f"{given.name}-settings", {"data": Path(given.data).name, "space": given.space, "budget": given.budget})
    if (folder / "study.db").exists():
        return nasopt.resume(folder).results
    return nasopt.search(given.data, space=given.space, budget=given.budget, seed=seed, out=folder).results


def summary(seed: int, results: Mapping[str, Any]) -> list[Any]:
    """One row a run."""
    best = min(results["front"], key=lambda r: r["metrics"]["test_error"])
    low, high = best["intervals"]["test_error"]
    beaten = [d["name"] for d in results["designed"]
              if any(dominates(f["metrics"], d["metrics"]) for f in results["front"])]
    curves, final = results["search"]["curves"], results["search"]["front_hypervolume"]
    own = next(name for name in curves if name != "random")
    volumes = [curves[name]["hypervolume"][-1] for name in (own, "random")]
    return [seed, round(100 * (1 - best["metrics"]["test_error"]), 3), f"{100 * (1 - high):.2f}–{100 * (1 - low):.2f}",
            len(results["front"]), ", ".join(beaten) or "none", final["found"], final["designed"],
            volumes[0] / volumes[1] if volumes[1] else None,
            f"{len(curves[own]['evaluations'])} / {len(curves['random']['evaluations'])}", results["trust"].get("value"),
            results["provenance"]["epochs"], results["provenance"]["total_seconds"]]


def networks(seed: int, results: Mapping[str, Any]) -> list[list[Any]]:
    """One row a trained network."""
    kinds = {"front": "found, on the front", "dominated": "found, dominated", "designed": "designed by hand"}
    costs = ("latency_ms", "latency_onnx_ms", "memory_mb", "params", "flops")
    return [[seed, kinds[group], r.get("name", r["id"]), round(100 * (1 - r["metrics"]["test_error"]), 3),
             *(format_metric(k, r["metrics"].get(k)) for k in costs),
             r["epochs"], r["training_seconds"]] for group in kinds for r in results[group]]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs, or reads, every seed and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--space", default="cells")
    parser.add_argument("--budget", default="30m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--name", default="cifar10")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    given = parser.parse_args(argv)
    load(given.data)  # what cannot be read is refused before anything is kept
    records = {seed: one(given, seed) for seed in given.seeds}
    rows = [summary(seed, r) for seed, r in records.items()]
    accuracy = np.array([row[1] for row in rows])
    spread = f", standard deviation {accuracy.std(ddof=1):.2f}" if len(rows) > 1 else ""
    write(f"images-{given.name}", {
        "title": f"The main job on {given.name}, space {given.space}, budget {given.budget} for search and training",
        "text": f"Best test accuracy: mean {accuracy.mean():.2f} %{spread}, n = {len(rows)} seeds; no significance is claimed "
                "for so few. The interval of one run is Wilson's, 95 %. Hypervolume on logarithms of error, latency, memory: of "
                "the trained networks as a share of the joint frame with the hand-designed ones; of the search as the ratio to "
                "random search with an equal budget, on search-time estimates.",
        "tables": [
            {"caption": "Runs", "columns": ["seed", "best test accuracy, %", "95 % interval", "front", "baselines dominated",
                                            "hypervolume found", "of the hand-designed", "search / random search",
                                            "evaluations", "Kendall tau", "epochs", "seconds"], "rows": rows},
            {"caption": "Networks", "columns": ["seed", "kind", "network", "test accuracy, %", "latency", "latency, ONNX",
                                                "memory", "params", "flops", "epochs", "training, s"],
             "rows": [row for seed, r in records.items() for row in networks(seed, r)]},
        ]}, given.seeds)


if __name__ == "__main__":
    main()
