"""Every fold of the search-space algebra against plain enumeration on small random spaces."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nasopt.space import (
    Arch,
    Cell,
    Choice,
    Graph,
    Product,
    Repeat,
    Space,
    _canonical_cell,
    canonical,
    check,
    connected,
    cross,
    encode,
    everything,
    from_json,
    from_labels,
    key,
    labels,
    layout,
    mutate,
    neighbours,
    plain,
    sample,
    signature,
    size,
    to_json,
    walk,
)

LABELS = "abcd"


# ------------------------------------------------------------------------------------------ an independent enumeration
def enumerate_paths(node: Space, prefix: str = "") -> list[dict[str, int]]:
    """All architectures by recursion over the tree, as the module's docstring has it; shares no code."""
    path = prefix + node.name
    inside = path + "/" if node.name else prefix
    if isinstance(node, Choice):
        out: list[dict[str, int]] = []
        for k, (label, part) in enumerate(node.options):
            below = [{}] if part is None else enumerate_paths(part, f"{path}={label}/")
            out += [{path: k, **b} for b in below]
        return out
    if isinstance(node, Product):
        return merge([enumerate_paths(p, inside) for p in node.parts])
    if isinstance(node, Cell):
        edges = [f"{inside}{i}-{j}" for j in range(node.nodes) for i in range(j)]
        return [dict(zip(edges, ops, strict=True)) for ops in product(range(len(node.operations)), repeat=len(edges))]
    if isinstance(node, Graph):
        pairs = [(i, j) for j in range(node.nodes) for i in range(j)]
        names = [f"{inside}{i}-{j}" for i, j in pairs] + [f"{inside}op{k}" for k in range(1, node.nodes - 1)]
        wirings = [on for on in product((0, 1), repeat=len(pairs))
                   if 0 < len(on_paths({e for e, o in zip(pairs, on, strict=True) if o}, node.nodes - 1)) <= node.edges]
        return [dict(zip(names, (*on, *ops), strict=True)) for on in wirings
                for ops in product(range(len(node.operations)), repeat=node.nodes - 2)]
    out = []
    for k, times in enumerate(node.times):
        names = (["*"] if times else []) if node.shared else [str(c) for c in range(times)]
        own = {path: k} if len(node.times) > 1 else {}
        out += [{**own, **a} for a in merge([enumerate_paths(node.part, f"{path}[{c}]/") for c in names])]
    return out


def on_paths(edges: set[tuple[int, int]], end: int, start: int = 0) -> set[tuple[int, int]]:
    """The edges on paths from start to end, path by path."""
    found: set[tuple[int, int]] = set()
    for i, j in edges:
        if i == start and (j == end or (rest := on_paths(edges, end, j))):
            found |= {(i, j)} | (rest if j != end else set())
    return found


def merge(alternatives: list[list[dict[str, int]]]) -> list[dict[str, int]]:
    out: list[dict[str, int]] = [{}]
    for some in alternatives:
        out = [{**a, **b} for a in out for b in some]
    return out


# ------------------------------------------------------------------------------------------------- small random spaces
@st.composite
def cells(draw: st.DrawFn, name: str = "cell", nodes: int = 3) -> Cell:
    operations = LABELS[:draw(st.integers(1, 3))]
    maybe = st.sampled_from([None, *operations])
    none = draw(maybe)
    skip = draw(maybe.filter(lambda s: s is None or s != none))
    return Cell(name, draw(st.integers(2, nodes)), operations, none=none, skip=skip,
                rule=draw(st.sampled_from(["algebra", "nasbench201"])))


@st.composite
def graphs(draw: st.DrawFn, name: str = "graph") -> Graph:
    nodes = draw(st.integers(3, 4))
    return Graph(name, nodes, LABELS[:draw(st.integers(1, 2))], draw(st.integers(2, 6)))


@st.composite
def trees(draw: st.DrawFn, depth: int = 2, name: str = "s") -> Space:
    kind = draw(
        st.sampled_from(["choice", "cell", "graph"] if depth == 0 else ["choice", "choice", "product", "repeat", "cell", "graph"])
    )
    if kind == "graph":
        return draw(graphs(name))
    if kind == "cell":
        return draw(cells(name))
    if kind == "choice":
        options = LABELS[:draw(st.integers(1, 3))]
        inner = st.none() if depth == 0 else st.one_of(st.none(), trees(depth - 1, "in"))
        return Choice(name, {o: draw(inner) for o in options})
    if kind == "product":
        return Product(draw(st.sampled_from([name, ""])) if depth == 2 else name,
                       [draw(trees(depth - 1, f"p{k}")) for k in range(draw(st.integers(0, 2)))])
    times = draw(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True))
    return Repeat(name, draw(trees(depth - 1, "part")), times, shared=draw(st.booleans()))


