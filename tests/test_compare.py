"""Recorded runs as a comparison: what is read, what is refused, what is measured, and what stands on the page."""

from __future__ import annotations

import copy
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import pytest
from rich.console import Console

from nasopt import bench, cli, space
from nasopt.analysis import stats
from nasopt.compare import compare, merge, parse, read
from nasopt.errors import InputError
from nasopt.report import compare as page
from nasopt.report import terminal
from nasopt.space import Choice, Product
from nasopt.trial import Constraint

SPACE = Product("", [Choice(f"c{k}", "abcd") for k in range(4)])
QUERIES = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tables of 256 architectures: the accuracy is the number of 3s and more, the cost rises with every index."""
    where = tmp_path_factory.mktemp("tables")
    archs = np.array(list(np.ndindex(4, 4, 4, 4)))
    for k in range(2):
        np.savez(where / f"toy{k}.npz", space=json.dumps(space.to_json(SPACE)), archs=archs, cost=archs.sum(axis=1) ** 2.0,
                 accuracy=90 + (archs == 3).sum(axis=1) + archs[:, k] / 10,
                 about=json.dumps({"accuracy": {"unit": "%", "minimise": False}, "cost": {"unit": "ms"}}))
    return where


def made(folder: Path, strategies: Mapping[str, str], seeds: Sequence[int], table: str = "toy0", first: int = 0,
         objectives: tuple[str, ...] = ("accuracy",), constraints: tuple[Constraint, ...] = ()) -> dict[str, Any]:
    """A record of runs: name -> the strategy of the catalogue that makes them; every one with its own seeds from ``first`` on."""
    task = bench.Task(table, str(folder), objectives, (), constraints)
    runs = [{**bench.one(task, real, first + s + 100 * k, QUERIES), "strategy": name, "seed": s}
            for k, (name, real) in enumerate(strategies.items()) for s in seeds]
    return bench.record(task, list(strategies), QUERIES, runs, 1.5)


@pytest.fixture(scope="module")
def single(folder: Path) -> dict[str, Any]:
    return made(folder, {"random": "random", "local": "local", "rea": "rea"}, range(6))


@pytest.fixture(scope="module")
def double(folder: Path) -> dict[str, Any]:
    return made(folder, {"random": "random", "local": "local"}, range(6), objectives=("accuracy", "cost"))


# -------------------------------------------------------------------------------------------------------------- measures
def test_a_record_suffices_for_the_measures_of_one_objective(single: dict[str, Any]) -> None:
    record = json.loads(json.dumps(single))
    found = compare([parse(record, "here")])
    scores = {a.measure.key: a.scores["toy0: accuracy"] for a in found.analyses}
    assert list(scores) == ["anytime", "final", "queries"]
    for name in ("random", "local", "rea"):
        for place, run in enumerate([r for r in single["runs"] if r["strategy"] == name]):
            regret = 94.3 - np.maximum.accumulate([t["metrics"]["accuracy"] for t in run["trials"]])
            assert scores["anytime"][name][place] == pytest.approx(regret.mean())
            assert scores["final"][name][place] == pytest.approx(regret[-1], abs=1e-12)
            hits = np.flatnonzero(regret < 1e-9)
            assert scores["queries"][name][place] == (hits[0] + 1 if len(hits) else QUERIES + 1)
    (subject,) = found.subjects
    assert subject.bound == pytest.approx(94.3)
    assert subject.performance.label == "best accuracy so far"
    assert subject.courses["local"].value[-1] <= 94.3 + 1e-9
    assert np.all(np.diff(subject.courses["local"].value) > -1e-9), "an accuracy rises"


def test_the_measures_of_several_objectives(double: dict[str, Any]) -> None:
    record = parse(double, "here")
    found = compare([record])
    scores = {a.measure.key: (a.measure, a.scores[record.name]) for a in found.analyses}
    assert list(scores) == ["anytime", "final", "igd_plus", "epsilon"]
    assert [m.minimise for m, _ in scores.values()] == [False, False, True, True]
    front = record.front
    low, span = front.min(axis=0), np.ptp(front, axis=0)
    for name, runs in record.runs.items():
        for seed, run in runs.items():
            points = (bench.values(record.problem, run) - low) / span
            true = (front - low) / span
            beyond = np.maximum(points[None] - true[:, None], 0)
            assert scores["igd_plus"][1][name][seed] == pytest.approx(np.sqrt((beyond**2).sum(axis=2)).min(axis=1).mean())
            assert scores["epsilon"][1][name][seed] == pytest.approx((points[None] - true[:, None]).max(axis=2).min(axis=1).max())
            share = moocore.hypervolume(points, ref=[1.1, 1.1]) / moocore.hypervolume(true, ref=[1.1, 1.1])
            assert scores["final"][1][name][seed] == pytest.approx(share)
            assert scores["anytime"][1][name][seed] == pytest.approx(bench.quality(record.problem, run, front).mean())


def test_attainment_by_its_definition(double: dict[str, Any]) -> None:
    record = parse(double, "here")
    (subject,) = compare([record]).subjects
    assert subject.attained is not None
    assert subject.attained.objectives == ("accuracy (%)", "cost (ms)")
    values = [bench.values(record.problem, r) for r in record.runs["random"].values()]
    for name, needed in (("25 % of the runs", 2), ("50 % of the runs", 3), ("75 % of the runs", 5)):
        for accuracy, cost in subject.attained.surfaces["random"][name]:
            reached = sum(bool(((v[:, 0] <= -accuracy) & (v[:, 1] <= cost)).any()) for v in values)
            assert reached >= needed, "of 6 runs, rounded up"


def test_a_run_that_found_nothing_counts_as_the_worst(folder: Path) -> None:
    tight = (Constraint("cost", 4.0),)
    one = parse(made(folder, {"random": "random", "local": "local"}, range(6), constraints=tight), "here")
    curves = [bench.quality(one.problem, r, one.front) for own in one.runs.values() for r in own.values()]
    assert not all(np.isfinite(c[0]) for c in curves), "the example holds runs that begin infeasibly"
    worst = max(c[np.isfinite(c)].max() for c in curves if np.isfinite(c).any())
    found = compare([one])
    for name, own in one.runs.items():
        for seed, run in own.items():
            curve = bench.quality(one.problem, run, one.front)
            expected = np.where(np.isfinite(curve), curve, worst).mean() - one.front[0, 0]
            assert found.analyses[0].scores[one.name][name][seed] == pytest.approx(expected)
    several = compare([parse(made(folder, {"random": "random", "local": "local"}, range(2), objectives=("accuracy", "cost"),
                                  constraints=(Constraint("cost", 0.5),)), "here")])
    (scores,) = several.analyses[2].scores.values()
    assert scores["random"].tolist() == pytest.approx([np.sqrt(2) / 10] * 2), "the distance of the reference point from the front"
    assert several.subjects[0].attained is not None
    assert several.subjects[0].attained.surfaces["random"]["25 % of the runs"] == []


def test_an_exhausted_space_keeps_its_last_value(folder: Path) -> None:
    task = bench.Task("toy0", str(folder), ("accuracy",))
    runs = [bench.one(task, "random", seed, 300) for seed in range(2)]
    assert len(runs[0]["trials"]) == 256
    found = compare([parse(bench.record(task, ["random"], 300, runs, 1.0), "here")])
    assert found.subjects[0].courses["random"].queries[-1] == 300
    assert found.analyses[1].scores["toy0: accuracy"]["random"] == pytest.approx([0, 0], abs=1e-12)


# --------------------------------------------------------------------------------------------------------- many problems
def test_files_of_one_problem_are_joined_and_of_several_compared(folder: Path, single: dict[str, Any]) -> None:
    apart = [{**single, "runs": [r for r in single["runs"] if r["strategy"] == name]} for name in ("random", "local", "rea")]
    (joined,) = merge([parse(a, f"file {k}") for k, a in enumerate(apart)])
    assert {n: sorted(own) for n, own in joined.runs.items()} == {n: list(range(6)) for n in ("random", "local", "rea")}
    assert joined.origin["seconds"] == 4.5
    other = made(folder, {"random": "random", "local": "local", "rea": "rea"}, range(6), "toy1")
    found = compare([parse(single, "a"), parse(other, "b")])
    assert [s.name for s in found.subjects] == ["toy0: accuracy", "toy1: accuracy"]
    assert {p.problem for p in found.analyses[0].pairs} == {"toy0: accuracy", "toy1: accuracy"}
    assert found.analyses[0].measure.unit == "%"
    assert set(found.analyses[0].iqm) == {"random", "local", "rea"}


def test_identical_strategies_are_told_apart_in_few_cases(folder: Path) -> None:
    """The whole way from runs to claims, 40 times; the measure chosen in advance may claim something in 5 % of the cases (more
    than 6 of 40 have a probability of .3 %)."""
    task = bench.Task("toy0", str(folder), ("accuracy",))
    pool = [bench.one(task, "random", seed, 10) for seed in range(480)]
    claims = 0
    for k in range(40):
        own = pool[12 * k:12 * (k + 1)]
        runs = [{**r, "strategy": "ab"[j // 6], "seed": j % 6} for j, r in enumerate(own)]
        claims += bool(compare([parse(bench.record(task, ["a", "b"], 10, runs, 1.0), "here")]).analyses[0].claims)
    assert claims <= 6


# -------------------------------------------------------------------------------------------------------------- refusals
def altered(record: Mapping[str, Any], **parts: Any) -> dict[str, Any]:
    return {**copy.deepcopy(dict(record)), **parts}


def refused(match: str, *records: Any, control: str = "", rope: float | None = None) -> None:
    with pytest.raises(InputError, match=match) as caught:
        compare([parse(r, f"file {k}") for k, r in enumerate(records)], control, rope)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_bad_records(single: dict[str, Any], double: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    runs = single["runs"]
    refused("'local' on toy0: accuracy are not paired .seed 3 is missing",
            altered(single, runs=[r for r in runs if (r["strategy"], r["seed"]) != ("local", 3)]))
    refused("one seed of toy0: accuracy is no comparison", altered(single, runs=[r for r in runs if r["seed"] == 0]))
    refused("two runs of 'random' with seed 0", altered(single, runs=[*runs, runs[0]]))
    refused("both hold a run of 'random' with seed 0", single, single)
    refused("24 queries instead of 30: compare runs of one budget", altered(single, queries=30))
    refused("24 queries instead of 20: compare runs of one budget", altered(single, queries=20))
    shorter = [{**r, "trials": r["trials"][:20]} for r in runs if r["strategy"] == "rea"]
    refused("of 24 and of 20 queries", altered(single, runs=runs[:6]), altered(single, queries=20, runs=shorter))
    lost = {**double["runs"][-1], "trials": [{**t, "metrics": {}} for t in double["runs"][-1]["trials"]]}
    assert compare([parse(altered(double, runs=[*double["runs"][:-1], lost]), "x")]), "one that found nothing is no other problem"
    refused("never measured 'cost', so it is of another problem",
            altered(double, runs=[*double["runs"], {**runs[-1], "seed": 7}]))
    refused("never measured 'accuracy'",
            altered(single, runs=[*runs, {**runs[0], "seed": 99, "trials": [], "stopped": "the space is exhausted"}]))
    refused("call different problems 'toy0: accuracy'", altered(single, runs=runs[:6]),
            altered(single, front=[[-95.0]], runs=runs[6:]))
    refused("of one objective and of several", single, double)
    refused("unknown control 'locl': did you mean 'local'", single, control="locl")
    refused("--rope 0 is no half-width", single, rope=0.0)
    refused("holds no runs", altered(single, runs=[]))
    for damaged in ({}, [], 3, {**single, "runs": [{"strategy": "a"}]}, {**single, "front": "x"}, {**single, "problem": {}},
                    altered(single, runs=[{**runs[0], "trials": [{"fidelity": 1.0, "metrics": {"accuracy": "high"}}]}]),
                    altered(single, runs=[{**runs[0], "trials": [{"metrics": t["metrics"]} for t in runs[0]["trials"]]}])):
        refused("is no record of runs, or is damaged", damaged)
    with pytest.raises(InputError, match="at least one record"):
        compare([])
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none.json")
    half = tmp_path / "half.json"
    half.write_text(json.dumps(single)[:500])
    with pytest.raises(InputError, match="is damaged or no JSON"):
        read(half)
    half.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is damaged or no JSON"):
        read(half)


# ------------------------------------------------------------------------------------------------------------------ page
class Reader(HTMLParser):
    """Collects a page's text outside scripts and styles, and the addresses it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.fetched, self.inside = "", [], ""
        self.panels: list[dict[str, Any]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = "figures" if ("id", "figures") in attrs else tag
        self.fetched += [v for k, v in attrs if k in ("src", "href") and v]

    def handle_data(self, data: str) -> None:
        if self.inside == "figures" and data.strip():
            self.panels = json.loads(data)
        elif self.inside not in ("script", "style"):
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def written(*records: Mapping[str, Any], control: str = "") -> Reader:
    reader = Reader()
    reader.feed(page.render(compare([parse(r, f"file {k}") for k, r in enumerate(records)], control)))
    return reader


def test_the_page_of_one_objective(single: dict[str, Any]) -> None:
    found = compare([parse(single, "here")])
    shown = written(single)
    assert shown.fetched == []
    (panel,) = shown.panels
    lines = {t["name"]: t for t in panel["data"]}
    assert set(lines) >= {"random", "local", "rea", "random, 95 %", "best possible"}
    assert lines["local"]["line"]["color"] != lines["random"]["line"]["color"]
    assert lines["best possible"]["y"] == pytest.approx([94.3, 94.3])
    for analysis in found.analyses:
        for pair in analysis.pairs:
            assert f"{pair.shift:.3g} [{pair.low:.3g}, {pair.high:.3g}]" in shown.text
    for sentence in found.analyses[0].findings():
        assert sentence in shown.text
    assert "Random search as a baseline" in shown.text
    assert "6 seeds, fewer than the 20 that a claim should have" in shown.text
    assert re.search(r"Ablation studies\s*not known", shown.text)
    assert "nasopt bench toy0 --strategy random,local,rea --queries 24 --seeds 6 --objective accuracy" in shown.text


def test_the_page_of_two_objectives_and_many_problems(folder: Path, double: dict[str, Any]) -> None:
    shown = written(double)
    assert [p["name"] for p in shown.panels] == ["courses", "attained-0"]
    assert {t["name"] for t in shown.panels[1]["data"]} == {"random", "local", "true front"}
    assert "IGD+" in shown.text
    many = [made(folder, {"random": "random", "local": "local", "rea": "rea"}, range(6), "toy0", 1000 * k,
                 constraints=(Constraint("cost", 100.0 + k),)) for k in range(6)]
    shown = written(*many)
    assert "Friedman's ranks of the medians of 6 problems" in shown.text
    assert "critical difference" in shown.text
    assert "describes only" in shown.text
    (panel,) = shown.panels
    assert [len(m["options"]) for m in panel["menus"]] == [6, 2]
    assert all(len(o["traces"]["x"]) == len(panel["data"]) for o in panel["menus"][0]["options"])
    assert "against rea" in written(*many, control="rea").text


def test_every_number_of_the_page_stands_under_its_strategy(folder: Path) -> None:
    """Whatever the order in which records name their strategies."""
    first = made(folder, {"random": "random", "local": "local"}, range(6))
    second = made(folder, {"local": "local", "random": "random"}, range(6), "toy1")
    found = compare([parse(first, "a"), parse(second, "b")])
    for analysis in found.analyses:
        shown = page._analysis(analysis)
        assert shown["strategies"] == ["random", "local"]
        for problem, row in shown["typical"]:
            assert row == [page.ranged(analysis.typical[problem][s]) for s in ("random", "local")]


def test_few_seeds_claim_nothing_anywhere(folder: Path) -> None:
    record = made(folder, {"random": "random", "local": "local"}, range(5))
    shown = written(record)
    assert "significant" not in shown.text
    assert "5 seeds decide nothing: run at least 6" in shown.text
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal.tables(compare([parse(record, "here")])))
    said = console.export_text()
    assert "significant" not in said
    assert "not judged" in said


