"""Complexity by counting: machine instructions and allocated bytes over growing sizes, and the exponent that they follow.

Time on a shared machine is no evidence; instructions are the same on every run. They are counted by callgrind (valgrind), between
two calls of a marker, compiled libraries included. Bytes are what Python and numpy allocate, at the peak (tracemalloc).
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nasopt.errors import InputError

MIN_SIZES, MIN_OCTAVES = 4, 3
TOLERANCE = 0.15
"""How far above the declared exponent the upper confidence limit may lie: lower-order terms bend the line."""


@dataclass(frozen=True)
class Bound:
    """What is declared: the formula as text, its exponent in the size n, and the power of log n that it has beside."""

    text: str
    exponent: float
    logs: int = 0


@dataclass(frozen=True)
class Slope:
    """An exponent with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def within(self, bound: Bound) -> bool:
        """Whether the upper confidence limit is at most the declared exponent and `TOLERANCE`."""
        return self.high <= bound.exponent + TOLERANCE


def slope(sizes: Sequence[int], counts: Sequence[float], logs: int = 0, level: float = 0.95) -> Slope:
    """The exponent of counts in sizes: the least-squares slope of log(count / log(n)^logs) on log(n), with its t-interval.

    Raises:
        InputError: fewer than 4 sizes, sizes over less than 3 octaves, or counts that are not above 0.
    """
    from scipy import stats  # here, so that callgrind need not watch it load

    n, y = np.asarray(sizes, dtype=float), np.asarray(counts, dtype=float)
    if len(n) < MIN_SIZES or n.max() < n.min() * 2**MIN_OCTAVES or n.shape != y.shape or n.min() < 2 or not (y > 0).all():
        raise InputError(f"sizes {list(sizes)} with counts {list(counts)} show no exponent: give at least {MIN_SIZES} sizes from "
                         f"2 on over {MIN_OCTAVES} octaves, and counts above 0.")
    fit = stats.linregress(np.log(n), np.log(y / np.log(n) ** logs))
    half = float(stats.t.ppf((1 + level) / 2, len(n) - 2)) * float(fit.stderr)
    return Slope(float(fit.slope), float(fit.slope) - half, float(fit.slope) + half)


# ------------------------------------------------------------------------------------------------------------- counting
def peak_bytes(work: Callable[[], object]) -> int:
    """What Python and numpy hold more at the peak of a call than before it."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def marked(work: Callable[[], object]) -> None:
    """Runs ``work`` between two markers of `instructions`: calls of getppid, which nothing else here calls."""
    os.getppid()
    work()
    os.getppid()


def can_count() -> bool:
    """Whether valgrind is installed."""
    return shutil.which("valgrind") is not None


def instructions(code: str) -> list[int]:
    """Runs a Python program under callgrind and returns the instructions of every `marked` call, in order.

    Raises:
        InputError: valgrind is not installed.
        subprocess.CalledProcessError: the program failed.
    """
    if not can_count():
        raise InputError("counting instructions needs valgrind: install it with the system's package manager.")
    with tempfile.TemporaryDirectory() as folder:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        path = os.pathsep.join(p for p in sys.path if p)
        subprocess.run(["valgrind", "--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={folder}/out",
                        sys.executable, "-c", code], check=True, capture_output=True, text=True,
                       env={**os.environ, **threads, "PYTHONPATH": path, "PYTHONHASHSEED": "0"})
        dumps = sorted(Path(folder).glob("out.*"), key=lambda p: int(p.suffix[1:]))
        return [_total(p) for p in dumps[1::2]]  # the dump at a second marker holds what was run since the first one


def _total(dump: Path) -> int:
    found = re.search(r"^(?:totals|summary): (\d+)", dump.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"callgrind's file {dump.name} has no total.")
    return int(found[1])


def octaves(first: int, last: int) -> tuple[int, ...]:
    """Sizes from ``first``, doubling, to ``last``.

    >>> octaves(8, 64)
    (8, 16, 32, 64)
    """
    return tuple(first * 2**k for k in range(int(math.log2(last / first)) + 1))
