"""From the search's front to trained, measured and exported networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq
from torch import nn

from nasopt import seed as seeds
from nasopt.analysis.hypervolume import hypervolume, reference_point
from nasopt.cost.clock import Latency, onnx_latencies
from nasopt.cost.count import Count
from nasopt.cost.forward import capture
from nasopt.cost.memory import Memory
from nasopt.errors import ExportError, one_line
from nasopt.nets import choices, train
from nasopt.nets.export import WithPreprocessing, export_onnx, export_torch, onnx_logits, torch_logits
from nasopt.pipeline.kept import Kept
from nasopt.pipeline.setup import Setup, has_onnx
from nasopt.space import Arch
from nasopt.trial import Metrics, Objective, Trial

MIN_NETWORKS, MIN_EPOCHS, MAX_EPOCHS = 2, 10.0, 60.0
LEAST_EPOCHS = 5.0
"""Epochs below which a network is not trained at all if there is another."""
FEWEST_EPOCHS = 2.0
"""The same of a network that cannot have more in all the time of a run with a target, as one designed by hand may not: a large
network that sees the images three times may be ahead of a small one that sees them twelve times."""

LARGEST_SHARE, DESIGNED_SHARE = 0.6, 0.2
"""Shares of the time for final trainings that a found and a hand-designed network may take."""

MARGIN = 0.05
"""Share by which two measurements of one latency may well differ."""

TIMED = {"cpu": (1, 5), "cuda": (20, 40)}
"""Steps before those that are timed, and those: a GPU first loads its kernels, and clocks up."""

LEAST_SHARE = 0.2
"""Of the budget: what final trainings have, whatever was spent before."""

EXPORT_SECONDS = 4.0
"""What exporting and measuring one network takes, roughly."""


def scaled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Objectives on a scale on which ratios count: log(1 + v / median) per column; order is kept."""
    middle = np.median(values, axis=0)
    return np.log1p(values / np.where(middle > 0, middle, 1.0))


def useful(trials: Sequence[Trial], labels: NDArray[np.int64]) -> list[Trial]:
    """The trials whose error lies in the lower half between the best one's and that of always guessing the commonest class;
    more of them, in the order of their error, if fewer than `MIN_NETWORKS` do.

    Args:
        labels: of the training part.
    """
    ordered = sorted(trials, key=lambda t: t.metrics["error"])
    guess = 1 - float(np.bincount(labels).max()) / len(labels)
    limit = (ordered[0].metrics["error"] + guess) / 2
    return [t for k, t in enumerate(ordered) if k < MIN_NETWORKS or t.metrics["error"] <= limit]


def choose(trials: Sequence[Trial], objectives: Sequence[Objective], designed: Sequence[Metrics], n: int) -> list[Trial]:
    """The part of a front that is worth training.

    The most accurate network first; then, for each hand-designed network that none so far costs less than in every respect,
    the most accurate one that does (if there is one); then greedily whichever adds the most hypervolume on a logarithmic scale.
    A latency counts as less if it is by `MARGIN`.

    Args:
        trials: mutually non-dominated trials.
        designed: the costs of the hand-designed networks (they have no error yet).
        n: how many, at most.
    """
    if not trials:
        return []
    values = np.array([[t.metrics[o.name] for o in objectives] for t in trials])
    first = [o.name for o in objectives].index("error")
    costs = [k for k in range(len(objectives)) if k != first]
    chosen = [int(values[:, first].argmin())]
    for bar in designed:
        names = [objectives[k].name for k in costs]
        limit = np.array([bar[name] * (1 - MARGIN * name.startswith("latency")) for name in names])
        below = [k for k in range(len(values)) if costs and (values[k, costs] <= limit).all()]
        if below and not set(chosen) & set(below):
            chosen.append(min(below, key=lambda k: float(values[k, first])))
    return [trials[k] for k in spread(values, chosen[:n], n)]


def spread(values: NDArray[np.float64], chosen: Sequence[int], n: int) -> list[int]:
    """``chosen`` and, up to ``n`` in all, the rows of ``values`` (k, m), all > 0, that greedily add the most hypervolume on a
    logarithmic scale."""
    points, chosen = scaled(values), list(chosen)
    reference = reference_point(points.min(axis=0), points.max(axis=0))
    while len(chosen) < min(n, len(values)):
        left = [k for k in range(len(values)) if k not in chosen]
        chosen.append(max(left, key=lambda k: hypervolume(points[[*chosen, k]], reference)))
    return chosen


