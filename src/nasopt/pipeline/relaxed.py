"""Gradient strategies in a run: as many steps as half of the search's time allows, the rest is for measuring what they find."""

from __future__ import annotations

import copy
import time

from nasopt.nets.differentiable import DifferentiableSearch
from nasopt.pipeline.setup import Setup
from nasopt.strategies.gradient import RECIPES, SLICES, Blobs, Gradient

SHARE = 0.5
"""Of a search's time, what the training of the relaxed network takes."""

TRIED = 3
"""Steps that are timed, after one that is not."""


def steps_for(setup: Setup, name: str, seconds: float) -> int:
    """How many steps of a method fit into its share of so many seconds; at least one a slice."""
    tried = _search(setup, name, 1 + TRIED)
    tried.run(1)
    began = time.perf_counter()
    tried.run(TRIED)
    return max(SLICES, int(SHARE * seconds * TRIED / (time.perf_counter() - began)))


def strategy(setup: Setup, name: str, steps: int, blobs: Blobs) -> Gradient:
    """The strategy; its weights are kept in ``blobs``."""
    return Gradient(setup.problem, setup.config.seed, _search(setup, name, steps), name, RECIPES[name].flat, blobs=blobs)


def _search(setup: Setup, name: str, steps: int) -> DifferentiableSearch:
    return DifferentiableSearch(copy.deepcopy(setup.net), setup.training, setup.validation, RECIPES[name].method, steps,
                                setup.config.seed, setup.augment)
