"""The comparison of strategies: what stands in its records, and that good strategies look good."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nasopt import bench, cli, space
from nasopt.compare import compare, parse
from nasopt.errors import InputError
from nasopt.space import Choice, Product
from nasopt.trial import Constraint

SPACE = Product("", [Choice(f"c{k}", "abcd") for k in range(4)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one table of 256 architectures, in which every 3 is an error less and costs more."""
    where = tmp_path_factory.mktemp("tables")
    archs = np.array(list(np.ndindex(4, 4, 4, 4)))
    np.savez(where / "toy.npz", space=json.dumps(space.to_json(SPACE)), archs=archs, error=(archs != 3).sum(axis=1) + 0.5,
             noisy=(archs != 3).sum(axis=1) + archs[:, 0] / 10, cost=archs.sum(axis=1) ** 2.0)
    return where


def task(folder: Path, **more: Any) -> bench.Task:
    return bench.Task("toy", str(folder), **{"objectives": ("error",), **more})


def test_a_run_is_reproducible_and_written_down(folder: Path) -> None:
    aim = task(folder, report=("cost",))
    runs = bench.run(aim, ["random", "local"], 30, range(3), jobs=2)
    assert [(r["strategy"], r["seed"]) for r in runs] == [(s, k) for s in ("random", "local") for k in range(3)]
    for r in runs:
        assert len(r["trials"]) == 30
        for t in r["trials"]:
            row = [int("abcd".index(v)) for v in t["architecture"].values()]
            assert t["metrics"] == {"error": sum(v != 3 for v in row) + 0.5, "cost": float(sum(row) ** 2)}
    again = bench.one(aim, "local", 2, 30)
    assert [t["architecture"] for t in again["trials"]] == [t["architecture"] for t in runs[-1]["trials"]]


def test_a_table_may_have_a_dot_in_its_name(folder: Path) -> None:
    (folder / "toy.v2.npz").write_bytes((folder / "toy.npz").read_bytes())
    for name in ("toy.v2", "toy.v2.npz", "toy.npz"):
        assert len(bench.prepare(bench.Task(name, str(folder), objectives=("error",))).problem.objectives) == 1
    (folder / "toy.v2.npz").unlink()
    with pytest.raises(InputError, match=r"unknown table 'toy\.v3'"):
        bench.prepare(bench.Task("toy.v3", str(folder), objectives=("error",)))


def test_no_strategy_sees_what_is_only_reported(folder: Path) -> None:
    ready = bench.prepare(task(folder, report=("cost",)))
    assert [o.name for o in ready.problem.objectives] == ["error"]
    arch = {f"c{k}": 0 for k in range(4)}
    assert set(ready.estimate(bench_ask(arch))) == {"error"}
    assert set(ready.more(bench_ask(arch))) == {"error", "cost"}


def bench_ask(arch: dict[str, int]) -> Any:
    from nasopt.trial import Ask

    return Ask(0, arch)


def test_the_summary_ranks_local_search_above_random(folder: Path) -> None:
    aim = task(folder)
    ready = bench.prepare(aim)
    runs = bench.run(aim, ["random", "local"], 256, range(6), jobs=2)
    rows = {r["strategy"]: r for r in bench.summary(ready.problem, runs, ready.front, [10, 256])}
    assert rows["local"]["optimum"][0] < rows["random"]["optimum"][0]
    assert rows["random"]["optimum"][2] == 1.0
    for row in rows.values():
        assert row["at"][256].value == 0.5
        assert row["at"][10].low <= row["at"][10].value <= row["at"][10].high
    exact = [bench.queries_to_optimum(ready.problem, r, ready.front) for r in runs if r["strategy"] == "random"]
    for r, n in zip(runs[:6], exact, strict=True):
        assert r["trials"][int(n) - 1]["metrics"]["error"] == 0.5
        assert all(t["metrics"]["error"] > 0.5 for t in r["trials"][:int(n) - 1])


def test_a_search_may_end_with_the_optimum_and_is_compared_as_if_it_went_on(folder: Path) -> None:
    whole, short = task(folder), task(folder, until_optimum=True)
    names = ["random", "local"]
    runs = {aim: bench.run(aim, names, 256, range(6), jobs=2) for aim in (whole, short)}
    for full, cut in zip(runs[whole], runs[short], strict=True):
        n = bench.queries_to_optimum(bench.prepare(whole).problem, full, bench.prepare(whole).front)
        assert (len(cut["trials"]), cut["stopped"]) == (n, bench.FOUND)
        assert [t["metrics"] for t in cut["trials"]] == [t["metrics"] for t in full["trials"][:int(n)]]
    found = [compare([parse(bench.record(aim, names, 256, runs[aim], 1.0), "here")]) for aim in (whole, short)]
    assert found[0].to_json()["analyses"] == found[1].to_json()["analyses"]
    assert "--until-optimum" in bench.command(short, names, 256, range(6))
    with pytest.raises(InputError, match="no single optimum"):
        bench.prepare(task(folder, objectives=("error", "cost"), until_optimum=True))


