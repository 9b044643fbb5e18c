"""One thread a test process (they run side by side), and property tests that are the same on every run."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("nasopt", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("nasopt")
