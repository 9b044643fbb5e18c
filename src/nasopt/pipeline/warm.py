"""Where a search begins: networks of much capacity for what they cost, found without any training.

Capacity says how much a network computes and how much it can hold: multiply-accumulates and parameters are the two plainest
proxies for how well it learns, and hard to beat (White et al., "A deeper look at zero-cost proxies for lightweight NAS",
ICLR blog track 2022). Either alone is best served by networks that are all early or all late layers, so it also counts
how evenly the work is spread over the sizes of the maps, and how far the network sees (`nasopt.cost.receptive`).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from nasopt import goals
from nasopt import seed as seeds
from nasopt import space as spaces
from nasopt.cost.clock import Latency
from nasopt.cost.count import flops, flops_by_size, params
from nasopt.cost.forward import batch_of
from nasopt.cost.layers import Layers, fastest_ms, forward_ms
from nasopt.cost.receptive import seen
from nasopt.errors import InputError
from nasopt.estimators.combine import Cached
from nasopt.estimators.images import Costs
from nasopt.nets import choices, train
from nasopt.nets.depthwise import depthwise
from nasopt.pipeline import final
from nasopt.pipeline.setup import MEMBERS, Setup
from nasopt.protocols import CostModel
from nasopt.run.search import INTERRUPTED, Budget, search
from nasopt.space import Arch
from nasopt.spaces import scaling
from nasopt.strategies.evolution import NSGA2
from nasopt.trial import Constraint, Metrics, Objective, Problem, Trial

STEP = "step_ms"
"""The metric that says what a training step takes, as far as a table of layers tells."""

ROWS = 64
"""Images in the step that a layer's training time is measured with on a CPU, at most."""

LARGE, SMALL = 3, 9
"""Networks handed over of the search for the most capacity, which are dear to judge and much alike, and of each other search."""

DIFFERENT = 3
"""Choices in which they differ, at least."""

CAPACITY = (Objective("error"),)

PLAIN = 200
"""Architectures of one operation that are looked at first, as far as their share of the time allows."""

POOL_SHARE = 0.3
"""Of the time, for them."""

POPULATION = 24
"""Of the evolutions."""


def affordable(rate: float, epoch: float) -> Constraint:
    """That an epoch takes no more than so many seconds, as far as a table of layers tells.

    Args:
        rate: `rate_of` the same images.
    """
    return Constraint(STEP, rate * epoch, "ms")


def rate_of(setup: Setup) -> float:
    """``step_ms`` of a network for every second that an epoch of it takes: those of a hand-designed one, which is timed."""
    net = next(iter(final.designed(setup).values()))
    step = step_table(setup)(net, setup.example)[STEP]
    return step / final.epoch_seconds(net, setup.lessons, train.Recipe(), setup.augment)


def step_table(setup: Setup) -> Layers:
    """``step_ms``: what a training step takes where networks are trained, as a sum over layers: on a CPU of `ROWS` images, on a
    GPU of a whole batch, since there small steps all take the same time."""
    device = setup.training.device
    rows = min(ROWS, train.at_once(setup.example.shape)) if device.type == "cpu" else train.Recipe().batch_for(setup.lessons)
    return Layers(STEP, partial(step_ms, device=device, rows=rows))


