"""The cost of an architecture as a sum over its choices, from few measurements: one network and those that differ in one option.

cost(a) ≈ base + Σ_c part_c[a_c] over the active choices c of a, with part 0 for the options of the network that the others differ
from (the additive model of Cai et al., ProxylessNAS, ICLR 2019, §3.2, whose table holds blocks that were timed alone). Parameters
and multiply-accumulates are such sums where the costs of choices do not depend on one another. A latency is one nearly; how
nearly is what `Fit` says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from nasopt import space as spaces
from nasopt.errors import InputError
from nasopt.machine import machine
from nasopt.seed import rng
from nasopt.space import Arch, Gene, Layout, Rows, Space

Floats = NDArray[np.float64]

FORMAT = "nasopt lookup 1"


def here(device: str = "cpu") -> str:
    """The name of a device of this machine, with its processor: what a table that is measured on it carries."""
    return f"{device}, {torch.cuda.get_device_name(device) if device.startswith('cuda') else machine()['cpu']}"


@dataclass(frozen=True)
class Fit:
    """The sum against the true cost of ``n`` architectures: the mean and the largest relative error, and Spearman's
    coefficient (0 if one of both is constant)."""

    n: int
    mean: float
    largest: float
    spearman: float


@dataclass(frozen=True, eq=False)
class Lookup:
    """A cost that is a sum over choices.

    Attributes:
        name: of the cost.
        space: where the architectures are from.
        base: of the architecture whose options all have part 0.
        parts: of every choice's path, what every option adds.
        device: where it was measured, such as `here()`; "" for what is the same everywhere, such as parameters.
        fit: how near the sum is to the truth, if that was measured.

    Raises:
        InputError: the parts are not those of the space's choices, or not finite.
    """

    name: str
    space: Space
    base: float
    parts: Mapping[str, tuple[float, ...]]
    device: str = ""
    fit: Fit | None = None

    def __post_init__(self) -> None:
        wanted = {g.path: len(g.labels) for g in spaces.layout(self.space).genes}
        if {path: len(part) for path, part in self.parts.items()} != wanted:
            raise InputError(f"the table of {self.name} does not have one number for every option of its space: measure it with "
                             "additive.")
        if not all(math.isfinite(v) for part in (*self.parts.values(), (self.base,)) for v in part):
            raise InputError(f"the table of {self.name} holds a number that is not finite: measure it again.")

    def costs(self, archs: Sequence[Arch]) -> Floats:
        """The sum for every architecture, (n,)."""
        lay = spaces.layout(self.space)
        rows = lay.rows(archs)
        each = [np.asarray(self.parts[g.path])[rows[:, c]] for c, g in enumerate(lay.genes)]
        return np.asarray(self.base + (np.stack(each, axis=1) * lay.active(rows)).sum(axis=1))

    def span(self) -> tuple[float, float]:
        """The least and the largest sum that an architecture of the space can have."""
        ends = [self._end(sign) for sign in (1, -1)]
        return ends[0], ends[1]

    def _end(self, sign: int) -> float:
        """The least sum, or, for sign -1, the largest: from the leaves of the tree of choices to its root."""
        genes, total = spaces.layout(self.space).genes, self.base
        best = [sign * np.asarray(self.parts[g.path], dtype=float) for g in genes]
        for g, options in zip(reversed(genes), reversed(best), strict=True):
            if g.parent < 0:
                total += sign * float(options.min())
            else:
                best[g.parent][list(g.when)] += options.min()
        return total

    def on(self, device: str) -> Lookup:
        """The table itself, if it holds for that device.

        Raises:
            InputError: it was measured on another one.
        """
        if self.device not in ("", device):
            raise InputError(f"the table of {self.name} is a {self.name} table for another device, {self.device!r} instead of "
                             f"{device!r}: measure it there.")
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"format": FORMAT, "name": self.name, "device": self.device, "base": self.base, "parts": dict(self.parts),
                "fit": None if self.fit is None else asdict(self.fit), "space": spaces.to_json(self.space)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Lookup:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, AttributeError, ValueError: it is something else.
        """
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r}")
        parts = {str(k): tuple(float(v) for v in part) for k, part in data["parts"].items()}
        return cls(str(data["name"]), spaces.from_json(data["space"]), float(data["base"]), parts, str(data["device"]),
                   None if data["fit"] is None else Fit(**data["fit"]))

    def write(self, path: str | Path) -> None:
        """As JSON; `read` is the inverse."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")


def read(path: str | Path) -> Lookup:
    """The table that `Lookup.write` wrote.

    Raises:
        InputError: no such file, or it holds something else.
    """
    try:
        return Lookup.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as problem:
        raise InputError(f"{str(path)!r} is no table of costs ({problem}): write it with Lookup.write.") from None


def additive(space: Space, cost: Callable[[Arch], float], name: str, device: str = "", base: Arch | None = None,
             check: int = 32, seed: int = 0) -> Lookup:
    """The table of the network ``base`` and of all that differ from it in one option: 1 + Σ (options - 1) calls of ``cost`` if no
    choice depends on another, and at most one more for each that does.

    Args:
        cost: of an architecture, in any unit.
        name, device: see `Lookup`.
        base: where the options' costs are measured; None: `middle`.
        check: how many random architectures the sum is compared on; 0: none, and no `Lookup.fit`.
        seed: of these.

    Raises:
        InputError: a cost that is not finite, or a space with a `nasopt.space.Graph`, in which single changes need not be valid.
    """
    lay = spaces.layout(space)
    if lay.graphs:
        raise InputError("the costs of a graph whose edges depend on one another are no sums over choices: search it with a "
                         "strategy that measures every network.")
    known: dict[bytes, float] = {}

    def measured(row: Rows) -> float:
        key = lay.silence(row[None]).tobytes()
        if key not in known:
            arch = lay.archs(row[None])[0]
            known[key] = float(cost(arch))
            if not math.isfinite(known[key]):
                raise InputError(f"{name} of the architecture {spaces.labels(space, arch)} is {known[key]}: give a cost that "
                                 "every architecture has.")
        return known[key]

    start = middle(space) if base is None else lay.rows([base])[0]
    parts = {}
    for c, gene in enumerate(lay.genes):
        home = _where_active(lay, start, gene)
        changed = np.repeat(home[None], len(gene.labels), axis=0)
        changed[:, c] = np.arange(len(gene.labels))
        parts[gene.path] = tuple(measured(row) - measured(home) for row in changed)
    found = Lookup(name, space, measured(start), parts, device)
    return replace(found, fit=compared(found, cost, check, seed)) if check else found


def middle(space: Space) -> Rows:
    """The middle option of every choice, but the skip connection of every edge that has one, (columns,). Of the five uniform
    cells of NAS-Bench-201 the one of skips predicts the latencies of all others on a Raspberry Pi best."""
    lay = spaces.layout(space)
    row = lay.options // 2
    for cell, columns in lay.cells:
        if cell.skip is not None:
            row[list(columns)] = cell.operations.index(cell.skip)
    return row


def _where_active(lay: Layout, row: Rows, gene: Gene) -> Rows:
    """The row, with as few changes above a choice as make it active."""
    row = row.copy()
    while gene.parent >= 0:
        if row[gene.parent] not in gene.when:
            row[gene.parent] = min(gene.when)
        gene = lay.genes[gene.parent]
    return row


def compared(table: Lookup, cost: Callable[[Arch], float], n: int, seed: int = 0) -> Fit:
    """The table against the cost on ``n`` random architectures, of those drawn the ones that see their input first
    (`nasopt.space.connected`).

    Raises:
        InputError: fewer than 2 architectures, or one whose true cost is not above 0, so that it has no relative error.
    """
    if n < 2:
        raise InputError(f"a table is compared on at least 2 architectures, got {n}: give more, or 0 for none.")
    lay = spaces.layout(table.space)
    drawn = lay.archs(lay.random(rng(seed, 0, "lookup"), 4 * n))
    archs = sorted(drawn, key=lambda a: not spaces.connected(table.space, a))[:n]
    return fit_of(table, archs, [float(cost(a)) for a in archs])


def fit_of(table: Lookup, archs: Sequence[Arch], costs: Sequence[float]) -> Fit:
    """The table against the true costs of these architectures.

    Raises:
        InputError: a true cost is not above 0, so that it has no relative error.
    """
    true, sums = np.array(costs), table.costs(archs)
    if not (np.isfinite(true) & (true > 0)).all():
        raise InputError(f"{table.name} of a random architecture is not above 0: give a cost that is, or compare nothing "
                         "(check=0).")
    error = np.abs(sums - true) / true
    constant = np.ptp(true) == 0 or np.ptp(sums) == 0
    spearman = 0.0 if constant else float(stats.spearmanr(sums, true).statistic)
    return Fit(len(archs), float(error.mean()), float(error.max()), spearman)
