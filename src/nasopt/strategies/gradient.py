"""Gradient strategies: published methods as recipes over the parts of `nasopt.nets.differentiable`, and the strategy that asks
for what they come to.

To add a method, add its line to `RECIPES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from nasopt.errors import InputError
from nasopt.nets import relax, relaxed
from nasopt.nets.choices import space_of
from nasopt.nets.differentiable import DifferentiableSearch, Method
from nasopt.nets.hypergradient import FiniteDifference, Neumann
from nasopt.seed import integer, rng
from nasopt.space import Arch, Rows
from nasopt.strategies.evolution import pool_of
from nasopt.strategies.random import Unseen
from nasopt.strategies.watch import (
    Alarm,
    History,
    Outline,
    Slice,
    agreement,
    curvature,
    evenness,
    skip_share,
    watch,
)
from nasopt.trial import Ask, Problem, Trial

SLICES = 20
"""Parts of a search; after each of them an architecture is asked for."""

GUIDES = 8
"""Trials below which α is not drawn to what the best of them choose."""

TRIED = 2048
"""Validation images, at most, on which an option's absence is tried where it is (`Method.trial`)."""

TUNING = 0.1
"""Steps of the weights between these trials, as a share of those before."""

SPREAD = 100
"""Draws from softmax(α), at most, to find an architecture that was not asked yet."""


@dataclass(frozen=True)
class Recipe:
    """A named method.

    Attributes:
        method: its parts.
        partial: one in so many channels passes the operations, where the network is made for the search (of `nasopt search`: the
            spaces ``nb201`` and ``darts``; elsewhere all pass).
        flat: stop once the largest eigenvalue of ∇²_α L_val, a mean of `WINDOW` slices, was below this share of what it is now
            `WINDOW` slices before, and return what was found then (R-DARTS, Zela et al., ICLR 2020, §4.3).
    """

    method: Method
    partial: int = 1
    flat: float | None = None

    def within(self, steps: int) -> Method:
        """The method for a search of so many steps: where α moves less often than in the published ones (`PUBLISHED`), it moves
        faster in proportion, so that it can go as far."""
        return replace(self.method, lr=self.method.lr * max(1.0, PUBLISHED * self.method.every / max(1, steps)))


PUBLISHED = 19_500
"""Steps of DARTS's search on CIFAR-10, for which the recipes' learning rates of α are: 50 epochs of 25,000 images by 64."""

DARTS = Method()

RECIPES: Mapping[str, Recipe] = {
    "darts1": Recipe(DARTS),
    "darts2": Recipe(replace(DARTS, hypergradient=FiniteDifference(0.025))),
    "idarts": Recipe(replace(DARTS, hypergradient=Neumann(2, 0.01))),
    "gdas": Recipe(replace(DARTS, relaxation=relax.gumbel_hard, temperature=relax.linear(10, 0.1))),
    "snas": Recipe(replace(DARTS, relaxation=relax.gumbel, temperature=relax.exponential(1, 0.03))),
    "pcdarts": Recipe(replace(DARTS, edges=True, still=0.3, lr=6e-4), partial=4),
    "drnas": Recipe(replace(DARTS, relaxation=relax.dirichlet, regularisers=((relax.anchor, relax.constant(1e-3)),),
                            prune=((0.5, 4),), decay=0.0)),
    "beta_darts": Recipe(replace(DARTS, regularisers=((relax.beta_decay, relax.linear(0, 50)),), decay=0.0)),
    "fair_darts": Recipe(replace(DARTS, relaxation=relax.sigmoid, regularisers=((relax.fairness, relax.constant(10.0)),))),
    "sdarts": Recipe(replace(DARTS, perturbation="random", radius=relax.linear(0.03, 0.3))),
    "sdarts_adv": Recipe(replace(DARTS, perturbation="adversarial", radius=relax.linear(0.03, 0.3))),
    "darts_minus": Recipe(replace(DARTS, bypass=relax.linear(1, 0))),
    "darts_pt": Recipe(replace(DARTS, trial=True)),
    "rdarts": Recipe(DARTS, flat=0.75),
    "pdarts": Recipe(replace(DARTS, prune=((1 / 3, 5 / 8), (2 / 3, 3 / 8)), dropout=relax.sawtooth(0.0, 0.4, 0.7), skips=2,
                             still=2 / 15, lr=6e-4)),
    "nasopt": Recipe(replace(DARTS, trial=True, still=0.5)),
}
"""``nasopt`` trains the weights on an even mixture for half of the steps, which costs less, and chooses by what the network loses
without an option, as ``darts_pt`` does, which differs from ``darts1`` in that alone and found cells that are a point better on
average on NAS-Bench-201 (`benchmarks/supernet201.py`; untested).

``pdarts`` (Chen et al., ICCV 2019) keeps one network from stage to stage, where the published program starts a deeper one anew
with fresh weights and α in each of its three; its dropout falls to 0 in a line, there by a factor e^-0.2 an epoch."""


