"""Tables of costs: exact for sums over choices by enumeration, few measurements, their stated error, devices, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from nasopt import space as spaces
from nasopt.cost import lookup
from nasopt.cost.count import flops, params
from nasopt.cost.lookup import Lookup, additive, compared, here, read
from nasopt.errors import InputError
from nasopt.nets import choices
from nasopt.space import Arch, Cell, Choice, Graph, Product, Repeat, Space, everything, layout
from nasopt.spaces.nb201 import nb201

FLAT = Product("", [Choice("a", "xyz"), Cell("cell", 3, ("none", "skip", "conv"), none="none", skip="skip")])
NESTED = Product("", [Choice("head", {"plain": None, "deep": Repeat("block", Choice("op", "pqr"), (1, 2)),
                                      "wide": Choice("w", "uv")}), Choice("b", "st")])


class Sum:
    """A random sum over the active choices of a space, which counts its calls."""

    def __init__(self, space: Space, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.each = {g.path: 1 + generator.random(len(g.labels)) for g in layout(space).genes}
        self.calls = 0

    def __call__(self, arch: Arch) -> float:
        self.calls += 1
        return 0.5 + float(sum(self.each[path][option] for path, option in arch.items()))


@pytest.mark.parametrize("space", [FLAT, NESTED])
@pytest.mark.parametrize("last", [False, True])
def test_a_sum_over_choices_is_found_exactly(space: Space, last: bool) -> None:
    cost, archs = Sum(space), list(everything(space))
    table = additive(space, cost, "cost", base=archs[-1] if last else None, check=16)
    true = np.array([cost(a) for a in archs])
    assert np.abs(table.costs(archs) - true).max() < 1e-12
    assert table.span() == pytest.approx((true.min(), true.max()), abs=1e-12)
    assert table.fit is not None and table.fit.largest < 1e-12 and table.fit.spearman == pytest.approx(1)


def test_it_measures_the_base_and_every_single_change_once() -> None:
    cost = Sum(FLAT)
    additive(FLAT, cost, "cost", check=0)
    assert cost.calls == 1 + sum(len(g.labels) - 1 for g in layout(FLAT).genes)


def test_counts_of_nas_bench_201_are_sums_where_no_edge_is_cut_off() -> None:
    net, image, known = nb201(4, 4, 1), torch.zeros(1, 3, 8, 8), dict[str, tuple[int, int]]()

    def count(arch: Arch) -> tuple[int, int]:
        if spaces.key(arch) not in known:
            alone = choices.extract(net, arch).eval()
            known[spaces.key(arch)] = params(alone), flops(alone, image)
        return known[spaces.key(arch)]

    archs = layout(choices.space_of(net)).archs(np.random.default_rng(0).integers(1, 5, (4, 6)))
    for k in range(2):
        table = additive(choices.space_of(net), lambda a, k=k: count(a)[k], "count", check=0)  # type: ignore[misc]
        assert table.costs(archs).tolist() == [count(a)[k] for a in archs]


def test_the_stated_error_is_that_of_the_architectures_it_names() -> None:
    seen: list[Arch] = []

    def cost(arch: Arch) -> float:
        seen.append(arch)
        return float(np.prod([1.0 + option for option in arch.values()]))

    table = additive(FLAT, cost, "cost", check=0)
    seen.clear()
    fit = compared(table, cost, 40, seed=3)
    archs = tuple(seen)
    true, sums = np.array([cost(a) for a in archs]), table.costs(archs)
    error = np.abs(sums - true) / true
    assert (fit.n, fit.mean, fit.largest) == (40, pytest.approx(error.mean()), pytest.approx(error.max())) and fit.mean > 0.1
    assert fit.spearman == pytest.approx(stats.spearmanr(sums, true).statistic) and fit.spearman < 0.99
    assert all(spaces.connected(FLAT, a) for a in archs)
    assert compared(table, lambda a: 1.0, 5).spearman == 0


def test_another_device_is_refused() -> None:
    table = additive(FLAT, Sum(FLAT), "latency", "raspi4", check=0)
    assert table.on("raspi4") is table
    with pytest.raises(InputError, match="a latency table for another device, 'raspi4' instead of 'cpu, "):
        table.on(here())
    assert additive(FLAT, Sum(FLAT), "params", check=0).on(here()).device == ""


def test_a_file_gives_the_same_table(tmp_path: Path) -> None:
    table = additive(NESTED, Sum(NESTED), "latency", here(), check=8)
    table.write(tmp_path / "t.json")
    again = read(tmp_path / "t.json")
    for field in Lookup.__dataclass_fields__:
        assert getattr(again, field) == getattr(table, field), field


NOT_FINITE = ('{"format": "nasopt lookup 1", "name": "x", "device": "", "base": 1, "fit": null, "parts": {"a": [NaN]}, '
              '"space": {"choice": "a", "options": [["x", null]]}}')


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "other"}', NOT_FINITE])
def test_a_damaged_file_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(InputError, match=r"no table of costs|not finite"):
        read(tmp_path / "t.json")


def test_bad_input() -> None:
    with pytest.raises(InputError, match="one number for every option"):
        Lookup("x", FLAT, 0.0, {"a": (0.0,)})
    with pytest.raises(InputError, match=r"cost of .*'z'.* is nan: give a cost"):
        additive(FLAT, lambda a: float("nan") if a["a"] == 2 else 1.0, "cost")
    with pytest.raises(InputError, match="no sums over choices"):
        additive(Graph("", 4, ("a", "b"), 4), lambda a: 1.0, "cost")
    with pytest.raises(InputError, match="at least 2 architectures, got 1"):
        additive(FLAT, Sum(FLAT), "cost", check=1)
    with pytest.raises(InputError, match="not above 0"):
        additive(FLAT, lambda a: 0.0, "cost")
    assert lookup.middle(FLAT).tolist() == [1, 1, 1, 1]