def start(setup: Setup, seconds: float, epoch: float, rate: float, timed: Callable[[Arch], float],
          watch: Callable[[float], None], trials: int | None = None) -> list[Arch]:
    """Architectures of much capacity: `LARGE` of those whose training is affordable, and `SMALL` of those that also cost less
    than each of the hand-designed networks (one that costs more than another in every respect is left out).

    First `PLAIN` architectures of one operation each are looked at (`space.plain`): designers find good networks among them.
    From the best of these an evolution goes on in the whole space, for each of the aims.

    Without a cost, that is an objective which is no error, there is nothing to trade capacity against, and the list is empty.

    Args:
        seconds: how long to look.
        epoch: seconds that an epoch may take.
        rate: see `affordable`.
        timed: the seconds that it takes, really: of the network of most capacity, to see how far the sums over layers are off.
        watch: called with the seconds used.
        trials: networks that each evolution may look at, at most.
    """
    costs = [o for o in setup.problem.objectives if goals.named(o.name).kind != "share"]
    if not costs:
        return []
    models, baselines = rough_models(setup), list(final.designed(setup).values())
    bars = [{k: v for model in models for k, v in model(net.eval(), setup.example).items()} for net in baselines]
    trainable = affordable(rate, epoch)
    below = [[Constraint(o.name, bar[o.name] * (1 - final.MARGIN * o.name.startswith("latency")), o.unit) for o in costs]
             for bar in bars if not any(other is not bar and all(other[o.name] <= bar[o.name] for o in costs) for other in bars)]
    limits = (*(c for c in setup.problem.constraints if c.name != "error"), trainable)
    problems = [Problem(setup.problem.space, CAPACITY, (*limits, *more)) for more in [[], *below]]
    measure, begun = Cached(Costs(setup.net, models, setup.example), setup.problem.space), time.perf_counter()

    def look(problem: Problem, first: Sequence[Arch], until: float, most: int | None) -> list[Trial]:
        """Evolves ``first`` until a share of the time is over; what it measured."""
        spent = time.perf_counter() - begun
        strategy = NSGA2(problem, setup.config.seed, population=POPULATION, initial=first)
        study = search(problem, strategy, measure, seed=setup.config.seed, watch=lambda progress: watch(spent + progress.spent),
                       budget=Budget(trials=most, seconds=max(1e-3, until * seconds - spent)))
        if study.stopped == INTERRUPTED:
            raise KeyboardInterrupt
        return [t for t in study.trials if t.error is None]

    plain = spaces.plain(setup.problem.space, seeds.rng(setup.config.seed, 0, "warm start"), trials or PLAIN)
    pool = look(Problem(setup.problem.space, CAPACITY), plain, POOL_SHARE, len(plain))
    found = list[Arch]()
    for k, problem in enumerate(problems):
        pool.sort(key=lambda t: (problem.violation(t.metrics), t.metrics["error"]))
        until = POOL_SHARE + (1 - POOL_SHARE) * (k + 1) / len(problems)
        better = [t for t in look(problem, [t.ask.arch for t in pool[:POPULATION]], until, trials)
                  if problem.violation(t.metrics) == 0]
        better.sort(key=lambda t: t.metrics["error"])
        if k == 0 and better:
            off = max(1.0, rate * timed(better[0].ask.arch) / better[0].metrics[STEP])
            better = [t for t in better if t.metrics[STEP] * off <= trainable.upper]
        found += [t.ask.arch for t in _different(better, SMALL if k else LARGE) if t.ask.arch not in found]
    return found


def members(setup: Setup) -> list[Arch]:
    """The networks designed by hand that the space has (`nasopt.pipeline.setup.MEMBERS`)."""
    found = list[Arch]()
    for design in MEMBERS.get(setup.config.space, lambda: ())():
        with suppress(InputError):  # no member
            found.append(design(setup.net))
    return found


def designs(setup: Setup, step_ms: float, most: float | None = None, table: Layers | None = None) -> list[Arch]:
    """`members`, each scaled to what a training step of so many rough milliseconds allows, and to half of that;
    multiply-accumulates say what that is. Those come first whose steps take ``most`` (default: the same) as they are.

    Args:
        table: by which the bounds were found, so that no network is timed twice with two answers; None: a new one.
    """
    net, found, others, table = setup.net, list[Arch](), list[Arch](), table or step_table(setup)
    for arch in members(setup):
        alone = choices.extract(net, arch).eval()
        work, own = flops(alone, setup.example), table(alone, setup.example)[STEP]
        if own <= (step_ms if most is None else most):
            found.append(arch)
        with suppress(InputError):  # no scaling as small as that
            for share in (1.0, 0.5):
                others.append(scaling.within(net, arch, setup.example, flops, share * step_ms * work / own).arch)
    return list({spaces.key(arch): arch for arch in [*found, *others]}.values())


