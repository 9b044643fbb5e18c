"""Tables as problems: what stands in the files comes out for the right architecture, and what is wrong is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nasopt import graphs, space
from nasopt.benchmarks import tables
from nasopt.benchmarks.tables import Lookup, Table
from nasopt.errors import InputError
from nasopt.run.search import EXHAUSTED, Budget, search
from nasopt.space import Cell, Choice, Graph, Product
from nasopt.spaces import nb201
from nasopt.strategies.random import RandomSearch
from nasopt.trial import Ask, Constraint

FOLDER = Path(os.environ.get("NASOPT_TABLES", Path(__file__).parents[2] / "shared/data/nas_tables"))
needs_tables = pytest.mark.skipif(not FOLDER.is_dir(), reason="the folder of NAS tables is not here")

SPACE = Product("", [Choice("width", ("8", "16")), Cell("cell", 2, ("none", "conv"), none="none")])


def own(path: Path, **more: Any) -> Path:
    """A table of a user's own, in ten lines."""
    arrays = {"space": json.dumps(space.to_json(SPACE)), "archs": np.array([[0, 0], [0, 1], [1, 0], [1, 1]]),
              "error": np.array([0.9, 0.3, 0.9, 0.1]), "energy": np.array([1.0, 2.0, np.nan, 5.0]),
              "about": json.dumps({"energy": {"unit": "mJ"}})} | more
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def test_a_users_own_table(tmp_path: Path) -> None:
    table = tables.load(own(tmp_path / "mine.npz"))
    assert (table.name, table.column("energy").unit, table.column("error").minimise) == ("mine", "mJ", True)
    assert Lookup(table, ["error", "energy"])(Ask(0, {"width": 1, "cell/0-1": 1})) == {"error": 0.1, "energy": 5.0}
    assert Lookup(table, ["error", "energy"])(Ask(0, {"width": 1, "cell/0-1": 0})) == {"error": 0.9}
    problem = table.problem(["error", "energy"])
    assert table.front(problem).tolist() == [[0.1, 5.0], [0.3, 2.0], [0.9, 1.0]]
    assert table.front(table.problem(["error", "energy"], [Constraint("energy", 2.0)])).tolist() == [[0.3, 2.0], [0.9, 1.0]]
    single = table.problem(["error"])
    study = search(single, RandomSearch(single), Lookup(table, ["error"]), budget=Budget(trials=9))
    assert (len(study.trials), study.stopped) == (4, EXHAUSTED)


def test_a_damaged_table_is_told(tmp_path: Path) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(InputError, match=match):
            tables.load(path)

    refused(tmp_path / "none.npz", "does not exist")
    whole = own(tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:len(whole) // 2])
    refused(tmp_path / "cut.npz", "damaged")
    refused(own(tmp_path / "a.npz", archs=None), "no array 'archs'")
    refused(own(tmp_path / "b.npz", error=np.zeros(3)), r"shape \(3,\) instead of \(4,\)")
    refused(own(tmp_path / "c.npz", archs=np.full((4, 2), 7)), "does not describe")
    refused(own(tmp_path / "f.npz", archs=np.zeros((4, 5))), "shape .4, 5., but the space has 2 choices")
    refused(own(tmp_path / "d.npz", space="[]"), "does not describe")
    refused(own(tmp_path / "g.npz", about=json.dumps({"error": {"minimize": True}})), "does not describe")
    refused(own(tmp_path / "h.npz", about="[]"), "does not describe")
    refused(own(tmp_path / "i.npz", about=json.dumps({"eror": {"unit": "%"}})), "'eror', which is none of its columns")
    refused(own(tmp_path / "j.npz", note=np.array(["a", "b", "c", "d"])), "does not describe")
    np.savez_compressed(tmp_path / "k.npz", space=json.dumps(space.to_json(SPACE)), archs=np.zeros((400, 2)), error=np.zeros(400))
    squeezed = bytearray((tmp_path / "k.npz").read_bytes())
    place = squeezed.index(b"archs.npy") + 30
    squeezed[place:place + 8] = b"\xff" * 8
    (tmp_path / "k.npz").write_bytes(squeezed)
    refused(tmp_path / "k.npz", "damaged")
    np.savez(tmp_path / "e.npz", space=np.array([{}], dtype=object))
    refused(tmp_path / "e.npz", "damaged")
    np.savez(tmp_path / "nb101.npz", **{k: np.zeros(1) for k in ("num_vertices", "adj_bits", "adj_bit_pos", "test108_mean",
                                                                 "test108_denominator")}, ops=np.zeros((1, 4)), op_names=[b"x"])
    refused(tmp_path / "nb101.npz", "not that of NAS-Bench-101")
    np.savez(tmp_path / "nb201.npz", ops=np.zeros((3, 6)), op_names=np.array([b"x"]), test200_c10=np.zeros(3))
    refused(tmp_path / "nb201.npz", "not that of NAS-Bench-201")


def test_what_a_table_does_not_hold(tmp_path: Path) -> None:
    table = tables.load(own(tmp_path / "mine.npz", archs=np.array([[0, 0], [0, 1], [1, 0], [1, 0]])))
    with pytest.raises(InputError, match="does not hold the architecture"):
        table.row({"width": 1, "cell/0-1": 1})
    with pytest.raises(InputError, match="did you mean 'energy'"):
        table.problem(["enrgy"])
    with pytest.raises(InputError, match="did you mean 'error'"):
        Lookup(table, ["eror"])
    with pytest.raises(InputError, match=r"meets energy <= 0.5: the best has 1"):
        table.problem(["error"], [Constraint("energy", 0.5)])
    with pytest.raises(InputError, match="together"):
        table.problem(["error"], [Constraint("energy", 1.0), Constraint("error", 0.5)])


def test_isomorphic_graphs_are_one_row_of_a_table(tmp_path: Path) -> None:
    """0 -> 1 -> 3 with 2 dead, and 0 -> 2 -> 3 with 1 dead, are one network if their one operation is the same."""
    shape = Product("", [Choice("width", ("8", "16")), Graph("g", 4, ("conv", "pool"), 4)])
    left, right = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1]
    rows = np.array([[0, *left, 0, 0], [1, *left, 0, 0], [0, *left, 1, 0], [0, *right, 1, 0]])
    table = tables.load(own(tmp_path / "mine.npz", space=json.dumps(space.to_json(shape)), archs=rows))
    lay = space.layout(shape)
    moved = np.array([[0, *right, 1, 0], [1, *right, 0, 0], [0, *right, 0, 1], [0, *left, 0, 1]])
    assert [table.row(arch) for arch in lay.archs(moved)] == [0, 1, 2, 0]
    assert table.representative.tolist() == [True, True, True, False], "the first counts"
    with pytest.raises(InputError, match="does not hold"):
        table.row(lay.archs(np.array([[1, *left, 1, 0]]))[0])


