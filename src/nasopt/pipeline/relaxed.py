"""Gradient strategies in a run: as many steps as half of the search's time allows, the rest is for measuring what they find."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

from torch import nn

from nasopt.errors import InputError
from nasopt.nets.differentiable import DifferentiableSearch
from nasopt.pipeline.setup import PARTIAL, Setup
from nasopt.strategies.gradient import RECIPES, SLICES, Blobs, Gradient
from nasopt.strategies.watch import watch

SHARE = 0.5
"""Of a search's time, what the training of the relaxed network takes."""

WATCHING = 0.1
"""Of that, what is for watching it: so little that it is always watched, if only once in 20 slices as closely as can be."""

TRIED = 3
"""Steps that are timed, after one that is not."""


@dataclass(frozen=True)
class Plan:
    """Steps of the training, and after how many slices the search is watched closely."""

    steps: int
    watch: int


def network(setup: Setup, name: str, shared: nn.Module | None) -> nn.Module:
    """What a recipe relaxes: a network of the space with partial channels, if the recipe and the space have them; else one that
    begins with the shared weights, if they were trained."""
    build, parts = PARTIAL.get(setup.config.space), RECIPES[name].partial
    if parts > 1 and build is not None:
        return build(setup.dataset.input_shape, len(setup.dataset.classes), parts)
    return copy.deepcopy(setup.net if shared is None else shared)


def plan(setup: Setup, name: str, seconds: float) -> Plan:
    """How many steps of a method fit into its share of so many seconds, and after how many slices it is watched closely.

    Raises:
        InputError: less than one step for every slice.
    """
    tried = _search(setup, name, network(setup, name, None), 1 + TRIED)
    tried.run(1)
    began = time.perf_counter()
    tried.run(TRIED)
    step, share = (time.perf_counter() - began) / TRIED, SHARE * seconds
    if share < SLICES * step:
        needed = setup.config.seconds * SLICES * step / share
        raise InputError(f"{share:.1f} s to train the network that {name!r} relaxes are {share / step:.0f} steps, where {SLICES} "
                         f"are needed at least: give a budget of {needed:.0f} s or more, or choose another strategy.")
    began = time.perf_counter()
    watch(tried, setup.config.seed, 0, True)
    look = time.perf_counter() - began
    return Plan(max(SLICES, int((share - max(WATCHING * share, look)) / step)), every(look, WATCHING * share))


def every(look: float, seconds: float) -> int:
    """The least divisor of `SLICES` at which so many looks fit into the time; `SLICES`, one look, if none does."""
    divisors = [k for k in range(1, SLICES + 1) if SLICES % k == 0]
    return next((k for k in divisors if SLICES // k * look <= seconds), SLICES)


def strategy(setup: Setup, name: str, net: nn.Module, plan: Plan, stride: int, blobs: Blobs) -> Gradient:
    """The strategy, watched and guarded; its weights are kept in ``blobs``."""
    search = _search(setup, name, net, plan.steps)
    return Gradient(setup.problem, setup.config.seed, search, name, RECIPES[name].flat, blobs=blobs, stride=stride,
                    watch=plan.watch, guard=True)


def stride(seconds: float, evaluation: float) -> int:
    """Slices before every ask, so that the evaluations, of so many seconds each, fit into what the training leaves of the
    search's time."""
    return math.ceil(SLICES / max(1, int((1 - SHARE) * seconds / evaluation)))


def _search(setup: Setup, name: str, net: nn.Module, steps: int) -> DifferentiableSearch:
    return DifferentiableSearch(net, setup.training, setup.validation, RECIPES[name].within(steps), steps, setup.config.seed,
                                setup.augment)
