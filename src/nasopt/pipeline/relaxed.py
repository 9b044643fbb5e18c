"""Strategies that train a relaxed network in a run: as many steps as half of the search's time allows, the rest is for measuring
what they find."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from nasopt.cost.lookup import Lookup, additive, fit_of, here
from nasopt.errors import InputError
from nasopt.estimators.combine import Cached
from nasopt.estimators.images import Costs
from nasopt.nets import expected
from nasopt.nets.differentiable import DifferentiableSearch
from nasopt.nets.preference import Device, PreferenceSearch
from nasopt.pipeline.setup import PARTIAL, Sampled, Setup
from nasopt.pipeline.warm import rough_costs
from nasopt.protocols import Strategy
from nasopt.seed import integer
from nasopt.space import Arch
from nasopt.strategies.bayes import DESIGN
from nasopt.strategies.catalogue import COMBINED, PREFERENCE, members
from nasopt.strategies.gradient import RECIPES, SLICES, TRIED, TUNING, Blobs, Gradient, infinite
from nasopt.strategies.hybrid import Portfolio
from nasopt.strategies.preference import Preference
from nasopt.strategies.random import Unseen
from nasopt.strategies.watch import watch
from nasopt.trial import Ask, Trial

SHARE = 0.5
"""Of a search's time, what the training of the relaxed network takes."""

WATCHING = 0.1
"""Of that, what is for watching it: so little that it is always watched, if only once in 20 slices as closely as can be."""

ONCE = 3 * SLICES // 4
"""The slice after which a search is looked at if time allows for one look: a busy machine may not reach the last one."""

PULL = 0.01
"""How strongly the best trials of all members draw the α of a hybrid."""

TRIAL = 0.3
"""Of that, what trying options takes at most, of methods that end so, unless `FEWEST` images take longer."""

FEWEST = 64
"""Validation images on which an option's absence is tried, at least."""

LEARNING = 4
"""How many times sooner than a search for one α, which asks for it last, a search for a front has trained all its slices."""

TIMED = 4
"""Steps that are timed, after one that is not. α moves in half of them where it moves in half of all steps."""


@dataclass(frozen=True)
class Plan:
    """Steps of the training, the seconds of one, after how many slices the search is watched closely, and on how many validation
    images the absence of an option is tried; 0: on none. Of a search for all preferences also the tables of costs as JSON
    (`nasopt.cost.lookup.Lookup.to_json`), and the seconds that they took."""

    steps: int
    step: float
    watch: int
    tried: int
    tables: Sequence[Mapping[str, Any]] = ()
    measured: float = 0.0


def recipe_of(strategy: str) -> str:
    """The recipe that a strategy follows."""
    return "nasopt" if strategy == COMBINED else strategy


def network(setup: Setup, name: str, shared: nn.Module | None) -> nn.Module:
    """What a recipe relaxes: a network of the space with partial channels, if the recipe and the space have them; else one that
    begins with the shared weights, if they were trained. The seed decides the weights of a new one."""
    if whole(setup, name):
        return copy.deepcopy(setup.net if shared is None else shared)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer(setup.config.seed, 0, "weights"))
        return PARTIAL[setup.config.space](setup.dataset.input_shape, len(setup.dataset.classes), RECIPES[name].partial)


def whole(setup: Setup, name: str) -> bool:
    """Whether what a recipe relaxes has the layers of the space's own network, so that candidates can begin with its weights."""
    return name not in RECIPES or RECIPES[name].partial == 1 or setup.config.space not in PARTIAL