def test_what_a_record_does_not_tell_is_not_known(single: dict[str, Any]) -> None:
    bare = altered(single)
    for key in ("machine", "versions", "seconds", "command", "synthetic", "reported"):
        del bare[key]
    found = compare([parse(bare, "here")])
    answers = dict(found.checklist)
    for question in ("Code of the search methods", "Confounding factors: hardware, versions", "Tabular or surrogate benchmarks"):
        assert answers[question].startswith("not known")
    assert "of the searches not known" in answers["Time of the whole method, end to end"]
    assert dict(found.origin) == dict.fromkeys(("Machine", "Versions", "Time of all runs", "Commands"), "not known")
    known = dict(compare([parse(single, "here")]).checklist)
    assert known["Tabular or surrogate benchmarks"] == "yes"
    assert known["Confounding factors: hardware, versions"] == "the same for all runs"
    elsewhere = altered(single, machine={"cpu": "another"}, runs=single["runs"][:6])
    mixed = dict(compare([parse(altered(single, runs=single["runs"][6:]), "a"), parse(elsewhere, "b")]).checklist)
    assert mixed["Confounding factors: hardware, versions"].startswith("not known")
    no_random = dict(compare([parse(altered(single, runs=single["runs"][6:]), "a")]).checklist)
    assert no_random["Random search as a baseline"].startswith("no")


