"""One thread a test process (they run side by side), and property tests that are the same on every run."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

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
