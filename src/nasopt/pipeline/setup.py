"""What a run works on: data, split, network with choices, problem. Everything that can be refused is refused here."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nasopt import goals
from nasopt import seed as seeds
from nasopt import space as spaces
from nasopt.cost.clock import Latency
from nasopt.cost.count import Count
from nasopt.cost.forward import capture
from nasopt.cost.memory import Memory
from nasopt.errors import InputError, one_line, unknown
from nasopt.estimators.images import Costs
from nasopt.nets import choices
from nasopt.nets.export import nchw
from nasopt.nets.supernet import sandwich
from nasopt.nets.train import Augment, Images, Mirrored, device_of
from nasopt.protocols import CostModel
from nasopt.space import Arch
from nasopt.strategies import catalogue
from nasopt.tasks.data import Dataset, Split, normalisation, split
from nasopt.trial import Ask, Constraint, Metrics, Objective, Problem

EXPECTED = "expected_error"
"""The metric that stands for the error in the search of a run with a target."""

VALIDATION = 5000
"""Images of the validation part that a candidate is judged on, at most."""


@dataclass(frozen=True)
class Config:
    """What the user asked for, as plain values; it is stored with the run.

    Attributes:
        data: a source that `nasopt.tasks.data.load` knows.
        space: ``cells``, ``nb201``, ``darts``, ``fast``, ``fast-wide``, or ``own`` for a network of the user's.
        seconds: of search and training, everything included.
        trials: evaluations of the search at most; None: as many as the time allows.
        networks: how many of the search's front are trained, at most.
        trust: Kendall's tau below which shared weights are not believed.
        min_gain: the search ends when the next tenth of its trials is expected to add less than this share (`SmallGain`).
        target: bounds; once a trained network meets all of them the run ends.
        device: where networks are trained (`nasopt.nets.train.device_of`); costs are measured on the CPU.
        mirror: networks are delivered as `nasopt.nets.train.Mirrored`, and all costs but those of training are theirs.
        given: the data set was given from Python; ``data`` is its name.
        image_size: (height, width) to which the images of a folder are resized.
    """

    data: str
    space: str = "cells"
    objectives: tuple[Objective, ...] = (Objective("error"), Objective("latency_ms", "ms"), Objective("memory_mb", "MB"))
    constraints: tuple[Constraint, ...] = ()
    seconds: float = 200.0
    trials: int | None = None
    strategy: str = "hybrid"
    seed: int = 0
    networks: int = 10
    trust: float = 0.4
    min_gain: float | None = None
    target: tuple[Constraint, ...] = ()
    device: str = "cpu"
    mirror: bool = False
    given: bool = False
    image_size: tuple[int, int] | None = None

    @property
    def aims_at_target(self) -> bool:
        """Whether the search serves a target alone. A front for all preferences is searched for all objectives."""
        return bool(self.target) and self.strategy != catalogue.PREFERENCE

    @property
    def searched(self) -> tuple[Objective, ...]:
        """What the search minimises: the objectives; for a target the expected error, and each cost that the target bounds."""
        costs = [Objective(c.name, c.unit) for c in self.target if c.name != "error"]
        return (Objective(EXPECTED), *dict.fromkeys(costs)) if self.aims_at_target else self.objectives

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Config:
        """The inverse of `to_json`."""
        return cls(**{**data, "objectives": tuple(Objective(**o) for o in data["objectives"]),
                      "constraints": tuple(Constraint(**c) for c in data["constraints"]),
                      "target": tuple(Constraint(**c) for c in data.get("target", ())),
                      "image_size": tuple(data["image_size"]) if data.get("image_size") else None})


@dataclass(frozen=True, eq=False)
class Setup:
    """A run's parts, ready to use. Image tensors are (N, C, H, W) in the user's own values.

    Attributes:
        net: the network with choices, never trained: what is trained starts from a copy.
        rest: training and validation parts together.
        lessons: what the final networks are trained on: ``rest``; with a target without the images that judge, ``validation``.
    """

    config: Config
    dataset: Dataset
    split: Split
    net: nn.Module
    problem: Problem
    training: Images
    validation: Images
    rest: Images
    lessons: Images
    augment: Augment

    @property
    def example(self) -> Tensor:
        """One normalised training image, (1, C, H, W), on the CPU."""
        return self.training.normalised(slice(0, 1)).cpu().contiguous()

    def cost_models(self) -> list[CostModel]:
        """The cost models that the objectives, the constraints and the target need, cheapest first."""
        needed = {o.name for o in self.problem.objectives} | {c.name for c in (*self.problem.constraints, *self.config.target)}
        return [make() for keys, make in COSTS if keys & needed]

    def delivered(self, net: nn.Module) -> nn.Module:
        """A network as it is exported and measured."""
        return Mirrored(net) if self.config.mirror else net

    def of_delivered(self, models: Sequence[CostModel]) -> list[CostModel]:
        """Cost models that see a network as it is delivered."""
        return [_Delivered(self, model) for model in models] if self.config.mirror else list(models)


@dataclass(frozen=True)
class _Delivered:
    setup: Setup
    model: CostModel

    def __call__(self, net: nn.Module, example: Tensor, /) -> Metrics:
        return self.model(self.setup.delivered(net).eval(), example)


COSTS: tuple[tuple[frozenset[str], Callable[[], CostModel]], ...] = (
    (frozenset({"params", "flops", "size_mb"}), Count),
    (frozenset({"memory_mb"}), Memory),
    (frozenset({"latency_ms"}), Latency),
    (frozenset({"latency_onnx_ms"}), lambda: Latency("onnxruntime")),
)


def check_config(config: Config) -> None:
    """Refuses what cannot work, before anything is read.

    Raises:
        InputError: a budget that is not positive, an unknown space or strategy, an objective that cannot be searched for, or
            a strategy that is not for these objectives.
    """
    if not 0 < config.seconds < math.inf:
        raise InputError(f"the budget must be positive and finite, got {config.seconds:g} s: give e.g. --budget 5m.")
    if config.trials is not None and config.trials < 1:
        raise InputError(f"the number of trials must be at least 1, got {config.trials}.")
    if config.seed < 0:
        raise InputError(f"the seed must be at least 0, got {config.seed}.")
    if config.networks < 1:
        raise InputError(f"at least 1 network must be trained, got {config.networks}.")
    if config.min_gain is not None and not 0 < config.min_gain < 1:
        raise InputError(f"the least gain must be a share between 0 and 1, got {config.min_gain:g}: give e.g. 0.01.")
    if config.space not in (*SPACES, "own"):
        raise unknown("space", config.space, SPACES)
    names = [o.name for o in config.objectives]
    for name in (*names, *(c.name for c in (*config.constraints, *config.target))):
        if (key := goals.metric(name).key) != name:
            raise InputError(f"the metric {name!r} has the key {key!r} in an Objective or a Constraint: write that, or give a "
                             "text.")
    if len(set(names)) < len(names) or not all(o.minimise for o in config.objectives):
        raise InputError(f"every objective is minimised and named once, got {', '.join(names)}: mend the list.")
    if "error" not in names:
        raise InputError("the objectives must include 'error': without it nothing would be learned; add it.")
    if config.given and config.image_size is not None:
        raise InputError("image_size resizes folders of images only, and this data set is loaded already: leave image_size out.")
    catalogue.check_name(config.strategy)
    if device_of(config.device).type != "cpu" and config.strategy in catalogue.NETWORKS:
        raise InputError(f"the strategy {config.strategy!r} runs on the CPU, not on {config.device!r}: choose another strategy "
                         "or the device cpu.")
    if config.strategy in catalogue.STRATEGIES:
        catalogue.make(config.strategy, Problem(spaces.Product("", ()), config.searched), 0)


def _cells(shape: tuple[int, int, int], classes: int) -> nn.Module:
    from nasopt.spaces.cells import cells

    return cells(shape, classes)


def _fast(shape: tuple[int, int, int], classes: int) -> nn.Module:
    from nasopt.spaces.fast import fast

    return fast(shape, classes)


def _fast_wide(shape: tuple[int, int, int], classes: int) -> nn.Module:
    from nasopt.spaces.fast import PERCENT, WIDER, fast

    return fast(shape, classes, percent=(*PERCENT, *WIDER))


def _nb201(shape: tuple[int, int, int], classes: int, partial: int = 1) -> nn.Module:
    from nasopt.spaces.nb201 import nb201

    return nb201(classes, in_channels=shape[0], partial=partial)


def _darts(shape: tuple[int, int, int], classes: int, partial: int = 1) -> nn.Module:
    from nasopt.spaces.darts import darts

    return darts(classes, in_channels=shape[0], partial=partial)


SPACES: Mapping[str, Callable[[tuple[int, int, int], int], nn.Module]] = {"cells": _cells, "nb201": _nb201, "darts": _darts,
                                                                                "fast": _fast, "fast-wide": _fast_wide}
"""Input shape and number of classes -> the supernet."""


def _members() -> tuple[Callable[[Any], dict[str, int]], ...]:
    from nasopt.spaces.fast import airbench94, airbench96, mobilenetv2, resnet18

    return airbench94, airbench96, resnet18, mobilenetv2


MEMBERS: Mapping[str, Callable[[], Sequence[Callable[[Any], dict[str, int]]]]] = {"fast": _members, "fast-wide": _members}
"""Networks designed by hand that a space has: supernet -> architecture, or an `InputError` where it is no member."""

PARTIAL: Mapping[str, Callable[[tuple[int, int, int], int, int], nn.Module]] = {"nb201": _nb201, "darts": _darts}
"""The same where only one in so many channels passes the operations (PC-DARTS)."""


def prepare(config: Config, dataset: Dataset, own: nn.Module | None = None, parts: Split | None = None) -> Setup:
    """Checks everything and builds the parts. Nothing is written.

    Args:
        own: the user's network with choices, if ``config.space`` is ``own``.
        parts: the split of a run that is resumed.

    Raises:
        InputError: what `check_config` refuses, or a network that does not fit the data.
    """
    check_config(config)
    parts = parts or split(dataset, config.seed)
    mean, std = normalisation(dataset, parts.train)
    x, y = nchw(torch.from_numpy(np.ascontiguousarray(dataset.x)), dataset.layout), torch.from_numpy(dataset.y)
    try:
        images = Images.all(x, y, torch.from_numpy(mean), torch.from_numpy(std)).to(device_of(config.device))
    except torch.OutOfMemoryError as e:
        raise InputError(f"the images take {x.nbytes / 1e9:.1f} GB, more than {config.device!r} has free: give smaller ones (a "
                         "folder with --image-size), or the device cpu.") from e
    torch.manual_seed(seeds.integer(config.seed, 0, "weights"))
    net = own if own is not None else SPACES[config.space](dataset.input_shape, len(dataset.classes))
    problem = Problem(choices.space_of(net), config.objectives, config.constraints)
    validation = seeds.rng(config.seed, 0, "validation").permutation(parts.val)[:VALIDATION]
    rest = np.concatenate([parts.train, parts.val])
    lessons = rest[~np.isin(rest, validation)] if config.target else rest
    setup = Setup(config, dataset, parts, net, problem, images.part(torch.from_numpy(parts.train)),
                  images.part(torch.from_numpy(np.sort(validation))),
                  images.part(torch.from_numpy(rest)), images.part(torch.from_numpy(lessons)),
                  Augment.for_images(dataset.input_shape))
    if config.mirror and not setup.augment.flip:
        raise InputError(f"images of shape {dataset.input_shape} are not mirrored in training, so that a network cannot answer "
                         "for a mirror image: leave out --mirror (mirror=True).")
    _check_output(setup)
    return setup


def _check_output(setup: Setup) -> None:
    """Trains the smallest and the largest network on two images and exports the smallest: what cannot work is told now."""
    classes, graph = len(setup.dataset.classes), None
    for k, arch in enumerate(sandwich(setup.problem.space, 0, setup.config.seed, 0)[::-1]):
        alone = choices.extract(setup.net, arch).train()
        try:
            out = alone(setup.example.repeat(2, 1, 1, 1))
            shape = tuple(out.shape)
            out.sum().backward()
            if k == 0 and setup.config.space == "own":
                graph = capture(alone.eval(), setup.example)
        except Exception as problem:  # a user's module may raise anything
            raise InputError(f"the network fails on images of shape {tuple(setup.example.shape[1:])} with: "
                             f"{one_line(problem)}; mend it.") from problem
        if shape != (2, classes):
            raise InputError(f"the network gives outputs of shape {shape} for 2 images, but the data has {classes} classes: "
                             f"its last layer must give (2, {classes}).")
    if graph is not None and has_onnx():
        from nasopt.cost.runtimes import onnx_bytes

        onnx_bytes(graph, setup.example)


def has_onnx() -> bool:
    """Whether ONNX files can be written and run here."""
    try:
        import nasopt.cost.runtimes  # noqa: F401
    except InputError:
        return False
    return True


@dataclass(frozen=True)
class Sampled:
    """What a sample of architectures costs: the architectures, their metrics, and the places of the feasible ones."""

    archs: list[Arch]
    metrics: list[Metrics]
    feasible: list[int]


def survey(setup: Setup, n: int = 40) -> Sampled:
    """The costs of a sample: first ``n / 2`` random networks, different ones where there are so many, then as many of the
    smallest size if too few of the first are feasible. It ends early when it has taken a tenth of the time budget
    and found ``n / 4`` feasible ones.

    Raises:
        InputError: none is feasible: the sentence names the constraint that is missed by most, and by how much.
    """
    space, seed, started = setup.problem.space, setup.config.seed, time.perf_counter()
    measure = Costs(setup.net, setup.of_delivered(setup.cost_models()), setup.example)
    sampled = Sampled([], [], [])
    names: set[str] = set()
    for k in range(n):
        if k >= n // 2 and len(sampled.feasible) >= n // 4:
            break
        arch = spaces.canonical(space, sandwich(space, 1, seed, k)[2 if k < n // 2 else 1])
        if spaces.key(arch) in names:
            continue
        names.add(spaces.key(arch))
        metrics = measure(Ask(k, arch))
        if setup.problem.violation(metrics) == 0:
            sampled.feasible.append(len(sampled.archs))
        sampled.archs.append(arch)
        sampled.metrics.append(metrics)
        if len(sampled.feasible) >= n // 4 and time.perf_counter() - started > setup.config.seconds / 10:
            break
    if not sampled.feasible:
        raise InputError(_hopeless(setup.problem, sampled.metrics))
    return sampled


def _hopeless(problem: Problem, metrics: Sequence[Metrics]) -> str:
    """The constraint whose best value in the sample is the furthest off, or, if each can be met alone, all of them."""
    worst, best = max(((c, min(m[c.name] for m in metrics)) for c in problem.constraints if c.name in metrics[0]),
                      key=lambda pair: pair[0].violation({pair[0].name: pair[1]}))
    if best <= worst.upper:
        together = " and ".join(str(c) for c in problem.constraints)
        return f"no architecture among {len(metrics)} meets {together} together, though each alone can be met: relax one."
    return (f"no architecture meets {worst}: the best of {len(metrics)}, the smallest included, has {best:.4g}"
            f"{worst.unit and ' ' + worst.unit} ({best / worst.upper:.3g} times the bound); relax it.")


def fingerprint(dataset: Dataset) -> str:
    """Changes if an image, a label or their order does."""
    digest = hashlib.blake2b(np.ascontiguousarray(dataset.y).tobytes(), digest_size=8)
    digest.update(np.ascontiguousarray(dataset.x).data)
    return digest.hexdigest()
