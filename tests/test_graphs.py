"""Graphs as search spaces: what is valid, what is one network, and that every network can be reached."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasopt import graphs
from nasopt.space import (
    Arch,
    Choice,
    Graph,
    Product,
    canonical,
    check,
    encode,
    everything,
    key,
    layout,
    mutate,
    neighbours,
    plain,
    size,
)
from nasopt.strategies.aging import RegularizedEvolution
from nasopt.strategies.local import LocalSearch
from nasopt.strategies.random import RandomSearch
from nasopt.trial import Objective, Problem, Trial

seeds = st.integers(0, 2**31)


def drawn(seed: int, n: int, nodes: int, operations: int, edges: int) -> tuple[graphs.Wires, graphs.Ops]:
    rng = np.random.default_rng(seed)
    return graphs.draw(rng, n, nodes, edges), rng.integers(0, operations, (n, nodes - 2))


def living(wires: np.ndarray) -> list[int]:
    """The vertices on paths from the input to the output, by powers of the adjacency matrix."""
    power = np.eye(len(wires), dtype=int)
    reach = power.copy()
    for _ in wires:
        power = np.minimum(power @ wires, 1)
        reach |= power
    return [k for k in range(len(wires)) if reach[0, k] and reach[k, -1]]


def name(wires: np.ndarray, ops: np.ndarray) -> tuple[object, ...]:
    """The same for isomorphic living parts, and for these alone: the smallest of all their descriptions."""
    live = living(wires)
    found = []
    for order in permutations(live[1:-1]):
        part = wires[np.ix_([live[0], *order, live[-1]], [live[0], *order, live[-1]])] if live else wires[:0, :0]
        found.append((part.tolist(), [int(ops[k - 1]) for k in order]))
    return min(found)


def relabelled(rng: np.random.Generator, wires: np.ndarray, ops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inner vertices in a random order in which every edge still points forward."""
    inner = list(range(1, len(wires) - 1))
    order: list[int] = []
    while inner:
        free = [k for k in inner if not wires[inner, k].any()]
        order.append(int(rng.choice(free)))
        inner.remove(order[-1])
    full = [0, *order, len(wires) - 1]
    return wires[np.ix_(full, full)], ops[[k - 1 for k in order]]


