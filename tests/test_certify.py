"""The certificate of runs of a gradient strategy: command, record and report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasopt.analysis.convergence import certificate
from nasopt.cli import main
from nasopt.nets import choices
from nasopt.pipeline import certify, phases, relaxed
from nasopt.pipeline.folder import Folder
from nasopt.pipeline.ledger import Ledger
from nasopt.pipeline.phases import Phases
from nasopt.pipeline.progress import Display
from nasopt.pipeline.setup import Config, Setup, prepare
from nasopt.report import figures, html
from nasopt.run.storage import Sqlite
from nasopt.strategies.gradient import RECIPES, Gradient
from nasopt.strategies.hybrid import Portfolio
from nasopt.strategies.watch import recording
from nasopt.tasks.data import Dataset
from nasopt.trial import Objective


class Net(nn.Module):
    """Two choices, few weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = choices.OneOf({"three": nn.Conv2d(1, 2, 3, padding=1), "one": nn.Conv2d(1, 2, 1)})
        self.act = choices.OneOf({"relu": nn.ReLU(), "tanh": nn.Tanh(), "skip": nn.Identity()})
        self.last = nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.stem(x))).amax((2, 3))  # type: ignore[no-any-return]


def data() -> Dataset:
    x = np.random.default_rng(0).integers(0, 120, (90, 6, 6))
    y = np.arange(90) % 3
    for k, label in enumerate(y):
        x[k, 2 * label:2 * label + 2] += 100
    return Dataset(x.astype(np.uint8), y, ("a", "b", "c"), "NHW", "bars", {})


