"""Where a search begins: networks of much capacity for what they cost, found without any training.

Capacity is the geometric mean of multiply-accumulates and parameters, how much a network computes and how much it can hold:
the two plainest proxies for how well it learns, and hard to beat (White et al., "A deeper look at zero-cost proxies
for lightweight NAS", ICLR blog track 2022). Either alone is best served by networks that are all early or all late layers.
It counts only as far as the network sees the image (`nasopt.cost.receptive`).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from nasopt import seed as seeds
from nasopt import space as spaces
from nasopt.cost.clock import Latency, clock
from nasopt.cost.count import Count
from nasopt.cost.layers import Layers, forward_ms
from nasopt.cost.receptive import seen
from nasopt.estimators.combine import Cached
from nasopt.estimators.images import Costs
from nasopt.nets import train
from nasopt.nets.depthwise import Depthwise
from nasopt.pipeline import final
from nasopt.pipeline.setup import Setup
from nasopt.protocols import CostModel
from nasopt.run.search import INTERRUPTED, Budget, search
from nasopt.space import Arch
from nasopt.strategies.evolution import NSGA2
from nasopt.trial import Constraint, Metrics, Objective, Problem, Study, Trial

ROWS = 64
"""Images in the step that a layer's training time is measured with."""

EACH = 3
"""Networks handed over of each search of `start`."""

POPULATION = 24
"""Of the evolutions."""


def start(setup: Setup, seconds: float, epoch: float, fits: Callable[[Arch], bool], watch: Callable[[float], None],
          trials: int | None = None) -> list[Arch]:
    """Architectures of much capacity: `EACH` of those whose training is affordable, of those that also cost less than each of
    the hand-designed networks, and of those that add most to the front of capacity against costs.

    Each of these searches takes an equal share of the time and begins with what those before found, the first one with
    uniform architectures (`space.tied`): they are few, and designers find good networks among them.

    Without a cost among the objectives there is nothing to trade capacity against, and the list is empty.

    Args:
        seconds: how long to look.
        epoch: seconds that an epoch may take.
        fits: whether it takes no longer, for networks for which that is a close thing.
        watch: called with the seconds used.
        trials: networks that a search may look at, at most.
    """
    objectives = setup.problem.objectives
    if all(o.name == "error" for o in objectives):
        return []
    models, baselines = rough_models(setup), list(final.designed(setup).values())
    bars = [{k: v for model in models for k, v in model(net.eval(), setup.example).items()} for net in baselines]
    known = final.epoch_seconds(baselines[0], setup.rest, train.Recipe(), setup.augment)
    affordable = [*(c for c in setup.problem.constraints if c.name != "error"),
                  Constraint("step_ms", bars[0]["step_ms"] * epoch / known, "ms")]
    least = [o for o in objectives if o.name == "error"]
    below = [[Constraint(o.name, bar[o.name] * (1 - final.MARGIN * o.name.startswith("latency")), o.unit)
              for o in objectives if o.name != "error"] for bar in bars]
    problems = [Problem(setup.problem.space, tuple(least), (*affordable, *limits)) for limits in [[], *below]]
    problems.append(Problem(setup.problem.space, objectives, tuple(affordable)))

    measure, begun = Cached(Costs(setup.net, models, setup.example), setup.problem.space), time.perf_counter()
    best, found = _uniform(setup, POPULATION), list[Arch]()
    for k, problem in enumerate(problems):
        left = max(1e-3, (seconds - (time.perf_counter() - begun)) / (len(problems) - k))
        strategy = NSGA2(problem, setup.config.seed + k, population=POPULATION, initial=best)
        study = search(problem, strategy, measure, seed=setup.config.seed, budget=Budget(trials=trials, seconds=left),
                       watch=lambda progress: watch(time.perf_counter() - begun))
        if study.stopped == INTERRUPTED:
            raise KeyboardInterrupt
        chosen = _first(study, objectives, fits, affordable[-1])
        found += [a for a in chosen if a not in found]
        best = chosen + best[:POPULATION - len(chosen)]
    return found


def _first(study: Study, objectives: Sequence[Objective], fits: Callable[[Arch], bool], step: Constraint) -> list[Arch]:
    """`EACH` architectures that fit and differ: of most capacity, or spread over the front if there are several objectives."""
    single = len(study.problem.objectives) == 1
    left, good = sorted(study.feasible() if single else study.front(), key=lambda t: t.metrics["error"]), set[int]()
    while True:
        chosen = _different(left) if single else final.choose(left, objectives, [], EACH)
        bad = [t for t in chosen if t.ask.number not in good and t.metrics["step_ms"] > step.upper / 2 and not fits(t.ask.arch)]
        if not bad:
            return [t.ask.arch for t in chosen]
        good |= {t.ask.number for t in chosen if t not in bad}
        left = [t for t in left if t not in bad]


def _different(trials: Sequence[Trial]) -> list[Trial]:
    """The first `EACH` that differ from those before in at least `EACH` choices."""
    chosen: list[Trial] = []
    for trial in trials:
        if len(chosen) < EACH and all(_distance(trial.ask.arch, c.ask.arch) >= EACH for c in chosen):
            chosen.append(trial)
    return chosen


def _distance(a: Arch, b: Arch) -> int:
    """In how many choices two architectures differ."""
    return sum(a.get(path) != b.get(path) for path in a.keys() | b.keys())


def _uniform(setup: Setup, n: int) -> list[Arch]:
    """Random architectures of which all parts are alike."""
    uniform, spelled_out = spaces.tied(setup.problem.space)
    rng = seeds.rng(setup.config.seed, 0, "warm start")
    return [spelled_out(spaces.sample(uniform, rng)) for _ in range(n)]


def rough_models(setup: Setup) -> list[CostModel]:
    """What the objectives and constraints need, with latencies as sums over layers; ``error``, as far as capacity tells;
    and ``step_ms``, a training step of `ROWS` images."""
    models = [Layers("latency_ms", forward_ms()) if isinstance(m, Latency) and m.runtime == "torch" else m
              for m in setup.cost_models()]
    return [capacity, *models, Layers("step_ms", step_ms)]


def capacity(net: nn.Module, example: Tensor, /) -> Metrics:
    """``error``, standing in for the error to come: the inverse of capacity, the geometric mean of multiply-accumulates and
    parameters, times the share of the image that is seen."""
    found = Count()(net, example)
    return {"error": 1 / (1 + math.sqrt(found["flops"] * found["params"]) * seen(net, example))}


def step_ms(layer: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Times a forward and a backward pass of a layer on `ROWS` images, as in training."""
    twin = train.channels_last(copy.deepcopy(layer).train().requires_grad_())
    rows = [torch.randn(ROWS, *x.shape[1:]) for x in inputs]
    rows = [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in rows]
    return clock(partial(_step, twin, [x.requires_grad_() for x in rows]), warmup=1, runs=2, settle=0.0).median_ms


def _step(layer: nn.Module, inputs: Sequence[Tensor]) -> None:
    with torch.enable_grad(), train.autocast(), Depthwise():
        out = layer.forward(*inputs)
    torch.autograd.backward(out, torch.ones_like(out))
