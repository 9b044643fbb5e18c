"""One thread a test process (they run side by side), and property tests that are the same on every run."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("nasopt", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("nasopt")


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bayesian optimisation with few candidates, trees and steps of a fit: what a strategy promises does not depend on them."""
    from nasopt.strategies import bayes
    from nasopt.surrogates import forest, gp

    for name, value in (("ENUMERATE", 100), ("DRAWN", 50), ("MUTANTS", 12), ("STRANGERS", 12), ("PARENTS", 2), ("CLIMBS", 1)):
        monkeypatch.setattr(bayes, name, value)
    monkeypatch.setattr(forest, "TREES", 4)
    monkeypatch.setattr(gp, "ITERATIONS", 1)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 8x8 images: bright at the top, in the middle, at the bottom."""
    rng = np.random.default_rng(0)
    y = np.arange(180) % 3
    x = rng.integers(0, 120, (180, 8, 8))
    for k, label in enumerate(y):
        x[k, 3 * label:3 * label + 2] += 100
    path = tmp_path_factory.mktemp("data") / "bars.npz"
    np.savez(path, x=x.astype(np.uint8), y=y)
    return path
