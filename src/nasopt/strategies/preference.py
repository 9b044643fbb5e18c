"""The strategy of a preference-conditioned search (`nasopt.nets.preference`): one training for the whole front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

from nasopt.nets.preference import PreferenceSearch
from nasopt.seed import integer, rng
from nasopt.space import Rows
from nasopt.strategies.gradient import SLICES, Blobs, check, infinite
from nasopt.strategies.random import Unseen
from nasopt.strategies.reference import directions
from nasopt.strategies.watch import ended
from nasopt.trial import Ask, Problem, Trial

GRID = 21
"""Preferences, at most, whose architectures are asked for first once the search is over."""

SPREAD = 10
"""Draws, at most, each at its own preference, to find an architecture that was not asked yet."""


@dataclass(eq=False)
class Preference:
    """A preference-conditioned search as a strategy: each of the first asks trains the next slices and then asks for the
    architecture of a random preference. After the last slice come the architectures of a grid of preferences, in random order so
    that a search that ends early has seen all parts of the front, and then draws from softmax(α) at random preferences. What was
    asked before is replaced by such a draw.

    The training is deterministic, so that a replay comes to the same; with ``blobs`` it is not repeated: the weights are kept
    there after each slice. It ends before a slice in which the network becomes infinite (`remarks`).

    Args:
        problem: what to search; its space must be that of the search's network.
        seed: the run's seed.
        search: the network to train, its data, its costs and its method.
        slices: into how many parts the search's steps are divided.
        blobs: where the weights are kept.
        unseen: what was seen, shared by strategies that search together, so that none asks what another did.
        stride: slices that are trained before every ask.

    Raises:
        InputError: the network's space is not the problem's, there are no slices, or none before an ask; (when asked) the
            network became infinite in the first slice.
    """

    problem: Problem
    seed: int
    search: PreferenceSearch
    slices: int = SLICES
    blobs: Blobs | None = None
    unseen: Unseen | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        check(self.problem, self.search.net, self.slices, self.stride)
        self._seen = self.unseen or Unseen(self.problem)
        grid = directions(1 + len(self.search.devices[0].costs), GRID)
        self._grid: list[list[float]] = rng(self.seed, 0, "preference grid").permutation(grid).tolist()
        self._left: Rows | None = None
        self._slice = 0
        self._broken = ""
        self._hypers = self._recall()

    def ask(self, n: int, first: int) -> list[Ask]:
        """Up to ``n``; fewer, in the end none, when the space is exhausted."""
        return self._seen.asks(n, first, self._next, self.seed, "preference")

    def _next(self, number: int) -> Rows:
        self._train_on(self.stride)
        return self._candidate(number)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Remembers what was evaluated at full fidelity, so that it is not asked again."""
        self._seen.add_archs([t.ask.arch for t in trials if t.ask.fidelity >= 1])

    @property
    def training(self) -> bool:
        """Whether slices are left to train."""
        return self._slice < self.slices and not self._broken

    @property
    def remarks(self) -> list[str]:
        """Why the search ended too early, if it did."""
        return ended(self._slice, self._broken)

    def finish(self) -> list[dict[str, int]]:
        """Trains all slices that are left; the architectures of a grid of preferences, each once."""
        self._train_on(self.slices)
        return self.search.front(self._grid)

    def _candidate(self, number: int) -> Rows:
        """A row that was not seen, or none."""
        lay, generator = self._seen.layout, rng(self.seed, number, "preference ask")
        if not self.training:
            if self._left is None:
                self._left = lay.rows(self.finish())
            self._left = self._seen.fresh(self._left)
            row, self._left = self._left[:1], self._left[1:]
        else:
            row = self._seen.fresh(lay.rows([self.search.architecture(generator.dirichlet([1.0] * len(self._grid[0])).tolist())]))
        draws = torch.Generator().manual_seed(integer(self.seed, number, "preference draw"))
        for _ in range(SPREAD):
            if len(row):
                return row
            r = generator.dirichlet([1.0] * len(self._grid[0])).tolist()
            row = self._seen.fresh(lay.rows([self.search.sample(r, draws)]))
        return self._seen.draw(1, generator)

    def _train_on(self, slices: int) -> None:
        """Trains so many slices, at most those that are left."""
        for _ in range(slices):
            if self.training:
                self._advance()

    def _advance(self) -> None:
        """Trains the next slice, or takes it from what was kept."""
        if self._slice == len(self._hypers):
            try:
                self.search.run(round(self.search.steps * (self._slice + 1) / self.slices) - self.search.done)
                self._hypers.append({k: v.clone() for k, v in self.search.hyper.state_dict().items()})
                self._keep()
            except FloatingPointError as problem:
                if not self._hypers:
                    raise infinite("preference", problem) from problem
                self._broken = str(problem)
        self._slice = min(self._slice + 1, len(self._hypers))
        self.search.hyper.load_state_dict(self._hypers[self._slice - 1])

    # ---------------------------------------------------------------------------------------------------- keeping weights
    def _keep(self) -> None:
        if self.blobs is not None:
            found = {f"search {k}": v for k, v in self.search.state().items()}
            found.update({f"slice {n} {k}": v for n, hyper in enumerate(self._hypers) for k, v in hyper.items()})
            self.blobs.put("preference.weights", save(found))

    def _recall(self) -> list[dict[str, Tensor]]:
        """H after every slice that was kept; the search goes on after the last of them."""
        blob = None if self.blobs is None else self.blobs.get("preference.weights")
        if blob is None:
            return []
        found, hypers = load(blob), dict[int, dict[str, Tensor]]()
        self.search.load({k.removeprefix("search "): v for k, v in found.items() if k.startswith("search ")})
        for name, value in found.items():
            if name.startswith("slice "):
                _, number, key = name.split(" ", 2)
                hypers.setdefault(int(number), {})[key] = value
        return [hypers[n] for n in range(len(hypers))]
