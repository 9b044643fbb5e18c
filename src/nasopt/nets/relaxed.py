"""A module with inline choices as a continuous function of weights of their options (the relaxation of DARTS, Liu et al., ICLR
2019, §2.2): which weights there are, setting them, and the architecture that is nearest to some.

Choices that one column of the space steers (blocks that make the same choice) share their weights; those with a single option
have none. With all weight on one option each the module computes exactly what that architecture does. In between, a width is no
mean of its options' outputs: every layer of it weighs its channels anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nasopt.errors import InputError
from nasopt.nets import relax
from nasopt.nets.graphs import Pairs, Wiring, pairs_below
from nasopt.nets.options import MIXED, Choosing, Mix
from nasopt.nets.plan import plan_of
from nasopt.space import Arch


@dataclass(frozen=True, eq=False)
class Group:
    """Choices that share their weights.

    Attributes:
        path: the space's column, or of a cell all of its edges' common beginning.
        choices: the modules.
        rows: 1, or the edges of a cell.
        labels: of the options.
        none, skip: which options remove an edge or pass its source on, if any.
        targets: of every row, the node that it leads to; () if there are no nodes.
        depth: how many choices above it decide whether it is made at all.
    """

    path: str
    choices: tuple[Choosing, ...]
    rows: int
    labels: tuple[str, ...]
    none: int | None = None
    skip: int | None = None
    targets: tuple[int, ...] = ()
    depth: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, options)."""
        return self.rows, len(self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the rows: a cell's edges, or the path."""
        first = self.choices[0]
        return tuple(f"{i}→{j}" for i, j in first.edges) if isinstance(first, Wiring | Pairs) else (self.path,)

    @property
    def competing(self) -> tuple[tuple[int, ...], ...]:
        """Of `Pairs`, the rows of every node's edges, of which two are chosen; () of other choices."""
        first = self.choices[0]
        return tuple(tuple(first.rows[i, j] for i in range(j)) for j in first.inner) if isinstance(first, Pairs) else ()


def groups(module: nn.Module) -> tuple[Group, ...]:
    """The groups of weights of a module, in the order of its space.

    Raises:
        InputError: the module has no choices, or none with more than one option.
    """
    plan, found, seen = plan_of(module), list[Group](), set[Choosing]()
    for gene, steered in zip(plan.columns.genes, plan.steered, strict=True):
        new = tuple(dict.fromkeys(choice for choice, _ in steered if choice not in seen))
        if not new or len(gene.labels) == 1:
            continue
        seen.update(new)
        first, depth, above = new[0], 0, gene.parent
        while above >= 0:
            depth, above = depth + 1, plan.columns.genes[above].parent
        if isinstance(first, Wiring):
            cell = first.cell
            none, skip = (None if label is None else cell.operations.index(label) for label in (cell.none, cell.skip))
            found.append(Group(gene.path.rpartition("/")[0], new, len(cell.edges), cell.operations, none, skip,
                               tuple(j for _, j in cell.edges), depth))
        elif isinstance(first, Pairs):
            found.append(Group(gene.path.rpartition("/")[0], new, len(first.edges), first.labels, 0,
                               first.labels.index(first.skip), tuple(j for _, j in first.edges), depth))
        else:
            found.append(Group(gene.path, new, 1, gene.labels, depth=depth))
    if not found:
        raise InputError(f"every choice of {type(module).__name__} has a single option, so that there is nothing to weigh: give "
                         "its choices two options at least.")
    return tuple(found)


@contextmanager
def mixed(module: nn.Module, mixes: Sequence[Mix]) -> Iterator[None]:
    """Within the context the module computes the mixture; afterwards it is what it was.

    Args:
        mixes: one for every group of `groups`.
    """
    found = [choice for group in groups(module) for choice in group.choices]
    before = [(list(choice.chosen), choice.mix) for choice in found]
    try:
        for group, mix in zip(groups(module), mixes, strict=True):
            for choice in group.choices:
                choice.chosen[:], choice.mix = [MIXED] * len(choice.chosen), mix
        yield
    finally:
        for choice, (chosen, mix_before) in zip(found, before, strict=True):
            choice.chosen[:], choice.mix = chosen, mix_before


def mix(weights: Tensor, bypass: float = 0.0, edges: Tensor | None = None,
        dropout: Callable[[Tensor], Tensor] | None = None) -> Mix:
    """The mix of weights (rows, options); options of weight 0 are not computed."""
    live = tuple(tuple(np.flatnonzero(row).tolist()) for row in weights.detach().cpu().numpy())
    return Mix(weights, live, bypass, edges, dropout)


@torch.no_grad()
def uneven(module: nn.Module, x: Tensor) -> tuple[bool, ...]:
    """Of every group, whether its options give outputs of different shapes for the batch ``x``, such as different strides: these
    cannot be added, only chosen between. Everything else is at its first option meanwhile, and then at its last."""
    plan, found, result = plan_of(module), groups(module), list[bool]()
    genes = {gene.path: gene for gene in plan.columns.genes}
    for group in found:
        above, gene = dict[str, int](), genes.get(group.path)
        while gene is not None and gene.parent >= 0:
            parent = plan.columns.genes[gene.parent]
            above[parent.path], gene = min(gene.when), parent
        different = [{_shape(module, group.choices[0], {**above, group.path: option}, rest, x)
                      for option in range(len(group.labels)) if group.rows == 1} for rest in (0, -1)]
        result.append(max(map(len, different)) > 1)
    return tuple(result)


def _shape(module: nn.Module, choice: Choosing, options: Mapping[str, int], rest: int, x: Tensor) -> tuple[int, ...]:
    """The shape of what a choice gives, (): nothing, with these options of the groups of these paths, and one of all others."""
    shapes, training = list[tuple[int, ...]](), module.training
    picked = [(torch.full((g.rows,), options.get(g.path, range(len(g.labels))[rest])), len(g.labels)) for g in groups(module)]
    shots = [mix(functional.one_hot(*pick).float()) for pick in picked]
    hook = choice.register_forward_hook(lambda _module, _inputs, out: shapes.append(tuple(out.shape)))
    try:
        with mixed(module.eval(), shots):
            module(x.to(next(module.parameters(), x).dtype))
    finally:
        hook.remove()
        module.train(training)
    return shapes[-1] if shapes else ()


def nearest(module: nn.Module, weights: Sequence[Tensor], allowed: Sequence[Tensor] | None = None) -> dict[str, int]:
    """The architecture of the largest weight in every row; of `Pairs`, by `Pairs.nearest`, which compares rows.

    Args:
        weights: (rows, options) of every group.
        allowed: the same shapes, bool: what may be chosen; None: everything.
    """
    plan = plan_of(module)
    picked: dict[tuple[Choosing, int], int] = {}
    for k, group in enumerate(groups(module)):
        scores = weights[k].detach()
        if allowed is not None:
            scores = scores.masked_fill(~allowed[k], -torch.inf)
        for slot, option in enumerate(_options(group, scores)):
            picked.update({(choice, slot): option for choice in group.choices})
    arch, values = dict[str, int](), list[int]()
    for gene, steered in zip(plan.columns.genes, plan.steered, strict=True):
        here = gene.parent < 0 or values[gene.parent] in gene.when
        values.append(picked.get(steered[0], 0) if here else -1)
        if here:
            arch[gene.path] = values[-1]
    return arch


def _options(group: Group, scores: Tensor) -> list[int]:
    """The options of the largest scores (rows, options), one a slot."""
    first = group.choices[0]
    return first.nearest(scores) if isinstance(first, Pairs) else scores.argmax(1).tolist()


def few_skips(module: nn.Module, weights: Sequence[Tensor], allowed: Sequence[Tensor], most: int) -> list[Tensor]:
    """What may be chosen so that no cell of `nearest` has more than ``most`` skip connections: again and again the weakest of
    those that a cell has is no longer allowed (Chen et al., P-DARTS, ICCV 2019). An edge with nothing else to choose keeps it.

    Args:
        weights, allowed: as in `nearest`.
    """
    found = [a.clone() for a in allowed]
    for group, scores, left in zip(groups(module), weights, found, strict=True):
        while (row := _weakest_skip(group, scores.detach().masked_fill(~left, -torch.inf), most)) is not None:
            left[row, group.skip] = False
    return found


def _weakest_skip(group: Group, scores: Tensor, most: int) -> int | None:
    """The row of the weakest skip connection if more than ``most`` are chosen; None: none can be spared."""
    if group.skip is None:
        return None
    first, options, others = group.choices[0], _options(group, scores), scores.isfinite()
    others[:, group.skip] = False
    chosen = list(enumerate(options))
    if isinstance(first, Pairs):
        chosen = [(row, option) for _, sources in first.terms_of(options) for _, row, option in sources]
        others[:, group.none] = False  # which is never chosen
    skips = [row for row, option in chosen if option == group.skip]
    spare = [row for row in skips if others[row].any()]
    return min(spare, key=lambda row: float(scores[row, group.skip])) if len(skips) > most and spare else None


def draw(module: nn.Module, scores: Sequence[Tensor], generator: torch.Generator) -> dict[str, int]:
    """A random architecture: in every row each option with its probability softmax(scores)."""
    return nearest(module, [relax.gumbel(s, 1.0, generator) for s in scores])


def log_share(module: nn.Module, scores: Sequence[Tensor], arch: Arch) -> float:
    """The logarithm of the probability that `draw` gives the options of an architecture; of `Pairs`, those of its edges'
    operations, whichever edges are compared."""
    weights = [s.detach().double().log_softmax(1) for s in scores]
    return sum(float(weights[k][row, option]) for k, row, option in _picked(module, arch))


def frequencies(module: nn.Module, archs: Sequence[Arch]) -> list[Tensor]:
    """Of every group, how often each option is chosen among the architectures that make the choice, (rows, options); NaN in the
    rows of choices that none makes, and for edges of `Pairs` among those that have the edge."""
    counts = [torch.zeros(g.shape) for g in groups(module)]
    for arch in archs:
        for k, row, option in _picked(module, arch):
            counts[k][row, option] += 1
    return [c / c.sum(1, keepdim=True) for c in counts]


def _picked(module: nn.Module, arch: Arch) -> Iterator[tuple[int, int, int]]:
    """(group, row, option) of every choice that an architecture makes."""
    place, plan = {c: k for k, g in enumerate(groups(module)) for c in g.choices}, plan_of(module)
    for gene, steered in zip(plan.columns.genes, plan.steered, strict=True):
        choice, row = steered[0]
        option = arch.get(gene.path)
        if option is None or choice not in place:
            continue
        if isinstance(choice, Pairs):
            node, part = divmod(row, 3)
            if part == 0:
                sources = pairs_below(choice.inner[node])[option]
                continue
            row, option = choice.rows[sources[part - 1], choice.inner[node]], option + 1
        yield place[choice], row, option