def epoch_seconds(net: nn.Module, data: train.Images, recipe: train.Recipe, augment: train.Augment) -> float:
    """How long one epoch takes: the median of some steps, or on a GPU, which works on several at once, their mean, after others
    that are left out (`TIMED`). Trains ``net``: give a copy."""
    times: list[float] = []
    gpu = data.device.type == "cuda"
    first, count = TIMED["cuda" if gpu else "cpu"]

    def tick(done: int, total: int) -> None:
        if gpu and done in (first, total):
            torch.cuda.synchronize(data.device)
        times.append(time.perf_counter())

    steps = train.steps_of(data, recipe.scaled(1 / recipe.epochs))
    train.fit(net, data, recipe.scaled((first + count) / (steps * recipe.epochs)), augment, 0, watch=tick)
    spans = np.diff(times[first - 1:])
    return steps * float(np.mean(spans) if gpu else np.median(spans)) if len(spans) else 0.1


def epoch_of(setup: Setup, arch: Arch, recipe: train.Recipe | None = None, data: train.Images | None = None) -> float:
    """How long one epoch of the final training of an architecture takes, or of another training, from a few steps."""
    images = setup.lessons if data is None else data
    return epoch_seconds(choices.extract(setup.net, arch), images, recipe or train.Recipe(), setup.augment)


def wilson(wrong: int, n: int) -> list[float]:
    """The 95 % interval of a share by Wilson (J. Am. Stat. Assoc. 1927): [low, high]."""
    low, high = stats.binomtest(wrong, n).proportion_ci(0.95, "wilson")
    return [float(low), float(high)]


def dearest(seconds: float, epochs: float) -> float:
    """Seconds of an epoch above which so many epochs of one network take more than its share of the time for all."""
    return LARGEST_SHARE * seconds / epochs


def plan(epoch: Sequence[float], designed: Sequence[float], seconds: float) -> tuple[int, list[float]]:
    """How many of the chosen networks to train, and for how many epochs each, the hand-designed ones last.

    All get the same number of epochs, but none takes longer than `LARGEST_SHARE` of the time, and no hand-designed one
    longer than `DESIGNED_SHARE`. Networks are dropped from
    the end until `MIN_EPOCHS` fit, but not below `MIN_NETWORKS`.

    Args:
        epoch, designed: seconds an epoch of every network.
        seconds: for all trainings and exports together.
    """
    def epochs(n: int) -> list[float]:
        costs = np.array([*epoch[:n], *designed])
        left = max(seconds - EXPORT_SECONDS * len(costs), 0.25 * seconds)
        most = left / costs * ([LARGEST_SHARE] * n + [DESIGNED_SHARE] * len(designed))
        same = most.max() if most @ costs <= left else brentq(lambda e: np.minimum(e, most) @ costs - left, 0, most.max())
        return [float(e) for e in np.clip(np.minimum(same, most), 0.5, MAX_EPOCHS)]

    n = len(epoch)
    while n > MIN_NETWORKS and max(epochs(n)) < MIN_EPOCHS:
        n -= 1
    return n, epochs(n)


