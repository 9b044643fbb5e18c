"""The README's Python runs as it stands there (the budget apart)."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
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


def test_the_parts_for_research_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "parts.py"
    script.write_text(BLOCKS[1])
    runpy.run_path(str(script))
    assert capsys.readouterr().out == "21 of 21\n"
