"""The command line, with a stand-in for what it calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

import nasopt
from nasopt.cli import Gradients, Spaces, Strategies, load_config, main
from nasopt.errors import InputError
from nasopt.trial import Constraint, Objective


@dataclass
class Entry:
    id: str
    metrics: dict[str, float]
    files: dict[str, Path] = field(default_factory=dict)


@dataclass
class Run:
    found: list[Entry]
    report: Path
    results: dict[str, Any] = field(default_factory=dict)

    def front(self) -> list[Entry]:
        return self.found


class Job(ModuleType):
    """Stands in for nasopt.job and keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__("nasopt.job")
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.found = [Entry("7", {"error": 0.0417, "latency_ms": 1.2345, "memory_mb": 0.8, "params": 45_321.0},
                            {"onnx": Path("net.onnx"), "torch": Path("net.pt2")}),
                      Entry("12", {"error": 0.05, "memory_mb": 0.4, "params": 450_000.0})]
        self.raises: BaseException | None = None
        self.results: dict[str, Any] = {"dominated": []}

    def _keep(self, name: str, **call: Any) -> None:
        self.calls.append((name, call))
        if self.raises is not None:
            raise self.raises
        if "log" in call:
            call["log"]("one line of log")

    def search(self, data: str, **options: Any) -> Run:
        self._keep("search", data=data, **options)
        return Run(self.found, options["out"] / "report.html", self.results)

    def resume(self, out: Path, *, log: Callable[[str], None], progress: bool) -> Run:
        self._keep("resume", out=out, log=log, progress=progress)
        return Run(self.found, out / "report.html")

    def report(self, out: Path) -> Path:
        self._keep("report", out=out)
        return out / "report.html"

    def export(self, out: Path, id: str, format: str, to: Path) -> Path:
        self._keep("export", out=out, id=id, format=format, to=to)
        return to


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Job:
    stand_in = Job()
    monkeypatch.setitem(sys.modules, "nasopt.job", stand_in)
    monkeypatch.setattr(nasopt, "job", stand_in, raising=False)
    monkeypatch.chdir(tmp_path)
    return stand_in


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a refused command says: one line on stderr, nothing on stdout, exit code 2."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_search_passes_its_defaults_on(job: Job) -> None:
    assert main(["search"]) == 0
    name, call = job.calls[0]
    assert (name, call["progress"]) == ("search", False)
    del call["log"], call["progress"]
    assert call == {
        "data": "digits", "space": "cells", "constraints": (), "budget": 200.0, "networks": 10, "min_gain": None, "target": (),
        "trials": None, "strategy": "hybrid",
        "objectives": (Objective("error"), Objective("latency_ms", "ms"), Objective("memory_mb", "MB")),
        "out": Path("runs/digits"), "seed": 0, "device": "cpu", "mirror": False, "image_size": None}


def test_search_passes_every_option_on(job: Job) -> None:
    assert main(["search", "--data", "x/photos.npz", "--space", "nb201", "--objectives", "error,size", "--constraint",
                 "latency<=2ms", "--constraint", "params<=1M", "--target", "error<=6%", "--budget", "1h30m", "--trials", "9",
                 "--strategy", "random", "--networks", "4", "--device", "cuda", "--mirror", "--image-size", "48x64",
                 "--out", "here", "--seed", "3", "--quiet"]) == 0
    call = job.calls[0][1]
    del call["log"], call["progress"]
    assert call == {
        "data": "x/photos.npz", "space": "nb201", "budget": 5400.0, "trials": 9, "strategy": "random", "seed": 3,
        "networks": 4, "device": "cuda", "mirror": True, "image_size": (48, 64), "min_gain": None, "out": Path("here"),
        "objectives": (Objective("error"), Objective("size_mb", "MB")),
        "constraints": (Constraint("latency_ms", 2.0, "ms"), Constraint("params", 1e6)), "target": (Constraint("error", 0.06),)}


@pytest.mark.parametrize(("argv", "seconds", "trials", "out"), [
    (["--trials", "5"], 200.0, 5, "runs/digits"), (["--trials", "5", "--budget", "9"], 9.0, 5, "runs/digits"),
    (["--data", "a/photos/"], 200.0, None, "runs/photos"), (["--data", "set.npz"], 200.0, None, "runs/set"),
])
def test_limits_and_the_folder_follow_from_what_is_given(
    job: Job, argv: list[str], seconds: float, trials: int | None, out: str,
) -> None:
    assert main(["search", *argv]) == 0
    call = job.calls[0][1]
    assert (call["budget"], call["trials"], call["out"]) == (seconds, trials, Path(out))


