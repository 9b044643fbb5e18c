"""Where a search begins: networks of much capacity for what they cost, found without any training.

Capacity is the geometric mean of multiply-accumulates and parameters: how much a network computes and how much it can hold,
the two plainest proxies for how well it learns, and hard to beat (White et al., "A deeper look at zero-cost proxies
for lightweight NAS", ICLR blog track 2022). Either alone is best served by networks that are all early or all late layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from nasopt import space as spaces
from nasopt.cost.clock import Latency
from nasopt.cost.count import Count
from nasopt.estimators.combine import Cached
from nasopt.estimators.images import Costs
from nasopt.pipeline import final
from nasopt.pipeline.setup import Setup
from nasopt.run.search import INTERRUPTED, Budget, Progress, search
from nasopt.space import Arch
from nasopt.strategies.evolution import NSGA2
from nasopt.trial import Metrics, Objective, Problem, Trial

ROUGH = 10
"""Timed passes of a latency here; the search times what it is handed again."""


def start(setup: Setup, budget: Budget, n: int, fits: Callable[[Arch], bool], watch: Callable[[Progress], None]) -> list[Arch]:
    """Up to ``n`` architectures, those first that add most to the front of capacity against cost, among the uniform ones
    (`space.tied`): they are few, and designers find good networks among them.

    Without a cost among the objectives there is nothing to trade capacity against, and the list is empty.

    Args:
        budget: how long to look.
        fits: whether a network is small enough to be trained in the end.
    """
    costs = tuple(o for o in setup.problem.objectives if o.name != "error")
    if not costs:
        return []
    limits = tuple(c for c in setup.problem.constraints if c.name != "error")
    space, spelled_out = spaces.tied(setup.problem.space)
    problem, seed = Problem(space, (Objective("capacity", minimise=False), *costs), limits), setup.config.seed
    models = [replace(m, runs=ROUGH) if isinstance(m, Latency) else m for m in setup.cost_models()]
    measure = Cached(Costs(setup.net, [capacity, *models], setup.example), setup.problem.space)
    study = search(problem, NSGA2(problem, seed, population=24), lambda ask: measure(replace(ask, arch=spelled_out(ask.arch))),
                   seed=seed, budget=budget, watch=watch)
    if study.stopped == INTERRUPTED:
        raise KeyboardInterrupt
    return [spelled_out(t.ask.arch) for t in _spread(study.front(), problem, n, lambda arch: fits(spelled_out(arch)))]


def capacity(net: nn.Module, example: Tensor, /) -> Metrics:
    """``capacity``: the geometric mean of multiply-accumulates and parameters."""
    found = Count()(net, example)
    return {"capacity": math.sqrt(found["flops"] * found["params"])}


def _spread(front: list[Trial], problem: Problem, n: int, fits: Callable[[Arch], bool]) -> list[Trial]:
    """Those of a front that fit, spread over it."""
    left, small = list(front), set[int]()
    while left:
        values = np.array([problem.values(t.metrics) for t in left])
        values[:, 0] = 1 / np.maximum(-values[:, 0], 1.0)  # as a cost
        chosen = [left[k] for k in final.spread(values, [], n)]
        small |= {t.ask.number for t in chosen if t.ask.number not in small and fits(t.ask.arch)}
        if all(t.ask.number in small for t in chosen):
            return chosen
        left = [t for t in left if t not in chosen or t.ask.number in small]
    return []
