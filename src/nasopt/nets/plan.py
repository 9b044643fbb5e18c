"""From a module with inline choices to its space: which choices there are, where in the space each of them stands, and which
columns of the space steer it.

A choice's path in the space is its place in the module tree (attribute names, joined by ``/``). A choice inside an
option exists only under that option; a choice that occurs under several options belongs to the innermost scope that
holds all of its occurrences, and its name there is the whole way to its first occurrence, joined by dots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from nasopt.errors import InputError
from nasopt.nets.elastic import KernelSize, Width
from nasopt.nets.graphs import Graph, PairGraph, Pairs, Wiring
from nasopt.nets.options import Choosing, Depth, DifferentiableOp, OneOf, legal
from nasopt.space import Choice, Layout, Product, Repeat, Space, layout

Owner: TypeAlias = tuple[Choosing, int]
Scope: TypeAlias = tuple[Owner, ...]
Bindings: TypeAlias = dict[str, list[tuple[Choosing, int]]]


@dataclass(frozen=True)
class Plan:
    """What `activate` needs: the space's columns and the choices (with their slots) that each of them steers."""

    space: Space
    columns: Layout
    steered: tuple[tuple[tuple[Choosing, int], ...], ...]
    choices: tuple[Choosing, ...]


PLAN = "_nasopt_plan"


def _beside(way: tuple[str, ...], *words: str) -> tuple[str, ...]:
    """The way to a part of a graph: beside its wiring, which has the graph's own name."""
    return (*way[:-1], ".".join((*way[-1:], *words)))