@needs_tables
def test_nasbench101() -> None:
    table = tables.load(FOLDER / "nb101")
    raw = np.load(FOLDER / "nb101.npz", allow_pickle=False)
    lay, accuracy = space.layout(table.space), table.column("test108").values
    assert np.array_equal(accuracy, 100 * raw["test108_mean"].astype(float) / 29952)
    assert (accuracy.argmax(), round(accuracy.max(), 4)) == (4789, 94.3176)
    assert lay.valid(table.archs).all()
    assert table.representative.all(), "423,624 different hashes, and every one is found"
    rng = np.random.default_rng(0)
    drawn = lay.random(rng, 1000)
    places = np.array([table.row(arch) for arch in lay.archs(drawn)])
    (w,) = lay.graphs
    assert [table.row(arch) for arch in lay.archs(lay.canonical(drawn))] == places.tolist()
    live = graphs.alive(w.wires(drawn))
    assert (live.sum(axis=1) == raw["num_vertices"][places]).all()
    used = [sorted(row[on].tolist()) for row, on in zip(drawn[:, w.ops], live[:, 1:-1], strict=True)]
    own = [sorted(int(o) for o in row if o >= 0) for row in raw["ops"][places]]
    assert used == own, "the operations are numbered as in the file"
    chain = {**dict.fromkeys((g.path for g in lay.genes), 0), "0-3": 1, "3-6": 1, "op3": 2}
    pool = table.row(chain)
    assert (raw["num_vertices"][pool], raw["ops"][pool].tolist(), raw["adj_bits"][pool].item()) == (3, [2, -1, -1, -1, -1], 65)
    assert np.isfinite(table.column("energy_kwh").values).sum() == 4310


@pytest.fixture(scope="module")
def cells() -> Table:
    return tables.load(FOLDER / "nb201")


@needs_tables
def test_nasbench201(cells: Table) -> None:
    raw = np.load(FOLDER / "nb201.npz", allow_pickle=False)
    for k in (0, 11, 284, 6111, 9930, 15_624):
        arch = nb201.from_string(raw["arch_str"][k].decode())
        assert cells.row(arch) == k
        assert Lookup(cells, ["test200_c10"])(Ask(0, arch))["test200_c10"] == raw["test200_c10"][k]
    assert cells.representative.sum() == 6466
    assert cells.front(cells.problem(["test200_c10"])).tolist() == [[-raw["test200_c10"].max()]], "the optimum can be found"
    assert cells.column("c10__raspi4_latency").unit == "ms"
    assert cells.column("c10__edgetpu_undeployable").values.sum() == 4699
    deployable = cells.problem(["test200_c10", "c10__edgetpu_latency"], [Constraint("c10__edgetpu_undeployable", 0.0)])
    assert cells.feasible(deployable).sum() == 15_625 - 4699


@needs_tables
def test_nasbench_macro_and_fbnet() -> None:
    macro = tables.load(FOLDER / "nbmacro_c10.npz")
    best = {f"layer {k}": int(c) for k, c in enumerate("22212202")}
    assert Lookup(macro, ["test_acc"])(Ask(0, best))["test_acc"] == pytest.approx(93.1267, abs=1e-4)
    assert macro.front(macro.problem(["test_acc"]))[0] == pytest.approx(-93.1267, abs=1e-4)
    fbnet = tables.load(FOLDER / "fbnet_latency.npz")
    raw = np.load(FOLDER / "fbnet_latency.npz", allow_pickle=False)
    arch = {f"layer {k}": int(c) for k, c in enumerate(raw["arch"][17])}
    assert Lookup(fbnet, ["raspi4"])(Ask(0, arch))["raspi4"] == pytest.approx(float(raw["raspi4"][17]))
    with pytest.raises(InputError, match="does not hold"):
        fbnet.row({f"layer {k}": 0 for k in range(22)})