def test_the_front_is_printed_with_units_and_where_the_report_is(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search"]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert err == "one line of log\n"
    lines = out.splitlines()
    assert [w.strip() for w in lines[2].strip("┃").split("┃")] == ["network", "error", "latency", "memory", "params"]
    assert [w.strip() for w in lines[4].strip("│").split("│")] == ["7", "4.17 %", "1.23 ms", "0.8 MB", "45.3 K"]
    assert [w.strip() for w in lines[5].strip("│").split("│")] == ["12", "5.00 %", "–", "0.4 MB", "0.45 M"]
    assert "report: runs/digits/report.html" in lines
    assert "to export a network: nasopt export runs/digits 7 --format onnx --to net.onnx" in lines


def test_quiet_keeps_the_log_away(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_the_progress_bar_is_for_terminals_that_are_not_asked_to_be_quiet(
    job: Job, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert [main(["search"]), main(["search", "--quiet"]), main(["resume", "r"])] == [0, 0, 0]
    assert [call["progress"] for _, call in job.calls if "progress" in call] == [True, False, True]


@pytest.mark.parametrize(("trained", "why"), [([{"id": "7"}], "no network was found that meets every constraint"),
                                              ([], "no training succeeded")])
def test_an_empty_front_is_said_and_is_not_a_success(
    job: Job, trained: list[Any], why: str, capsys: pytest.CaptureFixture[str],
) -> None:
    job.found, job.results = [], {"dominated": trained}
    assert main(["search"]) == 1
    assert f"{why}; see runs/digits/report.html" in capsys.readouterr().err
    job.results["target"] = {"sentence": "The target error <= 6 % was met by 7."}
    assert main(["search"]) == 1
    assert "The target error <= 6 % was met by 7." in capsys.readouterr().out


def test_a_network_without_onnx_is_exported_to_torch(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.found[0].files.pop("onnx")
    assert main(["search"]) == 0
    assert "to export a network: nasopt export runs/digits 7 --format torch --to net.pt2" in capsys.readouterr().out


def test_resume_report_and_export(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", "runs/a"]) == 0
    assert main(["report", "runs/a"]) == 0
    assert main(["export", "runs/a", "12", "--format", "torch", "--to", "n.pt"]) == 0
    assert capsys.readouterr().out.endswith("runs/a/report.html\nn.pt\n")
    assert [name for name, _ in job.calls] == ["resume", "report", "export"]
    assert job.calls[0][1]["out"] == Path("runs/a")
    assert job.calls[2][1] == {"out": Path("runs/a"), "id": "12", "format": "torch", "to": Path("n.pt")}


def test_an_interrupt_says_how_to_go_on(job: Job, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    job.raises = KeyboardInterrupt()
    assert main(["search", "--out", "r"]) == 130
    assert "nothing was written yet" in capsys.readouterr().err
    (tmp_path / "r").mkdir()
    assert main(["search", "--out", "r"]) == 130
    assert "nothing was written yet" in capsys.readouterr().err
    (tmp_path / "r/study.db").touch()
    assert main(["search", "--out", "r"]) == 130
    assert "go on with: nasopt resume r\n" in capsys.readouterr().err
    assert main(["resume", "r"]) == 130
    assert "go on with: nasopt resume r\n" in capsys.readouterr().err


def test_bad_input_found_by_the_job_is_one_line(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.raises = InputError("the data are empty: give some.")
    assert refusal(capsys, "search") == "error: the data are empty: give some.\n"


def test_a_defect_is_not_hidden(job: Job) -> None:
    job.raises = ZeroDivisionError("a defect")
    with pytest.raises(ZeroDivisionError):
        main(["search"])


@pytest.mark.parametrize(("argv", "part"), [
    (["serch"], "serch"), (["search", "--budgett", "3s"], "--budget"), (["search", "--seed", "-1"], "'--seed'"),
    (["search", "--trials", "0"], "'--trials'"), (["search", "--space", "resnet"], "'cells', 'nb201'"),
    (["search", "--strategy", "x"], "'nsga2', 'nsga3'"), (["search", "--budget", "0"], "duration '0'"),
    (["search", "--budget", ""], "duration ''"), (["search", "--objectives", ""], "name no metric"),
    (["search", "--constraint", "latncy<=2ms"], "did you mean 'latency'"), (["resume"], "RUN"),
    (["export", "r", "1", "--format", "tf", "--to", "f"], "'onnx', 'torch'"), (["export", "r", "1"], "--to"),
    (["search", "--config", "none.toml"], "No such file"), (["search", "extra"], "extra"),
])
def test_bad_input_is_refused_before_any_work(
    job: Job, capsys: pytest.CaptureFixture[str], argv: list[str], part: str,
) -> None:
    assert part in refusal(capsys, *argv)
    assert job.calls == []


def test_a_file_gives_the_defaults_and_the_line_overrides_them(job: Job, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        'data = "set.npz"\nbudget = 90\nseed = 4\nquiet = true\nconstraint = ["latency<=2ms", "size<=1MB"]\n')
    assert main(["search", "--seed", "5", "--config", "a.toml"]) == 0
    call = job.calls[0][1]
    assert (call["data"], call["budget"], call["seed"]) == ("set.npz", 90.0, 5)
    assert call["constraints"] == (Constraint("latency_ms", 2.0, "ms"), Constraint("size_mb", 1.0, "MB"))
    assert main(["search", "--config", "a.toml", "--constraint", "error<=5%"]) == 0
    assert [c["constraints"] for n, c in job.calls if n == "search"][1] == (Constraint("error", 0.05),)


def test_whether_the_target_was_met_is_printed(job: Job, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    job.results = {"target": {"sentence": "The target was missed."}}
    (tmp_path / "a.toml").write_text('target = ["error<=6%", "params<=1M"]')
    assert main(["search", "--config", "a.toml"]) == 0
    assert job.calls[0][1]["target"] == (Constraint("error", 0.06), Constraint("params", 1e6))
    assert "The target was missed." in capsys.readouterr().out.splitlines()
    assert "did you mean 'latency'" in refusal(capsys, "search", "--target", "latncy<=2ms")


def test_one_constraint_in_a_file_needs_no_list(job: Job, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('constraint = "latency<=2ms"')
    assert main(["search", "--config", "a.toml"]) == 0
    assert job.calls[0][1]["constraints"] == (Constraint("latency_ms", 2.0, "ms"),)


@pytest.mark.parametrize(("text", "part"), [
    ("budgt = 3", "unknown key in a.toml: 'budgt': did you mean 'budget'"), ("config = 'b.toml'", "'config'"),
    ("seed = ", "not TOML"), ("seed = 1.5", "'--seed'"), ("seed = true", "'--seed'"),
    ("[data]\nx = 1", "'data' in a.toml"),
    ("data = ['a', 'b']", "a text or a number"), ("constraint = [['latency<=2ms']]", "a list of texts"),
    ("space = 'resnet'", "'cells', 'nb201'"), ("quiet = 'perhaps'", "'--quiet'"), ("budget = 'soon'", "duration 'soon'"),
])
def test_bad_files_are_refused(
    job: Job, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, part: str,
) -> None:
    (tmp_path / "a.toml").write_text(text)
    assert part in refusal(capsys, "search", "--config", "a.toml")
    assert job.calls == []


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not TOML"):
        load_config(tmp_path / "a.toml", ["data"])


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nasopt {nasopt.__version__}\n"
    for command in ("search", "resume", "report", "export", "certify"):
        assert main([command, "--help"]) == 0
        assert "Example" in capsys.readouterr().out
    assert main([]) == 2
    assert "search" in capsys.readouterr().out


def test_the_command_line_names_every_space() -> None:
    from nasopt.pipeline.setup import SPACES

    assert list(get_args(Spaces)) == list(SPACES)


def test_the_command_line_names_every_strategy(job: Job) -> None:
    from nasopt.strategies.catalogue import GRADIENT, NETWORKS, STRATEGIES
    from nasopt.strategies.gradient import RECIPES

    assert list(get_args(Strategies)) == sorted(STRATEGIES) == list(STRATEGIES)
    assert list(get_args(Gradients)) == sorted(RECIPES) == list(GRADIENT)
    assert all(main(["search", "--strategy", name]) == 0 for name in NETWORKS)