def test_names_are_escaped(single: dict[str, Any]) -> None:
    evil = "<script>alert(1)</script>"
    named = altered(single, runs=[{**r, "strategy": r["strategy"] + evil} for r in single["runs"]])
    assert evil not in page.render(compare([parse(named, "x")]))


# --------------------------------------------------------------------------------------------------------- command line
def test_the_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, html, numbers = tmp_path / "runs.json", tmp_path / "bench.html", tmp_path / "numbers.json"
    given = ["bench", "toy0", "--tables", str(folder), "--objective", "accuracy", "--queries", "12", "--jobs", "1"]
    assert cli.main([*given, "--seeds", "6", "--strategy", "random,local", "--json", str(runs), "--html", str(html)]) == 0
    out = capsys.readouterr().out
    assert f"report: {html}" in out
    assert "regret, mean over all queries" in out
    assert "By regret, mean over all queries" in out
    assert html.read_text().startswith("<!doctype html>")
    assert cli.main(["compare", str(runs), "--json", str(numbers), "--html", str(tmp_path / "again.html")]) == 0
    assert "shift [95 %]" in capsys.readouterr().out
    found = json.loads(numbers.read_text())
    assert found["strategies"] == ["random", "local"]
    assert found["analyses"][0]["pairs"][0]["n"] == 6
    assert len(found["analyses"][0]["scores"]["toy0: accuracy"]["random"]) == 6
    assert (tmp_path / "again.html").read_text() == html.read_text()


