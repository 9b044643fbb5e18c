"""Where a search begins: networks that compute much for what they cost, found without any training.

How much a network computes is the plainest proxy for how well it learns, and hard to beat (White et al., "A deeper look at
zero-cost proxies for lightweight NAS", ICLR blog track 2022). With its costs as the other objectives, it finds the plain,
efficient members of a space in seconds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nasopt.cost.count import Count
from nasopt.estimators.combine import Staged
from nasopt.estimators.images import Costs
from nasopt.pipeline import final
from nasopt.pipeline.setup import Setup
from nasopt.protocols import CostModel
from nasopt.run.search import INTERRUPTED, Budget, Progress, search
from nasopt.space import Arch
from nasopt.strategies.evolution import NSGA2
from nasopt.trial import Objective, Problem, Trial


def start(setup: Setup, seconds: float, n: int, fits: Callable[[Arch], bool], watch: Callable[[Progress], None]) -> list[Arch]:
    """Up to ``n`` architectures, those first that add most to the front of computation against cost.

    Computation is multiply-accumulates, or parameters where those are an objective themselves; without another cost there is
    nothing to trade it against, and the list is empty.

    Args:
        seconds: how long to look.
        fits: whether a network is small enough to be trained in the end.
    """
    named = {o.name for o in setup.problem.objectives}
    gain = Objective("flops" if "flops" not in named else "params", minimise=False)
    costs = tuple(o for o in setup.problem.objectives if o.name not in ("error", gain.name))
    if not costs:
        return []
    limits = tuple(c for c in setup.problem.constraints if c.name != "error")
    problem, seed = Problem(setup.problem.space, (gain, *costs), limits), setup.config.seed
    models: list[CostModel] = [Count(), *(m for m in setup.cost_models() if not isinstance(m, Count))]
    study = search(problem, NSGA2(problem, seed, population=24), Staged(problem, [Costs(setup.net, models, setup.example)]),
                   seed=seed, budget=Budget(seconds=seconds), watch=watch)
    if study.stopped == INTERRUPTED:
        raise KeyboardInterrupt
    return [t.ask.arch for t in _spread(study.front(), problem, n, fits)]


def _spread(front: list[Trial], problem: Problem, n: int, fits: Callable[[Arch], bool]) -> list[Trial]:
    """Those of a front that fit, spread over it."""
    left = list(front)
    while left:
        values = np.array([problem.values(t.metrics) for t in left])
        values[:, 0] = -1 / np.minimum(values[:, 0], -1.0)
        chosen = [left[k] for k in final.spread(values, [], n)]
        large = [t for t in chosen if not fits(t.ask.arch)]
        if not large:
            return chosen
        left = [t for t in left if t not in large]
    return []
