"""The benchmarks' scripts: the page is that of the records, and the largest script runs at tiny size."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from nasopt.errors import InputError
from nasopt.machine import machine
from nasopt.nets.choices import extract
from nasopt.spaces.scaling import Cost, Scaled

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of the folder, as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module(name)


def test_the_page_of_results_is_made_from_the_records(monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    assert script("results", monkeypatch).main(["--check"]) == 0, capsys.readouterr().out


def test_a_version_is_marked_where_a_program_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    common = script("common", monkeypatch)
    said = dict[str, str]()
    monkeypatch.setattr(common.subprocess, "run", lambda words, **named: SimpleNamespace(stdout=said.get(words[1], "") + "\n"))
    monkeypatch.setattr(common.shutil, "which", lambda name: "/bin/git")
    said["describe"] = "1234567"
    assert common.version() == "1234567"
    said["status"] = " M src/nasopt/job.py"
    assert common.version() == "1234567-dirty"
    monkeypatch.setattr(common.shutil, "which", lambda name: None)
    assert common.version() == ""


@pytest.mark.slow
def test_the_headline_s_script_at_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    """Every kind of part, one of which cannot be scaled; what another call finds in the record is not run again."""
    cifar10, common = script("cifar10", monkeypatch), script("common", monkeypatch)
    for module in (cifar10, common):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    rng = np.random.default_rng(0)
    y = np.arange(480) % 10
    x = rng.integers(0, 156, (480, 32, 32, 3)) + 10 * y[:, None, None, None]
    parts = {"x_train": x[:400], "y_train": y[:400], "x_test": x[400:], "y_test": y[400:]}
    np.savez(tmp_path / "tiny.npz", **{name: part.astype(np.uint8) for name, part in parts.items()})  # type: ignore[arg-type]
    words = ["cifar10.py", "--data", str(tmp_path / "tiny.npz"), "--name", "tiny", "--minutes", "0.4", "--target", "error<=1%",
             "--seeds", "3", "--images", "300", "--darts-steps", "1", "--darts-channels", "4"]

    def record(folder: str, *only: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [*words, "--keep", str(tmp_path / folder), "--only", *only])
        cifar10.main()
        found: dict[str, Any] = json.loads((tmp_path / "results/tiny-cpu.json").read_text())
        return found

    record("one", "nasopt", "mobilenetv2", "darts")
    tried = list[dict[str, int]]()

    def within(net: nn.Module, arch: dict[str, int], example: Tensor, cost: Cost, budget: float) -> Scaled:
        tried.append(arch)
        if len(tried) == 1:
            raise InputError("too fast.")
        assert budget == 1 and 0 < cost(extract(net, arch), example) < 1000
        return Scaled(arch, 32, 1.0)

    monkeypatch.setattr(cifar10.scaling, "within", within)
    first = record("one", "airbench94-scaled", "mobilenetv2-scaled")
    assert "airbench94-scaled-3 is left out: too fast." in capsys.readouterr().out
    assert first["settings"]["target"] == "error <= 0.01" and first["machine"] == machine()
    assert set(first["methods"]) == {"nasopt", "mobilenetv2", "mobilenetv2-scaled"}
    for runs in first["methods"].values():
        assert set(runs) == {"seed", *cifar10.FIELDS} and runs["seed"] == [3]
        assert 0 <= runs["test_accuracy"][0] <= 100 and runs["latency_ms"][0] > 0 and runs["total_seconds"][0] > 0
        assert runs["architecture"][0]
    assert first["methods"]["mobilenetv2-scaled"]["latency_ratio"][0] > 0
    found = first["methods"]["nasopt"]
    assert first["search_seconds"] == found["search_seconds"] and found["candidates"][0] >= 1
    assert found["total_seconds"][0] >= found["search_seconds"][0] + found["training_seconds"][0] - 1e-6
    assert first["darts"]["extrapolated_search_seconds"] == pytest.approx(19500 * first["darts"]["step_seconds"][0], rel=0.01)
    assert first["command"].endswith("--images 300 --seeds 3 --darts-steps 1 --darts-channels 4")
    assert "--only nasopt mobilenetv2 mobilenetv2-scaled darts --images" in first["command"]
    assert "'error<=1%'" in first["command"]

    monkeypatch.setattr(cifar10, "one", lambda *given: pytest.fail("this was run before"))
    monkeypatch.setattr(cifar10, "darts", lambda *given: pytest.fail("this was timed before"))
    again = record("two", "nasopt", "mobilenetv2", "mobilenetv2-scaled", "darts")
    assert again["methods"] == first["methods"] and again["darts"] == first["darts"]
    words[words.index("300")] = "200"
    with pytest.raises(SystemExit, match="holds runs with other settings"):
        record("two", "nasopt")


def test_the_words_of_a_command_name_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    portable = script("common", monkeypatch)._portable
    words = ("/a/b/c.npz", "--data=/a/b/c.npz", "--data=c", "x", "error<=5%")
    assert [portable(word) for word in words] == ["c.npz", "--data=c.npz", "--data=c", "x", "error<=5%"]


def test_a_folder_with_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = script("common", monkeypatch)
    for _ in range(2):
        common.settle(tmp_path / "new" / "one", {"budget": "30m"})
    with pytest.raises(InputError, match="holds runs with other settings"):
        common.settle(tmp_path / "new" / "one", {"budget": "2h"})
