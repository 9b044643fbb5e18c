"""Shows: which brief training ranks networks of the space ``fast`` best, where every network has the same time in the end.

    python benchmarks/brief.py --data cifar-10-batches-bin [--networks 16] [--seconds 240] [--keep FOLDER] [--only K ...]

The truth is the validation error after a training of so many seconds, as `nasopt search` trains its last network: small networks
see more images in it than large ones. The networks are those designed by hand, scaled to what can be trained, and mutants of
them. A brief training is looked at twice: as it is, and as what `nasopt.pipeline.target.expected` makes of it, which adds how
many epochs the network will have. Every network's results are kept in a folder; several processes may fill it, each with
``--only``. On one thread about five minutes a network.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import settle, write
from mini import kept
from scipy import stats

from nasopt import seed as seeds
from nasopt import space as spaces
from nasopt.analysis import rank
from nasopt.cost.count import flops, params
from nasopt.goals import parse_constraint
from nasopt.nets import choices, train
from nasopt.pipeline import final, target, warm
from nasopt.pipeline.phases import SMALL_BATCH
from nasopt.pipeline.setup import Config, Setup, prepare
from nasopt.space import Arch
from nasopt.spaces import scaling
from nasopt.tasks.data import load

EPOCHS = (0.1, 0.2, 0.4)
"""Lengths of brief trainings with the same number of images for every network."""

MIDDLE = 0.2
"""The length whose mean time those have that last as long for every network, and whose steps those have that see fewer images or
are of thinner networks."""

FEWER, THINNER = 1 / 4, 1 / 2
"""Share of the images, and of the channels."""

LEAST = 1.5
"""Epochs that the dearest network is trained for in the end."""


def networks(setup: Setup, count: int, seconds: float) -> list[Arch]:
    """Designs of four sizes, and mutants of them, none dearer than the largest."""
    rate = warm.rate_of(setup)
    bound, table = rate * seconds / LEAST, warm.step_table(setup)
    found = [arch for share in (1, 1 / 4) for arch in warm.designs(setup, share * bound)]
    found = list({spaces.key(arch): arch for arch in found}.values())[:count]
    generator, designs = seeds.rng(0, 0, "mutants"), len(found)
    while len(found) < count:
        arch: Arch = found[generator.integers(designs)]
        for _ in range(3):
            arch = spaces.mutate(setup.problem.space, arch, generator)
        cost = table(choices.extract(setup.net, arch).eval(), setup.example)["step_ms"]
        if cost <= bound and spaces.key(arch) not in map(spaces.key, found):
            found.append(arch)
    return found


def judged(setup: Setup, arch: Arch, seconds: float, equal: float) -> dict[str, Any]:
    """The truth of a network and what its brief trainings say; errors in %, times in seconds.

    Args:
        equal: seconds of the brief training that lasts as long for every network.
    """
    def net() -> torch.nn.Module:
        return choices.extract(setup.net, arch)

    def brief(epochs: float, data: train.Images, start: torch.nn.Module) -> tuple[float, float]:
        recipe = train.Recipe(epochs=epochs, batch=SMALL_BATCH)
        fitted = train.fit(start, data, recipe, setup.augment, 0)
        return 100 * train.error(start, setup.validation, fast=True), fitted.seconds

    epoch = final.epoch_seconds(net(), setup.lessons, train.Recipe(), setup.augment)
    few = setup.training.part(torch.arange(int(FEWER * len(setup.training))))
    brief_epoch = final.epoch_seconds(net(), setup.training, train.Recipe(batch=SMALL_BATCH), setup.augment)
    found = {f"{e:g} epochs": (e, brief(e, setup.training, net())) for e in EPOCHS}
    found["as many seconds"] = (equal / brief_epoch, brief(equal / brief_epoch, setup.training, net()))
    found["a quarter of the images"] = (MIDDLE, brief(MIDDLE / FEWER, few, net()))
    thin = scaling.widened(net(), THINNER, setup.example)
    found["half of the channels"] = (MIDDLE, brief(MIDDLE, setup.training, thin))
    epochs = min(final.MAX_EPOCHS, seconds / epoch)
    last = net()
    fitted = train.fit(last, setup.lessons, train.Recipe(epochs=epochs), setup.augment, 0)
    truth = 100 * train.error(setup.delivered(last).eval(), setup.validation)
    return {"params": params(net()), "flops": flops(net(), setup.example), "epoch": epoch, "epochs": epochs, "truth": truth,
            "seconds": fitted.seconds,
            "brief": {name: {"epochs": e, "error": error, "seconds": spent} for name, (e, (error, spent)) in found.items()}}


def report(found: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> None:
    """Writes the record."""
    truth = [f["truth"] for f in found]
    slopes = {name: [float(np.log(f["brief"][name]["error"] / f["truth"]) / np.log(f["epochs"] / f["brief"][name]["epochs"]))
                     for f in found] for name in (f"{e:g} epochs" for e in EPOCHS)}
    looks: dict[str, list[float]] = {"parameters": [-f["params"] for f in found],
                                     "multiply-accumulates": [-f["flops"] for f in found]}
    times = dict.fromkeys(looks, 0.0)
    for name in found[0]["brief"]:
        looks[name] = [f["brief"][name]["error"] for f in found]
        looks[f"{name}, expected"] = [target.expected(f["brief"][name]["error"], f["brief"][name]["epochs"], f["epochs"])
                                      for f in found]
        times[name] = times[f"{name}, expected"] = float(np.mean([f["brief"][name]["seconds"] for f in found]))
    rows = []
    for name, values in looks.items():
        tau = rank.kendall(values, truth)
        rows.append([name, times[name], tau.value, f"[{tau.low:.2f}, {tau.high:.2f}]",
                     float(stats.spearmanr(values, truth).statistic), truth[int(np.argmin(values))] - min(truth)])
    nets = [[f["params"], f["flops"], f["epochs"], f["truth"], *(f["brief"][name]["error"] for name in found[0]["brief"])]
            for f in sorted(found, key=lambda f: float(f["truth"]))]
    write("brief", {
        "title": "Brief trainings against the training that a network has in the end",
        "text": f"{len(found)} networks of the space `fast`, designs of four sizes and mutants of them, each trained for "
                f"{options.seconds:g} s in the end, on {torch.get_num_threads()} thread"
                f"{'s' if torch.get_num_threads() > 1 else ''}. \"Expected\": by a broken power law, of slope "
                f"{target.EARLY:g} up to {target.BREAK:g} epochs and {target.LATE:g} from there on. The one "
                "slope that a network really had, median and range: "
                + "; ".join(f"from {name} {np.median(s):.2f} [{min(s):.2f}, {max(s):.2f}]" for name, s in slopes.items()) + ".",
        "slopes": slopes,
        "tables": [
            {"caption": "The order by a brief training against the order in the end: Kendall's τ with its bootstrap interval of "
                        "95 %, Spearman's ρ, and by how many points the network that looks best is worse than the best",
             "columns": ["ranked by", "seconds a network", "τ", "interval", "ρ", "regret"], "rows": rows},
            {"caption": "The networks; validation errors in %",
             "columns": ["parameters", "multiply-accumulates", "epochs in the end", "error in the end", *found[0]["brief"]],
             "rows": nets}]}, [0])


def main() -> None:
    """Trains what is not kept; writes the record when all is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar-10-batches-bin")
    parser.add_argument("--networks", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--keep", type=Path, default=Path("runs/brief"))
    parser.add_argument("--only", type=int, nargs="+")
    options = parser.parse_args()
    data = load(options.data)
    aim = parse_constraint("error<=1%", "target")
    setup = prepare(Config("brief", "fast", target=(aim,), mirror=train.Augment.for_images(data.input_shape).flip), data)
    settle(options.keep, {"data": Path(options.data).name, "networks": options.networks, "seconds": options.seconds,
                          "threads": torch.get_num_threads()})
    archs = kept(options.keep, "networks", lambda: networks(setup, options.networks, options.seconds))
    equal = kept(options.keep, "equal", lambda: MIDDLE * float(np.mean([
        final.epoch_seconds(choices.extract(setup.net, arch), setup.training, train.Recipe(batch=SMALL_BATCH), setup.augment)
        for arch in archs])))
    for k in options.only or range(len(archs)):
        kept(options.keep, f"{k}", lambda k=k: judged(setup, archs[k], options.seconds, equal))
    files = [options.keep / f"{k}.json" for k in range(len(archs))]
    if all(file.exists() for file in files):
        report([json.loads(file.read_text()) for file in files], options)


if __name__ == "__main__":
    main()
