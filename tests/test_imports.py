"""Heavy things are asked for, never dragged in."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "sklearn", "onnx", "onnxruntime", "plotly", "optuna", "pymoo", "pandas", "matplotlib")


def loaded_after(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after running ``code``."""
    watch = f"import sys\n{code}\nprint('\\nLOADED', *(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", watch], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("code", [
    "import nasopt",
    "import nasopt.space, nasopt.trial, nasopt.protocols, nasopt.seed, nasopt.errors, nasopt.goals",
    "from nasopt.cli import main\nassert main(['--help']) == 0",
    "from nasopt.cli import main\nassert main(['search', '--help']) == 0",
    "from nasopt.cli import main\nassert main(['--version']) == 0",
    "from nasopt.cli import main\nassert main(['certify', '--instances', '1']) == 0",
])
def test_no_heavy_package_is_loaded(code: str) -> None:
    assert loaded_after(code) == set()


def test_the_probe_sees_torch() -> None:
    assert "torch" in loaded_after("import torch")