def test_the_commands_refuse_bad_input(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(*argv: str) -> str:
        assert cli.main(argv) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        return err

    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    assert "is no record of runs" in refusal("compare", str(bad))
    assert "does not exist: make it" in refusal("compare", str(bad), "--html", str(tmp_path / "no" / "x.html"))
    assert "is a folder: give the name of a file in it" in refusal("compare", str(bad), "--json", str(tmp_path))
    with monkeypatch.context() as locked:
        locked.setattr(os, "access", lambda *given: False)
        assert "may not be written: change its permissions" in refusal("certify", "--json", str(tmp_path / "x.json"))
    given = ["bench", "toy0", "--tables", str(folder), "--objective", "accuracy", "--queries", "5", "--seeds", "1"]
    assert "leave out --html" in refusal(*given, "--html", str(tmp_path / "x.html"))
    assert not (tmp_path / "x.html").exists()
    assert "bench complexity takes no --seeds" in refusal("bench", "complexity", "--seeds", "3")


def test_the_region_of_practical_equivalence(single: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("baycomp", reason="baycomp is not installed")
    found = compare([parse(single, "here")], "random", rope=0.2)
    assert [(e.measure.key, e.a, e.b) for e in found.equivalences] == [
        (m, a, "random") for m in ("anytime", "final") for a in ("local", "rea")]
    for e in found.equivalences:
        assert e.better + e.equivalent + e.worse == pytest.approx(1)
        pair = next(p for a in found.analyses if a.measure == e.measure for p in a.pairs if p.a == e.a)
        if abs(pair.shift) > 2 * e.rope:
            assert (e.better > e.worse) == (pair.shift < 0), "a regret: less is better"
    (tmp_path / "r.json").write_text(json.dumps(single))
    assert cli.main(["compare", str(tmp_path / "r.json"), "--rope", "0.2"]) == 0
    assert "region of practical equivalence ±0.2" in capsys.readouterr().out


def test_the_summary_is_the_iqm_of_the_page(single: dict[str, Any]) -> None:
    found = compare([parse(single, "here")])
    typical = found.analyses[1].typical["toy0: accuracy"]["local"]
    assert typical.value == pytest.approx(stats.iqm(found.analyses[1].scores["toy0: accuracy"]["local"]))
    assert found.subjects[0].courses["local"].value[-1] == pytest.approx(94.3 - typical.value)