@pytest.mark.parametrize(("nodes", "operations"), [(3, 3), (4, 2), (5, 2)])
def test_graphs_are_merged_exactly_if_they_are_isomorphic(nodes: int, operations: int) -> None:
    strings = np.array(list(product((0, 1), repeat=nodes * (nodes - 1) // 2)))
    labels = np.array(list(product(range(operations), repeat=nodes - 2)))
    wires = graphs.wires_of(np.repeat(strings, len(labels), axis=0), nodes)
    ops = np.tile(labels, (len(strings), 1))
    form_wires, form_ops = graphs.canonical(wires, ops)
    names = [str(name(w, o)) for w, o in zip(wires, ops, strict=True)]
    forms = [w.tobytes() + o.tobytes() for w, o in zip(form_wires, form_ops, strict=True)]
    for merged in (forms, graphs.hashes(wires, ops).tolist()):
        assert len(set(zip(names, merged, strict=True))) == len(set(names)) == len(set(merged))
    first = [forms.index(form) for form in set(forms)]
    assert [str(name(form_wires[k], form_ops[k])) for k in first] == [names[k] for k in first]
    assert not np.tril(form_wires).any(), "every edge points forward"


@given(st.integers(3, 7), st.integers(1, 3), seeds)
def test_forms_and_hashes_do_not_depend_on_the_order_of_the_vertices(nodes: int, operations: int, seed: int) -> None:
    wires, ops = drawn(seed, 40, nodes, operations, nodes + 2)
    rng = np.random.default_rng(seed)
    moved = [relabelled(rng, w, o) for w, o in zip(wires, ops, strict=True)]
    other = np.array([w for w, _ in moved]), np.array([o for _, o in moved])
    form = graphs.canonical(wires, ops)
    for same in (other, form, graphs.loosen(rng, wires, ops, operations)):
        again = graphs.canonical(*same)
        assert np.array_equal(form[0], again[0]) and np.array_equal(form[1], again[1])
    assert np.array_equal(graphs.hashes(wires, ops), graphs.hashes(*other))
    assert [np.flatnonzero(live).tolist() for live in graphs.alive(wires)] == [living(w) for w in wires]


def test_dead_vertices_come_last_and_are_empty() -> None:
    wires = graphs.wires_of(np.zeros((1, 10), dtype=int), 5)
    wires[0, 0, 1] = wires[0, 0, 3] = wires[0, 3, 4] = wires[0, 2, 3] = True  # 1 leads nowhere, 2 comes from nowhere
    form, ops = graphs.canonical(wires, np.array([[1, 1, 2]]))
    assert np.argwhere(form[0]).tolist() == [[0, 1], [1, 4]]
    assert ops.tolist() == [[2, 0, 0]]


def test_nasbench101_has_2532_cells_of_up_to_five_vertices() -> None:
    """1 of two vertices, 6 of three, 84 of four and 2,441 of five (Ying et al., ICML 2019, the published table)."""
    space = Graph("", 5, ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3"), 9)
    lay = layout(space)
    rows = lay.canonical(lay.rows(list(everything(space))))
    forms = np.unique(rows, axis=0)
    assert len(rows) == size(space)
    assert np.bincount(graphs.alive(lay.graphs[0].wires(forms)).sum(axis=1)).tolist() == [0, 0, 1, 6, 84, 2441]


def test_the_size_is_the_number_of_valid_strings() -> None:
    rng = np.random.default_rng(0)
    flags = rng.integers(0, 2, (20_000, 21))
    share = graphs.valid(graphs.wires_of(flags, 7), 9).mean()
    assert size(Graph("", 7, "abc", 9)) / (2**21 * 3**5) == pytest.approx(share, abs=0.015)
    assert size(Graph("", 7, "abc", 21)) > size(Graph("", 7, "abc", 9)) == 3**5 * graphs.count(7, 9)
    with pytest.raises(ValueError, match="at most 7"):
        size(Graph("g", 8, "ab", 9))


def test_draws_are_uniform_over_the_valid_graphs() -> None:
    lay = layout(Product("", [Graph("g", 4, "a", 3), Choice("c", "xy")]))
    found, counts = np.unique(lay.random(np.random.default_rng(0), 60_000)[:, :6], axis=0, return_counts=True)
    assert len(found) == graphs.count(4, 3)
    expected = 60_000 / len(found)
    freedom = len(found) - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 4 * np.sqrt(2 * freedom)


def test_a_graph_that_cannot_be_drawn_is_told() -> None:
    with pytest.raises(ValueError, match="allow more edges"):
        layout(Graph("", 24, "ab", 2)).random(np.random.default_rng(0), 1)


def test_what_is_no_graph_is_told() -> None:
    space = Product("", [Choice("c", "xy"), Graph("g", 4, "ab", 3)])
    arch: Arch = dict(next(everything(space)))
    assert [p for p, v in arch.items() if v] == ["g/0-3"]
    for change in ({"g/0-3": 0}, {"g/0-1": 1, "g/1-2": 1, "g/2-3": 1}, {"g/0-3": 0, "g/0-1": 1}):
        with pytest.raises(ValueError, match="the graph of choice 'g/0-1' must have 1 to 3 edges"):
            check(space, {**arch, **change})
    check(space, {**arch, "g/0-1": 1, "g/0-2": 1, "g/1-2": 1})  # four edges, three of them dead


def test_mutations_of_canonical_forms_reach_every_network() -> None:
    """With one change at a time: dead vertices would stay dead if they stood idle."""
    space = Graph("", 5, "ab", 5)
    lay = layout(space)
    networks = {row.tobytes() for row in lay.canonical(lay.rows(list(everything(space))))}
    rng = np.random.default_rng(1)
    rows = np.tile(lay.first, (200, 1))
    seen: set[bytes] = set()
    for _ in range(300):
        rows = lay.canonical(lay.vary(rows, rng, 0.0))
        seen |= {row.tobytes() for row in rows}
        if seen == networks:
            break
    assert seen == networks


def test_a_mutation_without_a_rate_changes_one_choice_of_what_is_alive() -> None:
    lay = layout(Graph("", 5, "abc", 10))
    rng = np.random.default_rng(0)
    rows = lay.random(rng, 600)
    rows = rows[graphs.alive(lay.graphs[0].wires(rows)).all(axis=1)]
    assert len(rows) > 50 and ((lay.vary(rows, rng, 0.0) != rows).sum(axis=1) == 1).all()


def test_a_change_where_no_single_one_is_valid() -> None:
    """0 -> 1 -> 2 has all edges that are allowed, and no other operation."""
    space = Graph("", 3, "a", 2)
    arch = {"0-1": 1, "0-2": 0, "1-2": 1, "op1": 0}
    check(space, arch)
    found = {key(mutate(space, arch, np.random.default_rng(seed))) for seed in range(40)}
    assert found == {key(a) for a in everything(space)} - {key(arch)}


def test_crossover_falls_back_on_the_first_parent() -> None:
    lay = layout(Product("", [Graph("g", 5, "ab", 4), Graph("h", 4, "ab", 4)]))
    rng = np.random.default_rng(0)
    a, b = lay.random(rng, 500), lay.random(rng, 500)
    child = lay.cross(a, b, rng)
    assert lay.valid(child).all()
    mixed = [sum((c[list(w.edges)] != p[list(w.edges)]).any() for p in (x, y)) == 2
             for c, x, y in zip(child, a, b, strict=True) for w in lay.graphs]
    assert 0 < sum(mixed) < len(mixed)


def test_plain_graphs_have_one_operation_and_equal_wiring() -> None:
    space = Product("", [Graph("g", 4, "abc", 4), Graph("h", 4, "abc", 4)])
    found = plain(space, np.random.default_rng(0), 60)
    for arch in found:
        check(space, arch)
        assert len({v for p, v in arch.items() if "op" in p}) == 1
        assert all(v == arch["h" + p[1:]] for p, v in arch.items() if p.startswith("g/"))
    assert {arch["g/op1"] for arch in found} == {0, 1, 2}


def test_graphs_below_a_choice_are_silent_and_valid() -> None:
    """A graph that becomes active is valid, whatever the row held while it was silent."""
    space = Choice("kind", {"none": None, "graph": Graph("g", 4, "ab", 3)})
    lay = layout(space)
    (silent,) = lay.rows([{"kind": 0}])
    woken = lay.vary(np.tile(silent, (50, 1)), np.random.default_rng(0))
    assert (woken[:, 0] == 1).all() and lay.valid(woken).all()
    assert list(neighbours(space, {"kind": 0})) == [list(everything(space))[1]]
    assert canonical(space, {"kind": 0}) == {"kind": 0}
    assert encode(space, [{"kind": 0}]).sum() == 1


@pytest.mark.parametrize("make", [RandomSearch, LocalSearch, RegularizedEvolution])
def test_every_network_of_a_graph_space_is_asked_exactly_once(make: Callable[[Problem, int], RandomSearch]) -> None:
    space = Graph("", 4, "ab", 4)
    networks = {key(canonical(space, arch)) for arch in everything(space)}
    rows = layout(space).rows(list(everything(space)))
    assert len(networks) == len({str(name(w, o)) for w, o in zip(graphs.wires_of(rows[:, :6], 4), rows[:, 6:], strict=True)})
    strategy, asked = make(Problem(space, (Objective("error"),)), 0), list[str]()
    while asks := strategy.ask(7, len(asked)):
        asked += [key(ask.arch) for ask in asks]
        strategy.tell([Trial(ask, {"error": float(ask.number % 5)}, 0.0) for ask in asks])
    assert len(asked) == len(networks) and set(asked) == networks