def _different(trials: Sequence[Trial], n: int) -> list[Trial]:
    """The first ``n`` that differ from those before them in at least `DIFFERENT` choices."""
    chosen: list[Trial] = []
    for trial in trials:
        if len(chosen) < n and all(_distance(trial.ask.arch, c.ask.arch) >= DIFFERENT for c in chosen):
            chosen.append(trial)
    return chosen


def _distance(a: Arch, b: Arch) -> int:
    """In how many choices two architectures differ."""
    return sum(a.get(path) != b.get(path) for path in a.keys() | b.keys())


def rough_models(setup: Setup) -> list[CostModel]:
    """`rough_costs`; ``error``, as far as capacity tells; and ``step_ms``."""
    return [capacity, *rough_costs(setup), step_table(setup)]


def rough_costs(setup: Setup) -> list[CostModel]:
    """What the objectives and constraints need, with latencies as sums over layers."""
    models = [Layers("latency_ms", forward_ms()) if isinstance(m, Latency) and m.runtime == "torch" else m
              for m in setup.cost_models()]
    return setup.of_delivered(models)


def capacity(net: nn.Module, example: Tensor, /) -> Metrics:
    """``error``, standing in for the error to come: the inverse of capacity. Capacity is the geometric mean of parameters,
    multiply-accumulates, and the geometric mean of these over the sizes of the maps, times the share of the image that is seen.
    """
    sight, work = seen(net, example), flops_by_size(net, example)  # in this order: tensors of inference mode have no gradient
    maps = [flops for size, flops in work.items() if size > 1] or list(work.values()) or [0]
    even = math.exp(np.mean(np.log(np.maximum(maps, 1))))
    return {"error": 1 / (1 + math.cbrt(params(net) * sum(work.values()) * even) * sight)}


def step_ms(layer: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], device: torch.device = train.CPU,
            rows: int = ROWS) -> float:
    """Times a forward and a backward pass of a layer on so many images, as in training: in parts, if they do not fit into the
    device's memory together."""
    parts = 1
    while True:
        try:
            return parts * _timed(layer, inputs, named, device, max(1, rows // parts))
        except torch.OutOfMemoryError:
            if parts >= rows:
                raise
        parts *= 2


def _timed(layer: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], device: torch.device, rows: int) -> float:
    twin, many = train.channels_last(copy.deepcopy(layer).train().requires_grad_().to(device)), partial(_rows, device, rows)
    given = tree_map(many, inputs), tree_map(many, dict(named))
    try:
        return fastest_ms(partial(_step, twin, *given, device), 2)
    except RuntimeError as problem:  # the layer changes its input, which in a network is no leaf of the graph
        if "in-place" not in str(problem):
            raise
        return fastest_ms(partial(_step, twin, *given, device, copied=True), 2)


def _rows(device: torch.device, count: int, value: Any) -> Any:
    """A tensor of so many rows instead of one, on the device."""
    if not isinstance(value, Tensor):
        return value
    if not value.ndim:
        return value.to(device)
    rows = batch_of(value, count).to(device)
    rows = rows.contiguous(memory_format=torch.channels_last) if rows.ndim == 4 else rows
    return rows.requires_grad_(rows.is_floating_point())


def _step(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], device: torch.device, copied: bool = False) -> None:
    with torch.enable_grad(), train.autocast(device=device), depthwise(device):
        if copied:
            inputs, named = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, (inputs, named))
        out = [t for t in tree_leaves(layer.forward(*inputs, **named)) if isinstance(t, Tensor) and t.requires_grad]
    torch.autograd.backward(out, [torch.ones_like(t) for t in out])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