class _Survey:
    """Finds every choice below a module and its place in the space."""

    def __init__(self, root: nn.Module) -> None:
        self.found: dict[Choosing, list[tuple[Owner | None, tuple[str, ...]]]] = {}
        self.homes: dict[Choosing, Scope] = {}
        self._visit(root, None, ())
        self.members: dict[Scope, list[tuple[tuple[str, ...], Choosing]]] = {}
        for choice in self.found:
            self.members.setdefault(self._home(choice), []).append((self._name(choice), choice))

    def _visit(self, module: nn.Module, owner: Owner | None, way: tuple[str, ...]) -> None:
        if isinstance(module, Choosing):
            again = module in self.found
            self.found.setdefault(module, []).append((owner, way))
            for option, inner in enumerate(() if again else inside(module)):
                self._visit(inner, (module, option), ())
        elif isinstance(module, (Graph, PairGraph)):
            self._visit(module.wiring, owner, way)
            if module.activation is not None:
                self._visit(module.activation, owner, _beside(way, "activation"))
            for (i, j), edge in zip(module.wiring.edges, module.edges, strict=True):
                assert isinstance(edge, nn.ModuleList)
                for label, operation in zip(module.built, edge, strict=True):
                    self._visit(operation, owner, _beside(way, f"{i}-{j}", legal(label)))
        else:
            for name, child in module.named_children():
                self._visit(child, owner, (*way, legal(name)))

    def _scope(self, owner: Owner | None) -> Scope:
        return () if owner is None else (*self._home(owner[0]), owner)

    def _home(self, choice: Choosing) -> Scope:
        """The innermost scope that holds all occurrences."""
        if choice not in self.homes:
            scopes = [self._scope(owner) for owner, _ in self.found[choice]]
            common = 0
            while all(len(s) > common and s[common] == scopes[0][common] for s in scopes):
                common += 1
            self.homes[choice] = scopes[0][:common]
        return self.homes[choice]

    def _name(self, choice: Choosing) -> tuple[str, ...]:
        for owner, way in self.found[choice]:
            if self._scope(owner) == self._home(choice):
                return way or (_default_name(choice),)
        return (".".join(self._way(choice)),)

    def _way(self, choice: Choosing) -> tuple[str, ...]:
        owner, way = self.found[choice][0]
        above = () if owner is None else (*self._way(owner[0]), _label(owner))
        return (*above, *(way or (_default_name(choice),)))

    def parts(self, scope: Scope, prefix: str, bound: Bindings) -> list[Space]:
        """The spaces of a scope's choices; ``bound`` gains their paths, which start with ``prefix``."""
        return self._nest(self.members.get(scope, []), scope, prefix, bound)

    def _nest(
        self, members: list[tuple[tuple[str, ...], Choosing]], scope: Scope, prefix: str, bound: Bindings
    ) -> list[Space]:
        groups: dict[tuple[str, bool], list[tuple[tuple[str, ...], Choosing]]] = {}
        for way, choice in members:
            groups.setdefault((way[0], len(way) == 1), []).append((way[1:], choice))
        out: list[Space] = []
        for (name, ends), inner in groups.items():
            if ends:
                out += [self._space(choice, name, scope, prefix + name, bound) for _, choice in inner]
            else:
                out.append(Product(name, self._nest(inner, scope, f"{prefix}{name}/", bound)))
        return out

    def _space(self, choice: Choosing, name: str, scope: Scope, path: str, bound: Bindings) -> Space:
        if isinstance(choice, (Wiring, Pairs)):
            cell = choice.space(name)
            for slot, part in enumerate(cell.parts):
                bound.setdefault(f"{path}/{part.name}", []).append((choice, slot))
            return cell
        bound.setdefault(path, []).append((choice, 0))
        if isinstance(choice, Depth):
            return self._depth(choice, name, scope, path, bound)
        assert isinstance(choice, (OneOf, DifferentiableOp, Width, KernelSize))
        inner = [self.parts((*scope, (choice, i)), f"{path}={label}/", bound) for i, label in enumerate(choice.labels)]
        return Choice(
            name,
            {label: Product("", parts) if parts else None for label, parts in zip(choice.labels, inner, strict=True)},
        )

    def _depth(self, depth: Depth, name: str, scope: Scope, path: str, bound: Bindings) -> Space:
        scopes = [(*scope, (depth, i)) for i in range(len(depth.blocks))]
        blocks = [Product("", self.parts(s, "", {})) for s in scopes]
        equal = all(block == blocks[0] for block in blocks)
        if depth.shared and not equal:
            raise InputError(
                f"Depth {path!r}: shared blocks must offer the same choices: make them alike or drop shared=True."
            )
        if not any(block.parts for block in blocks):
            return Choice(name, depth.labels)
        if equal:
            for i, s in enumerate(scopes):
                self.parts(s, f"{path}[{'*' if depth.shared else i}]/", bound)
            if len(depth.sizes) == 1:
                del bound[path]
            return Repeat(name, blocks[0], depth.sizes, depth.shared)
        return Choice(
            name,
            {
                label: Product(
                    "", [Product(str(i), self.parts(scopes[i], f"{path}={label}/{i}/", bound)) for i in range(size)]
                )
                for label, size in zip(depth.labels, depth.sizes, strict=True)
            },
        )


def inside(choice: Choosing) -> Sequence[nn.Module]:
    """The modules that a choice is between, in the order of its options; of a `Depth` its blocks."""
    if isinstance(choice, (OneOf, DifferentiableOp)):
        return tuple(choice.options)
    return tuple(choice.blocks) if isinstance(choice, Depth) else ()


def _label(owner: Owner) -> str:
    choice, option = owner
    return choice.labels[option] if isinstance(choice, (OneOf, DifferentiableOp)) else str(option)


def _default_name(choice: Choosing) -> str:
    return "cell" if isinstance(choice, (Wiring, Pairs)) else type(choice).__name__.lower()


def plan_of(module: nn.Module) -> Plan:
    """The module's plan, made on first use and kept beside (not in) its state."""
    plan: Plan | None = module.__dict__.get(PLAN)
    if plan is None:
        survey, bound = _Survey(module), Bindings()
        parts = survey.parts((), "", bound)
        if not parts:
            raise InputError(
                f"{type(module).__name__} has no choices: put a OneOf, Depth, Width or Graph (nasopt.nets.choices) "
                "where alternatives should be searched."
            )
        try:
            columns = layout(Product("", parts))
        except ValueError as problem:
            raise InputError(
                f"{type(module).__name__}: two choices get one name ({problem}): rename an attribute."
            ) from None
        plan = Plan(
            Product("", parts), columns, tuple(tuple(bound[g.path]) for g in columns.genes), tuple(survey.found)
        )
        module.__dict__[PLAN] = plan
    return plan
