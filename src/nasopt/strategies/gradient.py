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
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from nasopt.analysis.convergence import Extremes, extremes, mean_zero
from nasopt.errors import InputError
from nasopt.nets import relax, relaxed
from nasopt.nets.choices import space_of
from nasopt.nets.differentiable import DifferentiableSearch, Method
from nasopt.nets.hypergradient import FiniteDifference, Neumann
from nasopt.seed import integer, rng
from nasopt.space import Arch, Rows
from nasopt.strategies.random import Unseen
from nasopt.trial import Ask, Problem, Trial

Floats = NDArray[np.float64]

SLICES = 20
"""Parts of a search; after each of them an architecture is asked for."""

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

WINDOW = 5
"""Slices over which R-DARTS compares eigenvalues."""

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
    "nasopt": Recipe(replace(DARTS, relaxation=relax.pair, every=2, still=0.1)),
}
"""``nasopt`` draws two options a row and moves α in every second step, at about a fifth of the cost of ``darts1``.

``pdarts`` (Chen et al., ICCV 2019) keeps one network from stage to stage, where the published program starts a deeper one anew
with fresh weights and α in each of its three; its dropout falls to 0 in a line, there by a factor e^-0.2 an epoch."""


class Blobs(Protocol):
    """Where a search keeps its weights: a `nasopt.protocols.Storage`, or what has these two methods of it."""

    def put(self, name: str, blob: bytes) -> None: ...

    def get(self, name: str) -> bytes | None: ...


@dataclass(frozen=True)
class Slice:
    """How a search stood after a slice.

    Attributes:
        architecture: what the search had come to (`DifferentiableSearch.architecture`).
        scores: α of every group, minus infinity where an option is no longer allowed.
        loss: mean training loss of the slice.
        skips: share of the rows whose largest α is the skip connection's, of those that have one; NaN if none has.
        entropy: mean entropy of softmax(α), as a share of the largest possible.
        curvature: the largest eigenvalue of the validation loss's Hessian in mean-zero coordinates of α; NaN if not computed.
    """

    architecture: Arch
    scores: tuple[Tensor, ...]
    loss: float
    skips: float
    entropy: float
    curvature: float


