"""Gradient strategies in a run: as many steps as half of the search's time allows, the rest is for measuring what they find."""

from __future__ import annotations

import copy
import time

from nasopt.nets.differentiable import DifferentiableSearch
from nasopt.pipeline.setup import Setup
from nasopt.strategies.gradient import RECIPES, SLICES, Blobs, Gradient
from nasopt.strategies.watch import watch

SHARE = 0.5
"""Of a search's time, what the training of the relaxed network takes."""

WATCHING = 0.1
"""Of that, what is for watching it: so little that it is always watched, if only once in 20 slices as closely as can be."""

TRIED = 3
"""Steps that are timed, after one that is not."""


def plan(setup: Setup, name: str, seconds: float) -> dict[str, int]:
    """How many steps of a method fit into its share of so many seconds, at least one a slice; and after every how many slices it
    is watched closely (`every`)."""
    tried = _search(setup, name, 1 + TRIED)
    tried.run(1)
    began = time.perf_counter()
    tried.run(TRIED)
    step = (time.perf_counter() - began) / TRIED
    began = time.perf_counter()
    watch(tried, setup.config.seed, 0, True)
    look, share = time.perf_counter() - began, SHARE * seconds
    steps = max(SLICES, int((1 - WATCHING) * share / step))
    return {"steps": steps, "watch": every(look, WATCHING * max(share, steps * step))}


def every(look: float, seconds: float) -> int:
    """The least divisor of `SLICES` at which so many looks fit into the time; `SLICES` if none does."""
    divisors = [k for k in range(1, SLICES + 1) if SLICES % k == 0]
    return next((k for k in divisors if SLICES // k * look <= seconds), SLICES)


def strategy(setup: Setup, name: str, planned: dict[str, int], blobs: Blobs) -> Gradient:
    """The strategy, watched and guarded; its weights are kept in ``blobs``."""
    search = _search(setup, name, planned["steps"])
    return Gradient(setup.problem, setup.config.seed, search, name, RECIPES[name].flat, blobs=blobs, watch=planned["watch"],
                    guard=True)


def _search(setup: Setup, name: str, steps: int) -> DifferentiableSearch:
    return DifferentiableSearch(copy.deepcopy(setup.net), setup.training, setup.validation, RECIPES[name].method, steps,
                                setup.config.seed, setup.augment)