def plan(setup: Setup, name: str, seconds: float) -> Plan:
    """How many steps of a method fit into its share of so many seconds, and after how many slices it is watched closely.

    Raises:
        InputError: less than one step for every slice.
    """
    recipe = recipe_of(name)
    search = _search(setup, recipe, network(setup, recipe, None), 1 + TIMED)
    step, share = _timed(search, name), SHARE * seconds
    images, trying = _trial(search, share)
    _refuse_haste(setup, share, trying, step)
    began = time.perf_counter()
    watch(search, setup.config.seed, 0, True)
    look = time.perf_counter() - began
    steps = int((share - trying - max(WATCHING * share, look)) / (step * (1 + TUNING * (images > 0))))
    return Plan(max(SLICES, steps), step, every(look, WATCHING * share), images)


def plan_of_preferences(setup: Setup, seconds: float, sampled: Sampled) -> Plan:
    """The tables of costs, and how many steps fit into their share of what these leave of so many seconds.

    Raises:
        InputError: what `cost_tables` refuses, or less than one step for every slice.
    """
    began = time.perf_counter()
    tables = cost_tables(setup, sampled)
    measured = time.perf_counter() - began
    step, share = _timed(_of_preferences(setup, network(setup, PREFERENCE, None), 1 + TIMED, tables), PREFERENCE), SHARE * seconds
    _refuse_haste(setup, share, SHARE * measured, step)
    return Plan(int((share - SHARE * measured) / step), step, 0, 0, [t.to_json() for t in tables], measured)


def cost_tables(setup: Setup, sampled: Sampled) -> list[Lookup]:
    """What every option costs: a table for each objective but the error whose costs differ, with rough times, and how near their
    sums are to what the survey measured.

    Raises:
        InputError: there is no such objective, or costs are no sums over the choices of this space.
    """
    expected.check(setup.net)
    space, found = setup.problem.space, list[Lookup]()
    measure = Cached(Costs(setup.net, rough_costs(setup), setup.example), space)

    def cost(name: str, arch: Arch) -> float:
        return measure(Ask(0, arch))[name]

    for name in (o.name for o in setup.problem.objectives if o.name != "error"):
        table = additive(space, partial(cost, name), name, here(), check=0)
        low, high = table.span()
        if high > low:
            found.append(replace(table, fit=fit_of(table, sampled.archs, [m[name] for m in sampled.metrics])))
    if not found:
        raise InputError(f"the strategy {PREFERENCE!r} weighs the error against costs, and no objective is a cost in which "
                         "architectures differ: add one, such as --objectives error,latency, or choose another strategy.")
    return found


def said_of(plan: Plan) -> str:
    """How well the plan's tables predict; empty without tables."""
    fits = [(t.name, t.fit) for t in map(Lookup.from_json, plan.tables) if t.fit is not None]
    return "" if not fits else (
        f"Costs as sums over choices, against {fits[0][1].n} measured networks: "
        + "; ".join(f"{name} off by {fit.mean:.0%} on average, Spearman {fit.spearman:.2f}" for name, fit in fits) + ".")


def _timed(search: DifferentiableSearch | PreferenceSearch, name: str) -> float:
    """Seconds of a step, after one that is not timed.

    Raises:
        InputError: the network becomes infinite.
    """
    try:
        search.run(1)
        began = time.perf_counter()
        search.run(TIMED)
    except FloatingPointError as problem:
        raise infinite(name, problem) from problem
    return (time.perf_counter() - began) / TIMED


def _refuse_haste(setup: Setup, share: float, other: float, step: float) -> None:
    """Refuses a budget in whose ``share`` of so many seconds, ``other`` of them for something else, too few steps fit.

    Raises:
        InputError: less than one step for every slice.
    """
    if share - other < SLICES * step:
        needed = setup.config.seconds * (SLICES * step + other) / share
        raise InputError(f"{share:.1f} s to train the network that {setup.config.strategy!r} relaxes are "
                         f"{max(0, share - other) / step:.0f} steps, where {SLICES} are needed at least: give a budget of "
                         f"{needed:.0f} s or more, or choose another strategy.")