class Blobs(Protocol):
    """Where a search keeps its weights: a `nasopt.protocols.Storage`, or what has these two methods of it."""

    def put(self, name: str, blob: bytes) -> None: ...

    def get(self, name: str) -> bytes | None: ...


def check(problem: Problem, net: nn.Module, slices: int, stride: int) -> None:
    """Refuses what no strategy that trains a relaxed network slice by slice can work with.

    Raises:
        InputError: the network's space is not the problem's, there are no slices, or none before an ask.
    """
    if space_of(net) != problem.space:
        raise InputError("the network of a gradient strategy must have the problem's space: build the problem from "
                         "space_of(net).")
    if slices < 1 or stride < 1:
        raise InputError(f"a gradient strategy needs at least 1 slice, and 1 before every ask, got {slices} and {stride}.")


@dataclass(eq=False)
class Gradient:
    """A differentiable search as a strategy: every ask first trains the next slices and then asks for the architecture of the
    largest α or, if that was asked before, for a draw from softmax(α). After the last slice all asks are draws. Slices that were
    trained ahead (`finish`) are gone through in the same way.

    The training is deterministic, so that a replay comes to the same; with ``blobs`` it is not repeated: the weights are kept
    there after each slice. It ends before a slice in which the network becomes infinite (`remarks`).

    Args:
        problem: what to search; its space must be that of the search's network.
        seed: the run's seed.
        search: the network to train, its data and its method.
        name: written on the asks.
        flat: see `Recipe.flat`.
        slices: into how many parts the search's steps are divided.
        blobs: where the weights are kept.
        unseen: what was seen, shared by strategies that search together, so that none asks what another did.
        stride: slices that are trained before every ask.
        pull: how strongly α is drawn towards what the best quarter of all trials choose, those of others included: the
            coefficient of the divergence of softmax(α) from their frequencies. With `GUIDES` trials at least.
        watch: the bilevel problem is watched after every slice, closely after every so manieth
            (`nasopt.strategies.watch.watch`); 0: never. α does not depend on it.
        guard: end the search once skip connections lead nearly everywhere, and go back to the last slice in which they did not
            (`nasopt.strategies.watch.alarms`).
        tried: validation images on which an option's absence is tried; of methods with `Method.trial`.

    Attributes:
        history: the slices so far, after an end by `flat` or ``guard`` once more the one to which the search went back.

    Raises:
        InputError: the network's space is not the problem's, there are no slices, or ``watch`` is below 0; (when asked) the
            network became infinite in the first slice.
    """

    problem: Problem
    seed: int
    search: DifferentiableSearch
    name: str
    flat: float | None = None
    slices: int = SLICES
    blobs: Blobs | None = None
    unseen: Unseen | None = None
    stride: int = 1
    pull: float = 0.0
    watch: int = 0
    guard: bool = False
    tried: int = TRIED
    history: list[Slice] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        check(self.problem, self.search.net, self.slices, self.stride)
        if not 0 <= self.pull < np.inf:
            raise InputError(f"trials pull a gradient strategy with a coefficient of {self.pull}: give 0 or more.")
        if self.watch < 0:
            raise InputError(f"a gradient strategy is watched every {self.watch} slices: give 1 or more, or 0 for never.")
        self._seen = self.unseen or Unseen(self.problem)
        self._broken = self._breaks = ""  # why the search ended; why it will, once it has come to the last slice that was kept
        self._kept = self._recall()
        self._back: int | None = None
        self._gone = 0
        self._told: list[Trial] = []

    def ask(self, n: int, first: int) -> list[Ask]:
        """Up to ``n``; fewer, in the end none, when the space is exhausted."""
        return self._seen.asks(n, first, self._next, self.seed, self.name)

    def _next(self, number: int) -> Rows:
        self._train_on(self.stride)
        self._gone += self.stride
        return self._candidate(number)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Remembers what was evaluated at full fidelity, so that it is not asked again."""
        full = [t for t in trials if t.ask.fidelity >= 1]
        self._seen.add_archs([t.ask.arch for t in full])
        self._told += full

    @property
    def architecture(self) -> Arch:
        """What the search has come to in the last slice, or in the one to which it went back."""
        return self.history[-1].architecture

    @property
    def record(self) -> History:
        """What is kept for readers."""
        trained = self.history if self._back is None else self.history[:-1]
        groups = tuple(Outline(g.path, g.names, g.labels, g.skip) for g in self.search.groups)
        return History(groups, self.flat, self.guard, tuple(trained), self._broken)

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """See `nasopt.strategies.watch.alarms`."""
        return self.record.alarms

    @property
    def remarks(self) -> list[str]:
        """See `nasopt.strategies.watch.History`."""
        return self.record.remarks

    def finish(self) -> Arch:
        """Trains all slices that are left; `architecture`."""
        self._train_on(self.slices)
        return self.architecture

    @property
    def training(self) -> bool:
        """Whether slices are left to train."""
        return not self._broken and self._back is None and len(self.history) < self.slices

    def _train_on(self, slices: int) -> None:
        """Trains so many slices, at most those that are left."""
        for _ in range(slices):
            if self.training:
                self._advance()

    def _candidate(self, number: int) -> Rows:
        """A row that was not seen, or none."""
        trained = len(self.history) - (self._back is not None)
        lay, now = self._seen.layout, self.history[self._gone - 1 if self._gone < trained else -1]
        row = self._seen.fresh(lay.rows([now.architecture]))
        generator = torch.Generator().manual_seed(integer(self.seed, number, "gradient"))
        for _ in range(SPREAD):
            if len(row):
                return row
            row = self._seen.fresh(lay.rows([relaxed.draw(self.search.net, now.scores, generator)]))
        return self._seen.draw(1, rng(self.seed, number, "gradient"))

    # ------------------------------------------------------------------------------------------------------------- slices
    def _advance(self) -> None:
        """Trains the next slice, or takes it from what was kept."""
        if len(self.history) < len(self._kept):
            self.history.append(self._kept[len(self.history)])
        elif self._breaks:
            self._broken = self._breaks
        else:
            state = self.search.state()
            try:
                self.history.append(self._train())
            except FloatingPointError as problem:
                if not self.history:
                    raise infinite(self.name, problem) from problem
                self._broken = str(problem)
                self.search.load(state)
            self._keep()
        self._back = next((a.back for a in self.alarms if a.back is not None), None)
        if self._back is not None:
            self.history.append(self.history[self._back - 1])

    def _train(self) -> Slice:
        search, number = self.search, len(self.history) + 1
        search.guide = self._guide()
        end = round(search.steps * number / self.slices)
        losses = search.run(end - search.done)
        scores = tuple(a.detach().masked_fill(~k, -torch.inf) for a, k in zip(search.alphas, search.allowed, strict=True))
        measured = [(t.ask.arch, t.metrics["error"]) for t in self._told
                    if t.error is None and np.isfinite(t.metrics.get("error", np.nan))]
        seen = watch(search, self.seed, number, number % self.watch == 0) if self.watch else None
        ends = None if seen is None else seen.extremes
        if self.flat is not None:
            try:
                ends = curvature(search, 128, rng(self.seed, number, "curvature"))
            except InputError as problem:  # it is infinite there
                raise FloatingPointError(str(problem)) from problem
        loss = float(np.mean(losses)) if losses else np.nan
        found = Slice(search.architecture(), scores, loss, skip_share(search, scores), evenness(scores),
                      np.nan if ends is None else ends.high, agreement(search, scores, measured), len(measured), seen)
        if number < self.slices or not search.method.trial:
            return found
        *_, chosen = search.settle(max(1, int(TUNING * search.steps / search.decisions)), self.tried)
        return replace(found, architecture=chosen)

    def _guide(self) -> tuple[float, list[Tensor]] | None:
        """What the best trials choose, and how much that counts."""
        if not self.pull or len(self._told) < GUIDES:
            return None
        pool = pool_of(self.problem, self._seen.layout, self._told)
        order = np.lexsort((-pool.crowding, pool.rank))[:len(pool) // 4]
        best = [k for k in order if np.isfinite(pool.violation[k])]  # no failures
        return (self.pull, relaxed.frequencies(self.search.net, [self._told[k].ask.arch for k in best])) if best else None

    # ---------------------------------------------------------------------------------------------------- keeping weights
    def _keep(self) -> None:
        if self.blobs is None:
            return
        found = {f"search {k}": v.contiguous() for k, v in self.search.state().items()}
        text = torch.frombuffer(bytearray(self.record.to_text().encode()), dtype=torch.uint8)
        self.blobs.put(f"{self.name}.weights", save({**found, HISTORY: text}))

    def _recall(self) -> tuple[Slice, ...]:
        """The slices that were kept; the search goes on after the last of them."""
        blob = None if self.blobs is None else self.blobs.get(f"{self.name}.weights")
        if blob is None:
            return ()
        self.search.load(_part(blob, "search "))
        history = history_of(blob)
        self._breaks = history.broken
        return history.slices


def infinite(name: str, problem: FloatingPointError) -> InputError:
    """What to say of a search that failed before there was anything of it."""
    return InputError(f"the network that {name!r} relaxes became infinite at once ({problem}): look for extreme values "
                      "in the data, or choose another strategy.")


HISTORY = "history"
"""The name of the `History` among the kept tensors: its text in bytes, so that it is kept at once with the weights."""


def history_of(blob: bytes) -> History:
    """What `Gradient` kept beside the weights."""
    return History.from_text(load(blob)[HISTORY].numpy().tobytes().decode())


def weights_of(blob: bytes) -> dict[str, Tensor]:
    """The state of the relaxed network in what `Gradient` kept."""
    return _part(blob, "search net ")


def _part(blob: bytes, prefix: str) -> dict[str, Tensor]:
    """The kept tensors whose names begin so, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in load(blob).items() if k.startswith(prefix)}