@dataclass(eq=False)
class Gradient:
    """A differentiable search as a strategy: every ask first trains the next slices and then asks for the architecture of the
    largest α or, if that was asked before, for a draw from softmax(α). After the last slice all asks are draws.

    The training is deterministic, so that a replay comes to the same; with ``blobs`` it is not repeated: the weights are kept
    there after each slice.

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

    Raises:
        InputError: the network's space is not the problem's, or there are no slices.
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
    history: list[Slice] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if space_of(self.search.net) != self.problem.space:
            raise InputError("the network of a gradient strategy must have the problem's space: build the problem from "
                             "space_of(net).")
        if self.slices < 1 or self.stride < 1:
            raise InputError(f"a gradient strategy needs at least 1 slice, and 1 before every ask, got {self.slices} and "
                             f"{self.stride}.")
        self._seen = self.unseen or Unseen(self.problem)
        self._kept = self._recall()
        self._over = False

    def ask(self, n: int, first: int) -> list[Ask]:
        """Up to ``n``; fewer, in the end none, when the space is exhausted."""
        asks: list[Ask] = []
        for number in range(first, first + n):
            self._train_on(self.stride)
            row = self._candidate(number)
            if not len(row):
                break
            self._seen.add(row)
            asks.append(Ask(number, self._seen.layout.archs(row)[0], 1.0, self.seed, self.name))
        return asks

    def tell(self, trials: Sequence[Trial]) -> None:
        """Remembers what was evaluated at full fidelity, so that it is not asked again."""
        self._seen.add_archs([t.ask.arch for t in trials if t.ask.fidelity >= 1])

    @property
    def architecture(self) -> Arch:
        """What the search has come to in the last slice, or in the one to which `flat` sent it back."""
        return self.history[-1].architecture

    def finish(self) -> Arch:
        """Trains all slices that are left; `architecture`."""
        self._train_on(self.slices)
        return self.architecture

    def _train_on(self, slices: int) -> None:
        """Trains so many slices, at most those that are left."""
        for _ in range(slices):
            if not self._over and len(self.history) < self.slices:
                self._advance()

    def _candidate(self, number: int) -> Rows:
        """A row that was not seen, or none."""
        lay, scores = self._seen.layout, self.history[-1].scores
        row = self._seen.fresh(lay.rows([self.architecture]))
        generator = torch.Generator().manual_seed(integer(self.seed, number, "gradient"))
        for _ in range(SPREAD):
            if len(row):
                return row
            row = self._seen.fresh(lay.rows([relaxed.draw(self.search.net, scores, generator)]))
        return self._seen.draw(1, rng(self.seed, number, "gradient"))

    # ------------------------------------------------------------------------------------------------------------- slices
    def _advance(self) -> None:
        """Trains the next slice, or takes it from what was kept."""
        if len(self.history) < len(self._kept):
            self.history.append(self._kept[len(self.history)])
        else:
            self.history.append(self._train())
            self._keep()
        self._over = self._too_sharp()
        if self._over:
            self.history.append(self.history[-1 - WINDOW])

    def _train(self) -> Slice:
        search, number = self.search, len(self.history) + 1
        end = round(search.steps * number / self.slices)
        losses = search.run(end - search.done)
        if number == self.slices and search.method.trial:
            for _ in search.settle(max(1, search.steps // (10 * sum(g.rows for g in search.groups)))):
                pass
        scores = tuple(a.detach().masked_fill(~k, -torch.inf) for a, k in zip(search.alphas, search.allowed, strict=True))
        top = np.nan if self.flat is None else curvature(search, 128, rng(self.seed, number, "curvature")).high
        loss = float(np.mean(losses)) if losses else np.nan
        return Slice(search.architecture(), scores, loss, skip_share(search, scores), evenness(scores), top)

    def _too_sharp(self) -> bool:
        """R-DARTS's criterion."""
        tops = [s.curvature for s in self.history]
        if self.flat is None or len(tops) < 2 * WINDOW:
            return False
        before, now = (float(np.mean(part)) for part in (tops[-2 * WINDOW:-WINDOW], tops[-WINDOW:]))
        return now > 0 and before / now < self.flat

    # ---------------------------------------------------------------------------------------------------- keeping weights
    def _keep(self) -> None:
        if self.blobs is None:
            return
        found = {f"search {k}": v.contiguous() for k, v in self.search.state().items()}
        for number, done in enumerate(self.history):
            found.update({f"slice {number} {k}": s for k, s in enumerate(done.scores)})
            found[f"slice {number} row"] = torch.from_numpy(self._seen.layout.rows([done.architecture]))
            found[f"slice {number} notes"] = torch.tensor([done.loss, done.skips, done.entropy, done.curvature],
                                                          dtype=torch.float64)
        self.blobs.put(f"{self.name}.weights", save(found))

    def _recall(self) -> list[Slice]:
        """The slices that were kept; the search goes on after the last of them."""
        blob = None if self.blobs is None else self.blobs.get(f"{self.name}.weights")
        if blob is None:
            return []
        found, slices = load(blob), list[Slice]()
        self.search.load({k.removeprefix("search "): v for k, v in found.items() if k.startswith("search ")})
        while f"slice {len(slices)} notes" in found:
            scores = tuple(found[f"slice {len(slices)} {k}"] for k in range(len(self.search.groups)))
            arch = self._seen.layout.archs(found[f"slice {len(slices)} row"].numpy())[0]
            slices.append(Slice(arch, scores, *found[f"slice {len(slices)} notes"].tolist()))
        return slices


# ------------------------------------------------------------------------------------------------------------ what is watched
def skip_share(search: DifferentiableSearch, scores: Sequence[Tensor]) -> float:
    """Share of the rows whose best option is the skip connection; NaN if no group has one."""
    picked = [(s.argmax(1) == g.skip).double() for s, g in zip(scores, search.groups, strict=True) if g.skip is not None]
    return float(torch.cat(picked).mean()) if picked else float("nan")


def evenness(scores: Sequence[Tensor]) -> float:
    """Mean entropy of softmax(scores) as a share of the logarithm of the number of options; 0 where there is one."""
    shares = []
    for s in scores:
        p = s.softmax(1)
        shares.append(torch.special.entr(p).sum(1) / max(np.log(s.shape[1]), 1e-12))
    return float(torch.cat(shares).mean())


def curvature(search: DifferentiableSearch, images: int, generator: np.random.Generator, products: int = 10) -> Extremes:
    """Extreme eigenvalues of ∇²_α of the loss of so many validation images, in mean-zero coordinates, by Lanczos."""
    alphas = [a.detach().requires_grad_() for a in search.alphas]
    index = slice(0, min(images, len(search.validation)))
    batch = search.validation.normalised(index), search.validation.y[index]
    gradient = torch.autograd.grad(search.loss(batch, [*alphas, *(b.detach() for b in search.betas)]), alphas, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradient])

    def product(x: Floats) -> Floats:
        slopes = torch.autograd.grad(flat @ torch.as_tensor(x, dtype=flat.dtype), alphas, retain_graph=True)
        return np.asarray(torch.cat([s.flatten() for s in slopes]).double())

    options = [a.shape[1] for a in alphas for _ in range(len(a))]
    return extremes(product, mean_zero(options), generator, products, 1e-3)