def _trial(search: DifferentiableSearch, seconds: float) -> tuple[int, float]:
    """On how many images every option's absence is tried, and the seconds of that; (0, 0) without a trial."""
    if not search.method.trial:
        return 0, 0.0
    began = time.perf_counter()
    search.validation_loss(FEWEST)
    an_image = (time.perf_counter() - began) / min(FEWEST, len(search.validation)) * sum(a.numel() for a in search.alphas)
    images = max(FEWEST, min(TRIED, len(search.validation), int(TRIAL * seconds / an_image)))
    return images, images * an_image


def every(look: float, seconds: float) -> int:
    """The least divisor of `SLICES` at which so many looks fit into the time, two at least; else `ONCE`."""
    divisors = [k for k in range(1, SLICES) if SLICES % k == 0]
    return next((k for k in divisors if SLICES // k * look <= seconds), ONCE)


@dataclass(frozen=True, eq=False)
class Relaxed:
    """A strategy and its gradients; ``ahead``: which are trained to the end before the first ask, because all candidates are to
    begin with one network's weights."""

    strategy: Strategy
    gradient: Gradient | Preference
    ahead: bool

    @property
    def remarks(self) -> list[str]:
        """What is to be said of the gradients' search, such as alarms."""
        return self.gradient.remarks

    def ask(self, n: int, first: int) -> Sequence[Ask]:
        """What the strategy asks."""
        if self.ahead and self.gradient.training:
            self.gradient.finish()
        return self.strategy.ask(n, first)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Tells the strategy."""
        self.strategy.tell(trials)


def strategy(setup: Setup, name: str, net: nn.Module, plan: Plan, stride: int, blobs: Blobs, initial: Sequence[Arch] = (),
             ahead: bool = False) -> Relaxed:
    """The strategy, watched and guarded; its weights are kept in ``blobs``. Of the hybrid all members share what was seen, what
    the best choose draws α, the seconds of a slice count against gradients, and the other members begin with ``initial``."""
    recipe, seed, problem = recipe_of(name), setup.config.seed, setup.problem
    if name == PREFERENCE:
        tables = [Lookup.from_json(t) for t in plan.tables]
        front = Preference(problem, seed, _of_preferences(setup, net, plan.steps, tables), blobs=blobs, stride=LEARNING * stride)
        return Relaxed(front, front, ahead)
    search, unseen = _search(setup, recipe, net, plan.steps), Unseen(problem)
    found = Gradient(problem, seed, search, recipe, RECIPES[recipe].flat, blobs=blobs, unseen=unseen, stride=stride,
                     pull=PULL if name == COMBINED else 0.0, watch=plan.watch, guard=True, tried=plan.tried)
    if name != COMBINED:
        return Relaxed(found, found, ahead)
    together = Portfolio(problem, seed, {**members(problem, seed, initial, None, unseen), recipe: found}, start=DESIGN,
                         overheads={recipe: lambda: stride * plan.steps / SLICES * plan.step if found.training else 0.0})
    return Relaxed(together, found, ahead)


def stride(seconds: float, evaluation: float, trials: int | None = None) -> int:
    """Slices before every ask, so that the evaluations, of so many seconds each, fit into what the training leaves of the
    search's time, and that all slices are trained before so many trials are over."""
    fit = int((1 - SHARE) * seconds / evaluation)
    return math.ceil(SLICES / max(1, fit if trials is None else min(fit, trials)))


def _search(setup: Setup, name: str, net: nn.Module, steps: int) -> DifferentiableSearch:
    return DifferentiableSearch(net, setup.training, setup.validation, RECIPES[name].within(steps), steps, setup.config.seed,
                                setup.augment)


def _of_preferences(setup: Setup, net: nn.Module, steps: int, tables: Sequence[Lookup]) -> PreferenceSearch:
    costs = [expected.Cost(net, [table], table.device) for table in tables]
    return PreferenceSearch(net, setup.training, setup.validation, [Device(costs)], steps, setup.config.seed, setup.augment)
