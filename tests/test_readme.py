"""The README's and the guide's Python runs as it stands there (the budget apart), and what they name is there."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from click import Group
from torch import nn
from typer.main import get_command

from nasopt import cli
from nasopt.goals import METRICS
from nasopt.nets.export import WithPreprocessing, export_onnx, export_torch
from nasopt.pipeline.setup import SPACES
from nasopt.strategies import catalogue

ROOT = Path(__file__).parent.parent
TEXT, GUIDE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/guide.md"))
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_readme_has_two_examples() -> None:
    assert len(BLOCKS) == 2
    assert 'budget="2m"' in BLOCKS[0]


@pytest.mark.slow
def test_a_network_of_your_own_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "own.py"
    script.write_text(BLOCKS[0].replace('budget="2m"', 'budget="15s", networks=2'))
    runpy.run_path(str(script))
    assert ".onnx" in capsys.readouterr().out
    assert (tmp_path / "runs/mine/report.html").is_file()


def test_the_accuracy_that_is_named_is_that_of_the_record() -> None:
    accuracy, seeds = re.search(r"([\d.]+) % test accuracy \(mean of (\d+) seeds", TEXT).groups()  # type: ignore[union-attr]
    record = json.loads((ROOT / "benchmarks/results/cifar10-cpu.json").read_text())
    assert record["settings"]["minutes"] == 60 and record["settings"]["threads"] == 2
    assert record["settings"]["target"] == "error <= 0.05" and "`--mirror`, a target of 5 %" in TEXT
    assert (f"{np.mean(record['test_accuracy']):.2f}", str(len(record["test_accuracy"]))) == (accuracy, seeds)


def test_options_that_are_named_are_there() -> None:
    program = get_command(cli.app)
    assert isinstance(program, Group)
    known = {name for command in program.commands.values() for option in command.params for name in option.opts}
    said = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", TEXT + GUIDE))
    assert len(said) > 15 and said <= known | {"--help"}, said - known


def test_the_guide_lists_all_strategies_spaces_and_metrics() -> None:
    words = set(re.findall(r"`([a-z0-9_-]+)`", GUIDE))
    named = {*catalogue.STRATEGIES, catalogue.COMBINED, catalogue.PREFERENCE, *SPACES, *(m.name for m in METRICS if m.choosable)}
    assert named <= words, named - words


def test_the_guide_shows_how_files_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    """Both files answer alike, to images of bytes with the channel last."""
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "photos.npz", x=images, y=np.arange(9))
    torch.manual_seed(0)
    net = WithPreprocessing(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), [100.0] * 3, [50.0] * 3, "NHWC").eval()
    example = torch.from_numpy(images[:1])
    export_torch(net, example, tmp_path / "model.pt2")
    export_onnx(net, example, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    block, = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    (tmp_path / "use.py").write_text(block)
    runpy.run_path(str(tmp_path / "use.py"))
    first, second = capsys.readouterr().out.splitlines()
    assert second == str(net(torch.from_numpy(images[:8])).argmax(1).numpy())
    assert first == f"tensor([{second[1:-1].replace(' ', ', ')}])"


def test_the_parts_for_research_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "parts.py"
    script.write_text(BLOCKS[1])
    runpy.run_path(str(script))
    assert capsys.readouterr().out == "21 of 21\n"