def test_hypervolume_reaches_that_of_the_true_front(folder: Path) -> None:
    aim = task(folder, objectives=("error", "cost"), constraints=(Constraint("cost", 40.0),))
    ready = bench.prepare(aim)
    (record,) = bench.run(aim, ["random"], 256, [0], jobs=1)
    quality = bench.quality(ready.problem, record, ready.front)
    assert (np.diff(quality) >= 0).all()
    assert quality[-1] == pytest.approx(1.0)
    assert (ready.front[:, 1] <= 40).all()


def test_what_a_table_does_not_know_of_a_bound_does_not_meet_it(tmp_path: Path) -> None:
    """Only half of the networks have an energy, the better half none; and some networks are not in the table at all."""
    archs = np.array(list(np.ndindex(4, 4, 4, 4)))
    error = (archs != 3).sum(axis=1) + 0.5
    energy = np.where(archs[:, 0] == 3, np.nan, archs.sum(axis=1))
    np.savez(tmp_path / "half.npz", space=json.dumps(space.to_json(SPACE)), archs=archs, error=error, energy=energy)
    aim = bench.Task("half", str(tmp_path), ("error",), constraints=(Constraint("energy", 100.0),), until_optimum=True)
    ready = bench.prepare(aim)
    assert ready.front.tolist() == [[1.5]]
    found = bench.one(aim, "local", 0, 256)
    assert found["stopped"] == bench.FOUND
    assert bench.values(ready.problem, found).min() == 1.5
    assert all(np.isinf(v) == (t["architecture"]["c0"] == "d") for v, t in
               zip(bench.values(ready.problem, found)[:, 0], found["trials"], strict=True))
    np.savez(tmp_path / "part.npz", space=json.dumps(space.to_json(SPACE)), archs=archs[:100], error=error[:100])
    part = bench.one(bench.Task("part", str(tmp_path), ("error",)), "random", 0, 256)
    assert len(part["trials"]) == 256 and sum(bool(t["metrics"]) for t in part["trials"]) == 100


def test_the_command_line_that_repeats_a_run_has_its_bounds(folder: Path) -> None:
    words = bench.command(task(folder, constraints=(Constraint("cost", 1073466.25),)), ["random"], 5, [0])
    assert "'cost<=1073466.25'" in words


def test_bad_input(folder: Path) -> None:
    def refused(match: str, **more: Any) -> None:
        with pytest.raises(InputError, match=match):
            bench.run(task(folder, **more), ["random"], 5, [0])

    refused("did you mean 'error'", objectives=("eror",))
    refused("did you mean 'cost'", report=("csot",))
    refused("relax it", constraints=(Constraint("cost", -1.0),))
    refused("name what to optimise", objectives=())
    refused("objective 'error' is named twice", objectives=("error", "error"))
    refused("reported column 'cost' is named twice", report=("cost", "cost"))
    with pytest.raises(InputError, match="strategy 'random' is named twice"):
        bench.run(task(folder), ["random", "random"], 5, range(2))
    with pytest.raises(InputError, match="did you mean 'toy'"):
        bench.prepare(bench.Task("toi", str(folder), ("error",)))
    with pytest.raises(InputError, match="has its own objectives"):
        bench.prepare(bench.Task("lotz", str(folder), ("error",)))
    with pytest.raises(InputError, match="one seed is no comparison"):
        bench.run(task(folder), ["local", "random"], 5, [0])
    with pytest.raises(InputError, match="did you mean 'local'"):
        bench.run(task(folder), ["locl"], 5, [0])


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "runs.json"
    given = ["bench", "toy", "--tables", str(folder), "--objective", "noisy", "--report", "error", "--queries", "300",
             "--seeds", "2"]
    assert cli.main([*given, "--strategy", "random,rea", "--json", str(file), "--jobs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "random" in shown
    assert "rea" in shown
    found = json.loads(file.read_text())
    assert [(r["strategy"], r["seed"], len(r["trials"])) for r in found["runs"]] == [
        ("random", 0, 256), ("random", 1, 256), ("rea", 0, 256), ("rea", 1, 256)]
    assert found["runs"][0]["stopped"] == "the space is exhausted"
    assert cli.main(["bench", "toy", "--tables", str(folder), "--objective", "noisy", "--constraint", "noisy"]) == 2
    assert "not an upper bound on a column" in capsys.readouterr().err
    assert cli.main([*given, "--json", str(tmp_path / "no" / "runs.json")]) == 2
    assert "does not exist: make it" in capsys.readouterr().err