@dataclass(frozen=True)
class Delivery:
    """Trains, exports and measures one network.

    Attributes:
        recipe: the same for every network of a run but for the epochs.
        tell: takes a sentence if a GPU's memory is too small for a batch.
    """

    setup: Setup
    recipe: train.Recipe
    tell: Callable[[str], None] | None = None

    def __call__(self, net: nn.Module, number: int, epochs: float, folder: Path, watch: Callable[[int, int], None],
                 kept: Kept, seconds: float | None = None) -> dict[str, Any]:
        """A record {metrics, intervals, files, epochs, training_seconds, curve}, without latencies; files are relative to the
        run folder. The training goes on from the last checkpoint of ``kept``, and leaves others there.

        The network learns from the training and the validation part, so that there is no validation error any more; with a
        target from the images that do not judge, and ``error`` is the validation error.
        ``test_error`` is counted on the exported ONNX file (or the ``torch.export`` file if ONNX is not installed), on the
        images exactly as the user has them. The intervals of errors are Wilson's, 95 %.

        With ``seconds`` the training is to take about so long, and the epochs are what that is thought to allow.
        """
        setup = self.setup
        recipe = replace(self.recipe, epochs=epochs)
        fitted = train.fit(net, setup.lessons, recipe, setup.augment, setup.config.seed, number, watch,
                           resume=kept.recall(), keep=kept.keep, tell=self.tell,
                           judge=self.judged if setup.config.target else None,
                           within=None if seconds is None else (seconds, MAX_EPOCHS))
        net = setup.delivered(net).eval()
        metrics, intervals = dict[str, float](), dict[str, list[float]]()
        if setup.config.target:
            metrics["error"] = train.error(net, setup.validation)
            intervals["error"] = wilson(round(metrics["error"] * len(setup.validation)), len(setup.validation))
        net.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for model in (Count(), Memory()):
            metrics.update(model(net, setup.example))
        files = self.export(net, folder)
        wrong, n = self.mistakes(folder, files)
        metrics["test_error"], intervals["test_error"] = wrong / n, wilson(wrong, n)
        return {"metrics": metrics, "files": files, "epochs": epochs if seconds is None else fitted.curve[-1]["epochs"],
                "training_seconds": fitted.seconds, "curve": [dict(point) for point in fitted.curve], "intervals": intervals}

    def judged(self, net: nn.Module) -> dict[str, float]:
        """What a learning curve tells of a network that is not ready."""
        return {"error": train.error(self.setup.delivered(net).eval(), self.setup.validation, fast=True)}

    def export(self, net: nn.Module, folder: Path) -> dict[str, str]:
        """Writes the files that this installation can write: format -> path relative to the run folder."""
        setup = self.setup
        model = WithPreprocessing(net, setup.training.mean.tolist(), setup.training.std.tolist(), setup.dataset.layout).eval()
        example = torch.from_numpy(np.ascontiguousarray(setup.dataset.x[setup.split.train[:2]]))
        graph = capture(model, example)
        files = {"torch": folder / "model.pt2"}
        export_torch(graph, example, files["torch"])
        if has_onnx():
            files["onnx"] = folder / "model.onnx"
            export_onnx(graph, example, files["onnx"])
        return {name: str(path.relative_to(folder.parent.parent)) for name, path in files.items()}

    def mistakes(self, folder: Path, files: Mapping[str, str]) -> tuple[int, int]:
        """Wrong answers on the test part, and its size: the one place where the test part is used."""
        dataset, test = self.setup.dataset, self.setup.split.test
        read = partial(onnx_logits, threads=torch.get_num_threads()) if "onnx" in files else torch_logits
        file = folder / Path(files.get("onnx", files["torch"])).name
        try:
            logits = read(file, dataset.x[test], batch=train.at_once(self.setup.example.shape))
        except Exception as problem:  # those of ONNX Runtime share no base but this one
            raise ExportError(f"{file.name} cannot be run: {one_line(problem)}") from problem
        return int((logits.argmax(axis=1) != dataset.y[test]).sum()), len(test)

    def latencies(self, nets: Sequence[nn.Module], folders: Sequence[Path]) -> list[Metrics]:
        """The latencies of all delivered networks, timed by turns: in PyTorch, and in ONNX Runtime if it is installed.

        Args:
            nets: of the delivered architectures; their weights do not matter.
            folders: where their files are.
        """
        found = Latency().compare([self.setup.delivered(net).eval() for net in nets], self.setup.example)
        files = [folder / "model.onnx" for folder in folders]
        if not files or not all(file.exists() for file in files):
            return found
        raw = torch.from_numpy(np.ascontiguousarray(self.setup.dataset.x[self.setup.split.train[:1]]))
        return [{**metrics, "latency_onnx_ms": t.median_ms, "latency_onnx_iqr_ms": t.iqr_ms}
                for metrics, t in zip(found, onnx_latencies(files, raw), strict=True)]


def designed(setup: Setup) -> dict[str, nn.Module]:
    """The two hand-designed baselines for these images, freshly initialised."""
    from nasopt.spaces.designed import small_mobilenet, small_resnet

    torch.manual_seed(seeds.integer(setup.config.seed, 0, "designed"))
    shape, classes = setup.dataset.input_shape, len(setup.dataset.classes)
    return {"small ResNet": small_resnet(shape, classes), "small MobileNetV2-like": small_mobilenet(shape, classes)}