spaces = trees().filter(lambda s: size(s) <= 400)
seeds = st.integers(0, 2**31)


def names(archs: Sequence[Arch]) -> set[str]:
    return {json.dumps(a, sort_keys=True) for a in archs}


@given(spaces)
def test_everything_and_size_equal_enumeration(space: Space) -> None:
    expected = enumerate_paths(space)
    found = list(everything(space))
    assert len(found) == len(expected) == size(space) == len(names(expected))
    assert names(found) == names(expected)


@given(spaces, seeds)
def test_sample_mutate_cross_stay_inside(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    inside = names(enumerate_paths(space))
    a, b = sample(space, rng), sample(space, rng)
    child = cross(space, a, b, rng)
    assert names([a, b, child]) <= inside
    for path, value in child.items():
        assert value in {x[path] for x in (a, b) if path in x} or (path not in a and path not in b)
    for arch in (a, b, child):
        check(space, arch)
    if size(space) > 1:
        other = mutate(space, a, rng)
        assert names([other]) <= inside
        assert any(path in other and other[path] != value for path, value in a.items())
    else:
        with pytest.raises(ValueError, match="two options"):
            mutate(space, a, rng)


@given(spaces.filter(lambda s: 1 < size(s) <= 12), seeds)
@settings(max_examples=25)
def test_mutation_and_sampling_reach_everything(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    inside = names(enumerate_paths(space))
    lay = layout(space)
    assert names(lay.archs(lay.random(rng, 4000))) == inside
    reached, arch = set(), sample(space, rng)
    for _ in range(1500):
        arch = mutate(space, arch, rng)
        reached |= names([arch])
        if reached == inside:
            break
    assert reached == inside


@given(spaces, st.integers(0, 5))
def test_plain_architectures_have_one_operation(space: Space, seed: int) -> None:
    lay = layout(space)
    for arch in plain(space, np.random.default_rng(seed), 7):
        check(space, arch)
        for cell, columns in lay.cells:
            chosen = {cell.operations[arch[lay.genes[k].path]] for k in columns if lay.genes[k].path in arch}
            assert len(chosen - {cell.none}) <= 1
            if set(cell.operations) - {cell.none, cell.skip}:
                assert not chosen & {cell.skip} or cell.skip is None


def test_plain_architectures_have_equal_cells_and_all_operations() -> None:
    space = Product("", [Cell("a", 3, ("none", "x", "y"), none="none"), Cell("b", 3, ("none", "x", "y"), none="none"),
                         Choice("width", ("1", "2"))])
    found = [labels(space, arch) for arch in plain(space, np.random.default_rng(0), 200)]
    assert all(f[f"a/{e}"] == f[f"b/{e}"] for f in found for e in ("0-1", "0-2", "1-2"))
    assert len({tuple(f.values()) for f in found}) == 2 * (2 * 7 + 1)


@given(spaces.filter(lambda s: size(s) <= 100))
def test_neighbours_differ_in_one_choice(space: Space) -> None:
    every = enumerate_paths(space)
    for arch in every[:: max(1, len(every) // 8)]:
        expected = []
        for path, value in arch.items():
            for option in range(layout(space).options[layout(space).column[path]]):
                fits = (e for e in every if e.get(path) == option != value
                        and all(e[p] == v for p, v in arch.items() if p != path and p in e))
                expected += [first] if (first := next(fits, None)) else []
        found = list(neighbours(space, arch))
        assert found == expected
        assert len(names(found)) == len(found)


@given(spaces, seeds)
def test_encoding_is_one_hot_and_injective(space: Space, seed: int) -> None:
    every = enumerate_paths(space)
    features = encode(space, every)
    assert features.shape == (len(every), int(layout(space).options.sum()))
    assert set(np.unique(features)) <= {0.0, 1.0}
    assert features.sum(axis=1).tolist() == [len(a) for a in every]
    assert len(np.unique(features, axis=0)) == len(every)


@given(spaces, seeds)
def test_rows_and_archs_are_inverse(space: Space, seed: int) -> None:
    lay, every = layout(space), enumerate_paths(space)
    rng = np.random.default_rng(seed)
    rows = lay.rows(every, rng)
    assert lay.archs(rows) == every and lay.archs(lay.rows(every)) == every
    assert np.array_equal(lay.silence(rows), lay.rows(every))
    assert lay.active(rows).sum(axis=1).tolist() == [len(a) for a in every]
    assert not lay.flat or all(len(a) == len(lay.genes) for a in every)


@given(spaces)
def test_keys_differ_and_ignore_the_order(space: Space) -> None:
    every = enumerate_paths(space)
    assert len({key(a) for a in every}) == len(every)
    assert all(key(a) == key(dict(reversed(a.items()))) for a in every)


def test_key_is_pinned_on_every_machine() -> None:
    """BLAKE2b of the sorted JSON, computed with coreutils' b2sum -l 64."""
    assert key({"b": 1, "a": 0}) == "7302599c428c6968"





@given(spaces)
def test_labels_and_from_labels_are_inverse(space: Space) -> None:
    for arch in enumerate_paths(space)[:40]:
        words = labels(space, arch)
        assert from_labels(space, words) == arch
        for path in arch:
            with pytest.raises(ValueError, match="missing"):
                from_labels(space, {p: w for p, w in words.items() if p != path})
            with pytest.raises(ValueError, match="not one of"):
                from_labels(space, {**words, path: "?"})
        with pytest.raises(ValueError, match="does not exist"):
            from_labels(space, {**words, "?": "a"})


@given(spaces, st.data())
def test_check_names_the_choice(space: Space, data: st.DataObject) -> None:
    arch = data.draw(st.sampled_from(enumerate_paths(space)))
    check(space, arch)
    with pytest.raises(ValueError, match="'nonsense' does not exist"):
        check(space, {**arch, "nonsense": 0})
    if arch:
        path = data.draw(st.sampled_from(sorted(arch)))
        wrong = data.draw(st.sampled_from([-1, 99, 0.5, "0", None]))
        with pytest.raises(ValueError, match="choice") as error:
            check(space, {**arch, path: wrong})  # type: ignore[dict-item]
        assert repr(path) in str(error.value)
        with pytest.raises(ValueError, match="choice") as error:
            check(space, {p: v for p, v in arch.items() if p != path})
        assert repr(path) in str(error.value) or "does not exist" in str(error.value)


@given(spaces)
def test_json_round_trip(space: Space) -> None:
    text = json.dumps(to_json(space))
    again = from_json(json.loads(text))
    assert again == space and hash(again) == hash(space) and json.dumps(to_json(again)) == text


@pytest.mark.parametrize("data", [
    {}, {"choice": "a"}, {"product": "a", "parts": 3}, {"cell": "c", "nodes": 3}, {"choice": "a", "options": [["x"]]},
    {"repeat": "r", "part": {}, "times": [1], "shared": False}, [], "choice", {"choice": "a", "options": [["x", 1]]},
    {"choice": "a", "options": [["x", None], ["x", None]]}, {"product": "p", "parts": [None]},
    {"graph": "g", "nodes": 4, "operations": ["a"]}])
def test_what_is_not_a_space_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match=r"not a search space|twice"):
        from_json(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [
    lambda: Choice("a", []), lambda: Choice("a/b", "xy"), lambda: Choice("a", ["x", "x"]), lambda: Choice("a", ["x=y"]),
    lambda: Product("p", [Choice("a", "x"), Choice("a", "y")]), lambda: Repeat("r", Choice("a", "x"), [1, 1]),
    lambda: Repeat("r", Choice("a", "x"), -1), lambda: Repeat("r", Choice("a", "x"), []), lambda: Cell("c", 1, "ab"),
    lambda: Cell("c", 3, "ab", none="z"), lambda: Cell("c", 3, "ab", rule="x"),  # type: ignore[arg-type]
    lambda: layout(Product("", [Product("", [Choice("a", "x")]), Product("", [Choice("a", "y")])])),
    lambda: Cell("c", 3, "aab"), lambda: Cell("c", 3, "ab", none="a", skip="a"), lambda: Cell("c", 3, []),
    lambda: Repeat("r", Choice("a", "x"), [1.5]), lambda: Graph("g", 2, "ab", 3), lambda: Graph("g", 3, "ab", 1),
    lambda: Graph("g", 3, "aa", 3), lambda: Graph("g", 3, [], 3)])
def test_malformed_spaces_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        make()  # type: ignore[operator]


def test_walk_asks_parents_first_and_refuses_wrong_picks() -> None:
    space = Choice("head", {"none": None, "mlp": Choice("width", "ab")})
    asked: list[str] = []
    assert walk(space, lambda p, o: asked.append(p) or len(o) - 1) == {"head": 1, "head=mlp/width": 1}
    assert asked == ["head", "head=mlp/width"]
    for wrong in (2, -1, 0.0):
        with pytest.raises(ValueError, match="'head'"):
            walk(space, lambda p, o, w=wrong: w)  # type: ignore[misc]


def test_sampling_is_uniform_over_options() -> None:
    lay = layout(Product("", [Choice("a", "xyz"), Choice("b", "xy")]))
    counts = Counter(map(tuple, lay.random(np.random.default_rng(0), 60_000).tolist()))
    assert sum((c - 10_000) ** 2 / 10_000 for c in counts.values()) < 20.5  # chi-square, 5 degrees of freedom, 99.9 %


def test_mutation_rate_and_uniform_alternatives() -> None:
    """n columns at rate 1/n with at least one change: the mean number of changes is 1 + (1 - 1/n)^n."""
    n, rows = 8, np.zeros((40_000, 8), dtype=np.int64)
    lay = layout(Product("", [Choice(f"c{k}", "wxyz") for k in range(n)]))
    changed = lay.vary(rows, np.random.default_rng(1))
    per_row = (changed != 0).sum(axis=1)
    assert per_row.min() == 1 and abs(per_row.mean() - (1 + (1 - 1 / n) ** n)) < 0.02
    assert abs(np.bincount(changed[changed > 0]) [1:] / (changed > 0).sum() - 1 / 3).max() < 0.01
    assert (lay.vary(rows, np.random.default_rng(1), rate=1.0) != 0).all()


# ------------------------------------------------------------------------------------------------------ canonical forms
def classes(cell: Cell) -> dict[str, list[tuple[int, ...]]]:
    out: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for ops in product(range(len(cell.operations)), repeat=len(cell.edges)):
        out[signature(cell, ops)].append(ops)
    return out


@given(cells(nodes=4).filter(lambda c: size(c) <= 729))
@settings(max_examples=40)
def test_canonical_cells_are_equal_exactly_if_signatures_are(cell: Cell) -> None:
    for members in classes(cell).values():
        forms = {_canonical_cell(cell, ops) for ops in members}
        assert forms == {min(members)}


@given(spaces)
def test_canonical_is_idempotent_and_inside(space: Space) -> None:
    every = enumerate_paths(space)
    inside = names(every)
    for arch in every[:100]:
        form = canonical(space, arch)
        assert names([form]) <= inside and canonical(space, form) == form
        assert all(form[p] == v for p, v in arch.items() if "-" not in p and not p.rpartition("/")[2].startswith("op"))


@given(st.integers(5, 6), st.booleans(), seeds, st.sampled_from(["algebra", "nasbench201"]))
def test_the_form_of_large_cells_keeps_the_signature(nodes: int, skips: bool, seed: int, rule: str) -> None:
    """Beyond the table: idempotent and never merges what differs; removes dead edges, blind to inner order."""
    cell = Cell("c", nodes, ("none", "skip", "a", "b", "c", "d", "e"), none="none", skip="skip" if skips else None,
                rule=rule)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    ops = tuple((rng.integers(0, 7, len(cell.edges)) * (rng.random(len(cell.edges)) < 0.6)).tolist())
    form = _canonical_cell(cell, ops)
    assert signature(cell, form) == signature(cell, ops) and _canonical_cell(cell, form) == form
    if rule == "algebra":
        assert sum(o > 0 for o in form) <= sum(o > 0 for o in ops)
        order = [0, *(1 + rng.permutation(nodes - 2)).tolist(), nodes - 1]
        chosen = {(order[i], order[j]): o for (i, j), o in zip(cell.edges, ops, strict=True) if o}
        if all(i < j for i, j in chosen):
            assert _canonical_cell(cell, tuple(chosen.get(e, 0) for e in cell.edges)) == form


def test_dead_branches_of_large_cells_go() -> None:
    cell = Cell("", 5, ("none", "a", "b", "c"), none="none")
    assert size(cell) > 20_000
    alive = {"0-1": 1, "1-4": 2}
    dead = {"0-2": 3, "3-4": 1, "2-3": 0}
    empty = dict.fromkeys((f"{i}-{j}" for i, j in cell.edges), 0)
    assert canonical(cell, {**empty, **alive, **dead, "2-3": 0}) == canonical(cell, {**empty, **alive})
    assert canonical(cell, {**empty, "0-3": 1, "3-4": 2}) == canonical(cell, {**empty, **alive})


def evaluate(cell: Cell, ops: Sequence[int], x: int, coefficients: Sequence[tuple[int, int, int]]) -> int | None:
    """The cell over the integers: node = sum of its inputs, operation k = a polynomial; None is 'nothing arrived'."""
    value: list[int | None] = [x] + [None] * (cell.nodes - 1)
    for (i, j), op in zip(cell.edges, ops, strict=True):
        source, label = value[i], cell.operations[op]
        if source is None or label == cell.none:
            continue
        a, b, c = coefficients[op]
        term = source if label == cell.skip else a * source**2 + b * source + c
        value[j] = term + (value[j] or 0)
    return value[-1]


@given(st.integers(2, 5), st.sampled_from([(None, None), ("a", None), ("a", "b"), (None, "b")]), seeds)
@settings(max_examples=150)
def test_canonical_cells_compute_the_same_function(nodes: int, roles: tuple[str | None, str | None], seed: int) -> None:
    cell = Cell("", nodes, LABELS, none=roles[0], skip=roles[1])
    rng = np.random.default_rng(seed)
    space_ops = rng.integers(0, 4, size=(6, len(cell.edges)))
    for ops in space_ops.tolist():
        arch = {f"{i}-{j}": o for (i, j), o in zip(cell.edges, ops, strict=True)}
        form = list(canonical(cell, arch).values())
        for _ in range(3):
            polynomials = [tuple(c) for c in rng.integers(1, 1000, size=(4, 3)).tolist()]
            x = int(rng.integers(1, 1000))
            assert evaluate(cell, form, x, polynomials) == evaluate(cell, ops, x, polynomials)


@given(st.integers(2, 4), st.sampled_from([("a", None), ("a", "b"), (None, "b")]), seeds)
@settings(max_examples=20)
def test_different_signatures_are_different_functions(
    nodes: int, roles: tuple[str | None, str | None], seed: int
) -> None:
    """The other direction: for random polynomials two functions agree at random points only if the cells are equal."""
    cell = Cell("", nodes, LABELS[:3], none=roles[0], skip=roles[1])
    rng = np.random.default_rng(seed)
    polynomials = [tuple(c) for c in rng.integers(1, 10**6, size=(3, 3)).tolist()]
    x = int(rng.integers(1, 10**6))
    groups = classes(cell)
    assert len({evaluate(cell, members[0], x, polynomials) for members in groups.values()}) == len(groups)


def test_nasbench201_has_6466_classes() -> None:
    """Dong et al., TPAMI 2021: 15,625 strings, 6,466 different networks once zeros are considered."""
    cell = Cell("", 4, ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"), none="none",
                skip="skip_connect", rule="nasbench201")
    forms = {tuple(canonical(cell, a).values()) for a in everything(cell)}
    assert size(cell) == 15_625 and len(forms) == 6_466
    algebra = Cell("", 4, cell.operations, none="none", skip="skip_connect")
    assert len({signature(algebra, ops) for ops in forms}) == len(classes(algebra)) < 6_466


def test_labels_cannot_forge_a_signature() -> None:
    """A label that looks like an expression is no expression."""
    cell = Cell("", 3, ("none", "a", "a+(0)@a"), none="none", rule="nasbench201")
    assert len(classes(cell)) == len({tuple(canonical(cell, a).values()) for a in everything(cell)})
    assert signature(Cell("", 2, ("none", "#"), none="none", rule="nasbench201"), (1,)) != "#"
    forged = Cell("", 3, ("none", "skip", "a", "a+(0)@a"), none="none", skip="skip", rule="nasbench201")
    plain = Cell("", 3, ("none", "skip", "a", "b"), none="none", skip="skip", rule="nasbench201")
    assert len(classes(forged)) == len(classes(plain))


def test_connected_is_an_expression_that_is_not_empty() -> None:
    cell = Cell("cell", 4, ["none", "skip", "conv"], none="none", skip="skip")
    for arch in everything(cell):
        assert connected(cell, arch) == (signature(cell, [arch[f"cell/{i}-{j}"] for i, j in cell.edges]) != "")
