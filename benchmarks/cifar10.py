"""Shows: what `nasopt search` finds on CIFAR-10 in a given time, beside hand-designed networks, random search and DARTS.

    python benchmarks/cifar10.py --data cifar-10-batches-bin [--device cuda] [--minutes 75] [--target "error<=6%"] [--seeds 0 1 2]

Every seed is one run of `nasopt.search` in the space ``fast`` (on a GPU ``fast-wide``) with a budget for search and training and
a target for the validation part, which ends the run. Beside it, in the same space, with the same parts and recipe: random search
with the same budget and target; networks designed by hand (airbench94, ResNet-18, MobileNetV2, on a GPU airbench96), trained once
each for all of the time; and the same, scaled to the largest that is no slower than the network that was found with this seed,
and trained for as long as it was (left out where no scaling is as fast). No network is trained for more epochs than `nasopt
search` would. The test part is used once for every network that is delivered, on its exported file. Where images are mirrored in
training, all networks answer with the mean for an image and its mirror image. DARTS of first order, in fp32 and plain memory
order, is timed for some steps; a search of 50 epochs of half of the images by 64 is extrapolated from their median.

Every single run is kept in a folder (``--keep``): what is there is read, what was interrupted goes on, ``--only`` says what is
run now, and the record holds all that is there and, from an earlier record with these settings on this machine, all that is not.
``--images N`` takes so many training images and a fifth as many test images; ``--name`` is for other data sets. The record's
name is ``results/cifar10-cpu.json`` or ``results/cifar10-cuda.json``. Leave the machine idle.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, keep, settle, version, write
from differentiable_speed import BASELINE, VARIANTS, left_out, start
from torch import Tensor, nn

import nasopt
from nasopt import goals
from nasopt import space as spaces
from nasopt.analysis.stats import t_interval
from nasopt.cost.clock import Latency
from nasopt.errors import InputError
from nasopt.machine import machine
from nasopt.nets import choices
from nasopt.nets.train import Augment, Recipe, device_of
from nasopt.pipeline import final
from nasopt.pipeline.kept import Kept
from nasopt.pipeline.ledger import Ledger
from nasopt.pipeline.setup import Config, prepare
from nasopt.run.storage import Sqlite
from nasopt.spaces import fast, scaling
from nasopt.strategies.gradient import PUBLISHED
from nasopt.tasks.data import Dataset, load

SEARCHES = {"nasopt": "hybrid", "random": "random"}
DESIGNS: Mapping[str, Callable[[Any], dict[str, int]]] = {
    "airbench94": fast.airbench94, "airbench96": fast.airbench96, "resnet18": fast.resnet18, "mobilenetv2": fast.mobilenetv2}
"""airbench96 is no member on the CPU, where networks are not so wide."""
TITLES = {"nasopt": "nasopt search", "random": "random search", **{name: f"{name}, all of the time" for name in DESIGNS},
          **{f"{name}-scaled": f"{name}, scaled to at most the latency, with equal training time" for name in DESIGNS}}
PARTS = (*TITLES, "darts")
SEARCHING = ("preparation", "supernet", "trust", "warm start", "search")
FIELDS = ("search_seconds", "training_seconds", "best_seconds", "total_seconds", "epochs", "validation_accuracy", "test_accuracy",
          "target_met", "architecture", "parameters", "multiply_accumulates", "latency_ms", "latency_ratio", "forward_mb",
          "search_mb", "training_mb", "candidates", "refused", "date", "version")
"""Of one run; ``training_seconds`` of all final trainings, ``best_seconds`` of that of the network in the row; ``latency_ratio``
is to the latency of the network that was found, where it is scaled to that, both timed by turns when it is delivered;
``forward_mb`` is the peak of memory of one forward pass of one image, weights included, ``search_mb`` and ``training_mb`` that of
the whole process, data included (of a GPU's: of tensors there)."""


def some(data: Dataset, n: int | None) -> Dataset:
    """The first n training images and a fifth as many test images."""
    if n is None:
        return data
    index = np.concatenate([data.given["train"][:n], data.given["test"][:n // 5]])
    count = min(n, len(data.given["train"]))
    given = {"train": np.arange(count), "test": np.arange(count, len(index))}
    return replace(data, x=data.x[index], y=data.y[index], given=given, notes=())


# ----------------------------------------------------------------------------------------------------------------- the runs
def searched(strategy: str, data: Dataset, config: Config, folder: Path) -> dict[str, Any]:
    """The summary of one run of `nasopt search`: of the network that met the target, or came nearest."""
    if (folder / "study.db").exists():
        results = nasopt.resume(folder, data=data).results
    else:
        results = nasopt.search(data, space=config.space, budget=config.seconds, target=config.target, strategy=strategy,
                                seed=config.seed, device=config.device, mirror=config.mirror, out=folder).results
    origin, trials, chip = results["provenance"], results["search"]["trials"], torch.device(config.device).type
    phases, peaks = origin["phases"], {phase: peak[chip] for phase, peak in origin["peak_memory_mb"].items()}
    nets = {r["id"]: r for r in (*results["front"], *results["dominated"])}
    best = nets.get(results["target"]["network"])
    if best is None:
        raise InputError(f"{folder} delivered no network: {results['target']['sentence']} Give more minutes.")
    return {**network(best), "search_seconds": sum(phases[p] for p in SEARCHING), "training_seconds": phases["final training"],
            "best_seconds": best["training_seconds"], "total_seconds": origin["total_seconds"],
            "search_mb": max(peaks.get(p, 0.0) for p in SEARCHING), "training_mb": peaks["final training"],
            "target_met": results["target"]["met"], "candidates": sum("error" in t["metrics"] for t in trials),
            "refused": sum("error" not in t["metrics"] and t["error"] is None for t in trials),
            "trainings": [[r["id"], r["epochs"], r["training_seconds"], r["metrics"]["error"]] for r in nets.values()]}


def designed(name: str, data: Dataset, config: Config, folder: Path, found: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The summary of a hand-designed network, trained for all of the time; or, beside a network that was ``found``, scaled to at
    most its latency and trained for as long."""
    began = time.perf_counter()
    setup = prepare(config, data)
    place = folder / "models" / name
    place.mkdir(parents=True, exist_ok=True)

    def ratio(net: nn.Module, example: Tensor) -> float:
        """The latency, as a multiple of that of the network that was found."""
        theirs, ours = Latency().compare([setup.delivered(n).eval() for n in (rival, net)], example)
        return ours["latency_ms"] / theirs["latency_ms"]

    if found is not None:
        if not found.get("architecture"):
            raise InputError(f"the record of the network that was found, beside which {name} stands, does not hold its "
                             "architecture: let 'nasopt' run anew.")
        rival = choices.extract(setup.net, spaces.from_labels(setup.problem.space, found["architecture"]))

    def plan() -> dict[str, Any]:
        arch = DESIGNS[name](setup.net)
        if found is not None:
            arch = dict(scaling.within(setup.net, arch, setup.example, ratio, 1.0).arch)
        epoch = final.epoch_seconds(choices.extract(setup.net, arch), setup.lessons, Recipe(), setup.augment)
        left = config.seconds - final.EXPORT_SECONDS - (time.perf_counter() - began)
        seconds = left if found is None else found["best_seconds"]
        epochs = float(np.clip(seconds / epoch, 0.5, final.MAX_EPOCHS))
        return {"arch": arch, "epochs": epochs, "seconds": epochs * epoch}

    delivery = final.Delivery(setup, Recipe())
    with closing(Sqlite(folder / "study.db")) as storage:
        ledger, kept = Ledger(storage), Kept(storage, "checkpoint")
        planned = ledger.remember("plan", plan)
        net = choices.extract(setup.net, planned["arch"])
        with ledger.timed("final training"):
            record = delivery(net, 0, planned["epochs"], place, lambda done, total: None, kept, planned["seconds"])
        peaks = ledger.peaks("final training")
    record["metrics"] |= delivery.latencies([net], [place])[0]
    met = all(c.met(record["metrics"]) for c in config.target)
    seconds = record["training_seconds"]
    record["architecture"] = spaces.labels(setup.problem.space, planned["arch"])
    return {**network(record), "latency_ratio": None if found is None else ratio(net, setup.example), "search_seconds": 0.0,
            "training_seconds": seconds, "best_seconds": seconds, "total_seconds": seconds, "target_met": met, "search_mb": None,
            "training_mb": peaks[setup.training.device.type], "candidates": None, "refused": None}


def one(part: str, data: Dataset, config: Config, folder: Path) -> dict[str, Any]:
    """The summary of one run."""
    place, found = folder / f"{part}-{config.seed}", folder / f"nasopt-{config.seed}.json"
    if part in SEARCHES:
        return searched(SEARCHES[part], data, config, place)
    if part in DESIGNS:
        return designed(part, data, config, place)
    if not found.exists():
        raise InputError(f"{part} is compared with the network that nasopt finds: let 'nasopt' run before.")
    return designed(part.removesuffix("-scaled"), data, config, place, json.loads(found.read_text()))


def network(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a delivered network."""
    metrics = record["metrics"]
    return {"architecture": record["architecture"], "epochs": record["epochs"], "parameters": metrics["params"],
            "validation_accuracy": 100 * (1 - metrics["error"]), "test_accuracy": 100 * (1 - metrics["test_error"]),
            "multiply_accumulates": metrics["flops"], "latency_ms": metrics["latency_ms"], "forward_mb": metrics["memory_mb"]}


def darts(steps: int, channels: int, device: torch.device) -> dict[str, Any]:
    """The seconds of a step of DARTS and of its whole search, which nobody waited for."""
    variant = VARIANTS[BASELINE]
    with left_out(variant.without):
        search, seconds = start(variant, channels, 8, 64, steps + 1, device), list[float]()
        for _ in range(steps + 1):
            began = time.perf_counter()
            search.run(1)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
    return {"channels": channels, "step_seconds": seconds[1:],
            "extrapolated_search_seconds": PUBLISHED * float(np.median(seconds[1:]))}


# -------------------------------------------------------------------------------------------------------------- the record
def once(path: Path, compute: Callable[[], dict[str, Any]]) -> None:
    """Leaves a result in a file, if it is not there."""
    if not path.exists():
        made = {"date": datetime.now(UTC).date().isoformat(), "version": version()}
        found = {**compute(), **made}
        print(f"{path.stem}: {json.dumps(found)}", flush=True)
        keep(path, found)


def restore(record: Path, settings: Mapping[str, Any], folder: Path) -> None:
    """Puts the runs of an earlier record of this machine with the same settings into the folder, where they are not there."""
    known = json.loads(record.read_text()) if record.exists() else {}
    if not known or {**settings, **known["settings"]} != settings or known["machine"] != machine():
        return
    for part, runs in known["methods"].items():
        for k, seed in enumerate(runs["seed"]):
            path = folder / f"{part}-{seed}.json"
            if not path.exists():
                keep(path, {name: runs[name][k] for name in FIELDS if name in runs})
    if known["darts"] is not None and not (folder / "darts.json").exists():
        keep(folder / "darts.json", known["darts"])


def gathered(folder: Path) -> dict[str, dict[str, list[Any]]]:
    """All runs that are there: part -> field -> one value a seed."""
    found = dict[str, dict[str, list[Any]]]()
    for part in TITLES:
        seeds = sorted(int(path.stem.rsplit("-", 1)[1]) for path in folder.glob(f"{part}-[0-9]*.json"))
        runs = [{"seed": seed, **json.loads((folder / f"{part}-{seed}.json").read_text())} for seed in seeds]
        if runs:
            found[part] = {name: [run.get(name) for run in runs] for name in ("seed", *FIELDS)}
    return found


def tables(methods: Mapping[str, Mapping[str, Sequence[Any]]], baseline: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What the methods reached, run by run, and what DARTS would take."""
    runs = [(TITLES[part], {name: values[k] for name, values in found.items()})
            for part, found in methods.items() for k in range(len(found["seed"]))]
    made = [
        {"caption": "Accuracy on the test part in %, looked at once a network: mean and standard deviation over seeds; and by "
                    "how many points nasopt search is above, mean over pairs of one seed with the 95 % interval of Student's t",
         "columns": ["method", "seeds", "test accuracy", "deviation", "nasopt is above by", "interval"],
         "rows": [[TITLES[part], len(found["seed"]), *means(found["test_accuracy"]), *ahead(methods, part)]
                  for part, found in methods.items()]},
        {"caption": "Runs. Minutes; accuracy in %",
         "columns": ["method", "seed", "search", "final trainings", "that of the network", "in all", "epochs", "validation",
                     "test", "target met", "date", "version"],
         "rows": [[title, run["seed"], *(run[name] / 60 for name in ("search_seconds", "training_seconds", "best_seconds",
                                                                     "total_seconds")),
                   *(run[name] for name in ("epochs", "validation_accuracy", "test_accuracy", "target_met", "date", "version"))]
                  for title, run in runs]},
        {"caption": "Networks and memory. Parameters and multiply-accumulates in millions; latency of one image, and as a "
                    "multiple of that of the network that was found, where it is scaled to that, both timed by turns; peak of "
                    "memory of one forward pass of one image, weights included, and of the whole process (of a GPU's: of tensors "
                    "there), data included; networks that were trained briefly, and that were refused before",
         "columns": ["method", "seed", "parameters", "multiply-accumulates", "ms", "ratio", "forward, MB",
                     "search, MB", "training, MB", "candidates", "refused"],
         "rows": [[title, run["seed"], run["parameters"] / 1e6, run["multiply_accumulates"] / 1e6,
                   *(run[name] for name in ("latency_ms", "latency_ratio", "forward_mb", "search_mb", "training_mb",
                                            "candidates", "refused"))]
                  for title, run in runs]}]
    if baseline is not None:
        steps, searches = np.array(baseline["step_seconds"]), np.array(methods.get("nasopt", {}).get("search_seconds", []))
        whole = PUBLISHED * steps
        rows = [[BASELINE, float(np.median(steps)), float(np.median(whole)), "extrapolated", None]]
        if len(searches):
            times = whole[:, None] / searches
            rows.append(["nasopt, median over seeds", None, float(np.median(searches)), "yes",
                         f"{np.median(times):.0f} [{times.min():.0f}, {times.max():.0f}]"])
        made.append({"caption": f"Time of a search. DARTS: extrapolated from the median of {len(steps)} steps to {PUBLISHED} (50 "
                                f"epochs of 25,000 images by 64); {baseline['channels']} channels, 8 cells. Times less: median "
                                "and range over steps and seeds",
                     "columns": ["search", "seconds a step", "seconds", "measured", "times less than DARTS"], "rows": rows})
    return made


def means(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation, which one value does not have."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def ahead(methods: Mapping[str, Mapping[str, Sequence[Any]]], part: str) -> tuple[float | None, str | None]:
    """By how many points of test accuracy nasopt search is above, over the seeds that both have, and the interval."""
    if part == "nasopt" or "nasopt" not in methods:
        return None, None
    ours, theirs = (dict(zip(methods[p]["seed"], methods[p]["test_accuracy"], strict=True)) for p in ("nasopt", part))
    more = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    found, mean = t_interval(more), round(float(np.mean(more)), 9) + 0.0 if more else None
    return mean, None if found is None else f"[{found[0]:.2f}, {found[1]:.2f}]"


def described(name: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Title and text of the record."""
    count, images = settings["threads"], settings["images"]
    return {"title": f"{name}: {settings['minutes']:g} minutes for search and training, {settings['device']}, {count} "
                     f"thread{'s' if count > 1 else ''}",
            "text": f"Target: {settings['target']} of the validation part, which ends a run; "
                    f"{'all images' if images is None else f'only {images} training images, a trial'}. Networks learn from the "
                    "training part without the images that judge. Where images are mirrored in training (colour images of 16 "
                    "pixels and more) they answer with the mean for an image and its mirror image. The machine may have been "
                    "faster on one date than on another: epochs and minutes say by how much."}


def command(given: argparse.Namespace, parts: Sequence[str], seeds: Sequence[int], baseline: Mapping[str, Any] | None) -> str:
    """What measures these parts of a record, each once, on a machine that does nothing else."""
    shown = [*parts, *([] if baseline is None else ["darts"])]
    words = ["--data", Path(given.data).name, "--name", given.name, "--device", given.device, "--minutes", f"{given.minutes:g}",
             "--target", given.target, "--threads", str(torch.get_num_threads()),
             *(["--only", *shown] if shown else []), *([] if given.images is None else ["--images", str(given.images)]),
             *(["--seeds", *map(str, seeds)] if seeds else [])]
    if baseline is not None:
        words += ["--darts-steps", str(len(baseline["step_seconds"])), "--darts-channels", str(baseline["channels"])]
    return shlex.join(["python", "benchmarks/cifar10.py", *words])


def summary(methods: Mapping[str, Mapping[str, Sequence[Any]]]) -> str:
    """Means of the test accuracy."""
    parts = []
    for part, runs in methods.items():
        mean, deviation = means(runs["test_accuracy"])
        spread = "" if deviation is None else f", standard deviation {deviation:.2f}"
        parts.append(f"{TITLES[part]}: mean test accuracy {mean:.2f} %{spread}, n = {len(runs['seed'])}")
    return "; ".join(parts)


def run(given: argparse.Namespace) -> None:
    """Runs what is asked for and is not there, and writes the record of all that is there."""
    device = device_of(given.device)
    folder = given.keep or Path("runs") / f"{given.name}-{device.type}"
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    chip = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
    target = (goals.parse_constraint(given.target, "target"),)
    settings = {"name": given.name, "data": Path(given.data).name, "minutes": given.minutes, "target": str(target[0]),
                "images": given.images, "device": chip, "threads": torch.get_num_threads()}
    wide = device.type == "cuda"
    only = given.only or [part for part in PARTS if wide or not part.startswith("airbench96")]
    data = None if only == ["darts"] else some(load(given.data), given.images)
    settle(folder, settings)
    restore(RESULTS / f"{given.name}-{device.type}.json", settings, folder)
    if data is not None:
        mirror = Augment.for_images(data.input_shape).flip
        for seed in given.seeds:
            config = Config(given.name, "fast-wide" if wide else "fast", seconds=60 * given.minutes, seed=seed, target=target,
                            device=given.device, mirror=mirror)
            for part in [part for part in TITLES if part in only]:
                try:
                    once(folder / f"{part}-{seed}.json", partial(one, part, data, config, folder))
                except InputError as problem:
                    if not part.endswith("-scaled"):
                        raise
                    print(f"{part}-{seed} is left out: {problem}", flush=True)
    if "darts" in only:
        once(folder / "darts.json", lambda: darts(given.darts_steps, given.darts_channels, device))
    methods = gathered(folder)
    baseline = json.loads((folder / "darts.json").read_text()) if (folder / "darts.json").exists() else None
    seeds = sorted({seed for runs in methods.values() for seed in runs["seed"]})
    path = write(f"{given.name}-{device.type}", {
        **described(given.name, settings),
        "device": chip, "settings": settings, **methods.get("nasopt", {}), "methods": methods, "darts": baseline,
        "tables": tables(methods, baseline)}, seeds, command(given, list(methods), seeds, baseline))
    print(summary(methods))
    print(path)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar-10-batches-bin")
    parser.add_argument("--name", default="cifar10")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=75.0)
    parser.add_argument("--target", default="error<=6%")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=PARTS, nargs="+")
    parser.add_argument("--keep", type=Path, help="default: runs/NAME-DEVICE")
    parser.add_argument("--threads", type=int, help="of the CPU; default: all cores")
    parser.add_argument("--images", type=int)
    parser.add_argument("--darts-steps", type=int, default=10)
    parser.add_argument("--darts-channels", type=int, default=16)
    try:
        run(parser.parse_args())
    except InputError as problem:
        sys.exit(f"error: {problem}")


if __name__ == "__main__":
    main()