def prepared(config: Config) -> Setup:
    """Without the network's trial export, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nasopt.pipeline.setup._check_output", lambda setup: None)
        return prepare(config, data(), Net())


def written(path: Path, seed: int = 0, **changes: Any) -> Path:
    """A run folder whose gradient search is over, as `nasopt search` leaves it."""
    torch.manual_seed(0)
    config = replace(Config("bars", "own", (Objective("error"),), strategy="darts1", seed=seed), **changes)
    path.mkdir()
    with closing(Sqlite(path / "study.db")) as storage:
        Ledger(storage).store("config", config.to_json())
        Ledger(storage).store("data", "fingerprint")
        if config.strategy == "darts1":
            setup = prepared(config)
            net = relaxed.network(setup, "darts1", None)
            relaxed.strategy(setup, "darts1", net, relaxed.Plan(20, 0.1, 5, 0), 1, storage).gradient.finish()
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("runs")
    return written(root / "a"), written(root / "b", 1)


def words(capsys: pytest.CaptureFixture[str], code: int, *command: object) -> str:
    assert main(["certify", *map(str, command)]) == code
    out, err = capsys.readouterr()
    return err if code else out


# -------------------------------------------------------------------------------------------------------------- command
def test_the_command_prints_what_one_run_allows(runs: tuple[Path, Path], tmp_path: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    text = words(capsys, 0, runs[0], "--json", tmp_path / "c.json")
    for part in ("darts1 on bars, space own", "regime: stationarity only (1 seed, 20 slices)", "NOT MET: the updates are",
                 "NOT MET: μ_F > 0 (eigenvalues of ∇²F were not measured)",
                 "No interval of the rate: 1 of 1 seeds have a slope", "mean ‖b‖², estimated: ",
                 "Seed 0:\n",
                 "Extreme eigenvalues of ∇²_α L_val after slice 20",
                 "The inner residual ‖∇_w L_train‖ went from", "% of what it was after"):
        assert part in text, part
    assert "α*" not in text and "onverge" not in text, "neither the naive bound nor a limit"
    assert "μ_F =" not in text, "what is measured is not ∇²F"
    found = json.loads((tmp_path / "c.json").read_text())
    history = certify.read(runs[0]).history
    assert found["certificate"] == json.loads(json.dumps(certificate([recording(history.slices)], None).to_json()))
    (run,) = found["runs"]
    assert run["seed"] == 0 and run["strategy"] == "darts1" and len(run["slices"]) == 20
    looks = [s["bias"] is not None for s in run["slices"]]
    assert looks == [k % 5 == 0 for k in range(1, 21)]
    assert np.array(run["shares"][0]).shape == (20, 1, 2) and np.array(run["shares"][0]).sum(2) == pytest.approx(1)
    last = history.slices[-1].watched
    assert last is not None and last.extremes is not None
    assert run["slices"][-1]["gradient"] == pytest.approx(np.linalg.norm(last.gradient))
    shown = [s["bias"] for s in run["slices"] if s["bias"] is not None]
    assert f"went from {shown[0]:.4g} to {shown[-1]:.4g} (4 looks)" in text and "may be too large" in text
    assert f"{last.extremes.low:.4g} ± {last.extremes.low_residual:.2g}" in text


def test_several_seeds_give_an_interval(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    text = words(capsys, 0, *runs)
    found = certify.certify(list(runs)).certificate
    mean = np.mean([s for s in found.slopes if s is not None])
    assert found.interval is not None and found.interval[0] < mean < found.interval[1]
    assert "(2 seeds, 20 slices)" in text and "a slice (95 %, over seeds)" in text and "Seed 1:\n" in text
    assert found.contraction is None and "α*" not in text


def test_what_is_no_gradient_run_is_refused(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no run" in words(capsys, 2, tmp_path / "nowhere")
    (tmp_path / "study.db").write_text("no data base, but a text that is as long as one may be" * 9)
    assert "error:" in words(capsys, 2, tmp_path)
    with closing(Sqlite((tmp_path / "empty").with_suffix(".db"))):
        pass
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "empty.db").rename(empty / "study.db")
    assert "interrupted before it began" in words(capsys, 2, empty)
    assert "searched by hybrid, which follows no gradient" in words(capsys, 2, written(tmp_path / "h", strategy="hybrid"))
    one_for_all = written(tmp_path / "p", strategy="preference")
    assert "searched by preference, which has no one α to certify" in words(capsys, 2, one_for_all)
    none = written(tmp_path / "g", strategy="gdas")
    assert "0 slices" in (told := words(capsys, 2, none)) and "nasopt resume" in told
    with closing(Sqlite(none / "study.db")) as storage:
        Ledger(storage).store("stopped search", "the budget is spent")
    assert "a larger --budget" in words(capsys, 2, none)
    assert "one seed (0, 0)" in words(capsys, 2, runs[0], runs[0])
    other = written(tmp_path / "c", 2, seconds=99.0)
    assert "differ in their budget" in words(capsys, 2, runs[0], other)
    assert "certify RUN takes no --seed" in words(capsys, 2, runs[0], "--seed", 3)
    assert "does not exist" in words(capsys, 2, runs[0], "--json", "/no/such/folder/c.json")


def test_runs_of_other_data_spaces_or_networks_are_not_mixed(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = map(certify.read, runs)
    changes = {"data": replace(two, data="other"), "space": replace(two, config=replace(two.config, space="cells")),
               "strategy": replace(two, config=replace(two.config, strategy="gdas")),
               "network": replace(two, history=replace(two.history, groups=two.history.groups[:1])),
               "settings": replace(two, config=replace(two.config, trials=7))}
    for what, changed in changes.items():
        monkeypatch.setattr(certify, "read", lambda path, changed=changed: one if path == runs[0] else changed)
        with pytest.raises(certify.InputError, match=f"differ in their {what}"):
            certify.certify(list(runs))
    otherwise = replace(two, config=replace(two.config, data="", given=True, image_size=(8, 8)))
    monkeypatch.setattr(certify, "read", lambda path: one if path == runs[0] else otherwise)
    assert certify.certify(list(runs)).runs == (one, otherwise), "the same data, given in another way"


# ------------------------------------------------------------------------------------------------------------ in a run
@pytest.mark.parametrize(("seconds", "wanted"), [(20.0, 1), (19.0, 2), (4.0, 5), (1.0, 15), (0.1, 15)])
def test_a_search_is_watched_as_often_as_time_allows(seconds: float, wanted: int) -> None:
    assert relaxed.every(1.0, seconds) == wanted


@pytest.mark.parametrize(("trials", "wanted"), [(None, 2), (50, 2), (10, 2), (7, 3), (1, 20)])
def test_all_slices_are_trained_before_the_last_trial(trials: int | None, wanted: int) -> None:
    assert relaxed.stride(20.0, 1.0, trials) == wanted


def test_steps_are_timed_as_often_with_a_move_as_they_have_one() -> None:
    for name, recipe in RECIPES.items():
        timed = range(1, 1 + relaxed.TIMED)
        moves = [k for k in timed if k % recipe.method.every == 0 and k / (1 + relaxed.TIMED) >= recipe.method.still]
        assert len(moves) / len(timed) >= (1 - recipe.method.still) / recipe.method.every, name


@pytest.mark.parametrize(("seconds", "wanted"), [(1e6, (1000, 3000.0)), (1000.0, (100, 300.0)), (1.0, (64, 192.0))])
def test_trying_options_has_its_share_of_the_time(seconds: float, wanted: tuple[int, float],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """30 options, of which an image takes a tenth of a second each."""
    clock, tenths = [0.0], [torch.zeros(6, 5)]
    monkeypatch.setattr(relaxed.time, "perf_counter", lambda: clock[0])

    def loss(limit: int) -> None:
        clock[0] += 0.1 * limit

    search = SimpleNamespace(method=RECIPES["nasopt"].method, validation=range(1000), alphas=tenths, validation_loss=loss)
    images, trying = relaxed._trial(search, seconds)  # type: ignore[arg-type]
    assert images == wanted[0] and trying == pytest.approx(wanted[1])
    search.method = RECIPES["darts1"].method
    assert relaxed._trial(search, seconds) == (0, 0.0)  # type: ignore[arg-type]


def test_the_seed_decides_the_weights_of_a_network_with_partial_channels() -> None:
    setup = prepared(Config("bars", "nb201", (Objective("error"),), strategy="pcdarts", seconds=20.0))
    one, two = (torch.cat([p.flatten() for p in relaxed.network(setup, "pcdarts", None).parameters()]) for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["darts1", "hybrid-gradient"])
def test_a_run_plans_its_watching_tells_of_alarms_and_reports_them(name: str, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config("bars", "own", (Objective("error"),), strategy=name, seconds=20.0)
    torch.manual_seed(0)
    setup, folder, lines = prepared(config), Folder(tmp_path), list[str]()
    planned = relaxed.plan(setup, name, 1000.0)
    assert planned.steps >= 20 and planned.watch in (1, 2, 4, 5, 10, relaxed.ONCE) and (planned.tried > 0) == (name != "darts1")
    monkeypatch.setattr(Phases, "trust", lambda self: {"fallback": False})
    monkeypatch.setattr(Phases, "_train_supernet", lambda self: {"error": "not now"})
    monkeypatch.setattr(Phases, "_evaluation", lambda self: 0.01)
    monkeypatch.setattr(Phases, "estimator", lambda self: lambda ask: {"error": 0.1 + 0.1 * ask.number})
    monkeypatch.setattr(Phases, "_narrate", lambda *given: lambda progress: None)
    monkeypatch.setattr(relaxed, "plan", lambda *given: relaxed.Plan(20, 0.1, 10, 64))
    monkeypatch.setattr(phases, "SHARES", {**phases.SHARES, "search": 0.5})
    monkeypatch.setattr("nasopt.strategies.gradient.agreement", lambda *given: -0.5)
    with closing(Sqlite(folder.study)) as storage:
        run = Phases(setup, storage, folder, Display(lines.append, False))
        run.search(name, storage)
        strategy = run._strategy(name, "search", [])
        assert isinstance(strategy, relaxed.Relaxed)
        member = strategy.strategy.members["nasopt"] if isinstance(strategy.strategy, Portfolio) else strategy.strategy
        assert isinstance(member, Gradient) and member.guard and member.watch == 10 and member is strategy.gradient
        found = certify.report(storage, name)
        assert certify.report(storage, "hybrid") is None and certify.report(storage, "gdas") is None
    assert [line for line in lines if "correlation" in line and line.startswith("Alarm after slice")]
    assert found is not None and found["alarms"][0]["name"] == "ranks"
    json.dumps(found, allow_nan=False)


def test_a_search_that_ended_early_has_no_certificate_and_says_why(runs: tuple[Path, Path]) -> None:
    history = certify.read(runs[0]).history

    def said(n: int) -> str:
        with pytest.MonkeyPatch.context() as patch, closing(Sqlite(runs[0] / "study.db", readonly=True)) as storage:
            patch.setattr(certify, "kept", lambda *given: replace(history, slices=history.slices[:n]))
            found = certify.report(storage, "darts1")
        return "" if found is None else found["certificate"][0]

    assert said(4) == "No certificate: the search had time for 4 slices, and it takes 10."
    assert said(20).startswith("regime: ")


# --------------------------------------------------------------------------------------------------------------- report
@pytest.fixture(scope="module")
def shown(runs: tuple[Path, Path]) -> dict[str, Any]:
    with closing(Sqlite(runs[0] / "study.db", readonly=True)) as storage:
        found = certify.report(storage, "darts1")
    assert found is not None
    return json.loads(json.dumps(found, allow_nan=False))  # type: ignore[no-any-return]


def embedded(page: str) -> list[dict[str, Any]]:
    return json.loads(re.findall(r'id="figures">(.*?)</script>', page, re.DOTALL)[0])  # type: ignore[no-any-return]


def test_the_report_has_a_section_with_shares_course_and_certificate(shown: dict[str, Any]) -> None:
    page = html.render({"relaxed": shown})
    assert "<h2>The gradient search (darts1)</h2>" in page and "regime: stationarity only (1 seed, 20 slices)" in page
    assert all(html.Environment(autoescape=True).from_string("{{ s }}").render(s=s) in page for s in shown["sentences"])
    plots = {f["name"]: f for f in embedded(page)}
    assert plots.keys() == {"alphas", "watched"}
    options = plots["alphas"]["menus"][0]["options"]
    assert [len(o["traces"]["z"][0]) for o in options] == [2, 3], "lines: options of the two choices"
    assert [column[4] for column in options[1]["traces"]["z"][0]] == pytest.approx(shown["shares"][1][4][0])
    titles = [o.label for o in figures.watched({"relaxed": shown}).menus[0].options]  # type: ignore[union-attr]
    assert "norm of the hypergradient" in titles and "extreme eigenvalues of the Hessian in α" in titles
    assert "rank correlation with measured accuracy" not in titles, "nothing was measured"
    eigen = plots["watched"]["menus"][0]["options"][titles.index("extreme eigenvalues of the Hessian in α")]["traces"]
    assert eigen["visible"] == [True, True] and eigen["y"][1] == [s["low"] for s in shown["slices"]]


def test_an_alarm_is_a_warning(shown: dict[str, Any]) -> None:
    def warned(record: Mapping[str, Any]) -> bool:
        return '<div class="warn">\n<p>' in html.render({"relaxed": record})

    assert not warned({**shown, "alarms": []}) and warned({**shown, "alarms": [{"name": "skips"}]})


def test_every_part_may_be_missing_and_texts_are_escaped(shown: dict[str, Any]) -> None:
    assert "gradient search" not in html.render({}) and "gradient search" not in html.render({"relaxed": {"groups": 3}})
    for name in shown:
        for record in ({k: v for k, v in shown.items() if k != name},
                       *({**shown, name: odd} for odd in (3, [3], {"a": 1}, [[3]], [[[3]]], [{"rows": 3}], None))):
            html._relaxed({"relaxed": record})
            figures.alphas({"relaxed": record})
            figures.watched({"relaxed": record})
        assert "<script>alert" not in html.render({"relaxed": {**shown, name: ["<script>alert(1)</script>"]}})
    evil = {**shown["groups"][0], "path": "<script>alert(1)", "labels": ["<script>alert(2)", "b"]}
    assert "<script>alert" not in html.render({"relaxed": {**shown, "groups": [evil]}})
