"""Exponents from counts: of functions whose exponent is known, and of the strategies and their parts."""

from __future__ import annotations

import numpy as np
import pytest

from nasopt import cli
from nasopt.analysis import complexity
from nasopt.analysis.complexity import Bound, Slope, can_count, instructions, octaves, peak_bytes, slope
from nasopt.errors import InputError
from nasopt.strategies import catalogue
from nasopt.strategies import complexity as parts

SIZES = octaves(64, 1024)


def test_exponents_of_known_functions() -> None:
    n = np.array(SIZES, dtype=float)
    exact = slope(SIZES, 7 * n**2)
    assert exact.value == pytest.approx(2)
    assert exact.high - exact.low < 1e-6
    sorting = n * np.log(n)
    assert slope(SIZES, sorting, logs=1).value == pytest.approx(1)
    assert slope(SIZES, sorting).value > 1.15
    assert not slope(SIZES, n**2).within(Bound("O(n)", 1))
    assert slope(SIZES, n).within(Bound("O(n²)", 2))
    assert Slope(1.1, 1.0, 1.149).within(Bound("O(n)", 1))
    assert not Slope(1.0, 0.8, 1.151).within(Bound("O(n)", 1)), "it is the upper limit that counts"


def test_the_interval_of_a_slope_covers() -> None:
    rng, n = np.random.default_rng(0), np.array(SIZES, dtype=float)
    found = [slope(SIZES, n**1.5 * np.exp(rng.normal(0, 0.1, len(n)))) for _ in range(1000)]
    assert 0.93 <= np.mean([f.low <= 1.5 <= f.high for f in found]) <= 0.97


@pytest.mark.parametrize(("sizes", "counts"), [
    ((8, 16, 64), (1, 2, 3)), ((8, 16, 32, 48), (1, 2, 3, 4)), ((8, 16, 32, 64), (1, 2, 0, 4)), ((8, 16, 32, 64), (1, 2, 3)),
    ((1, 16, 32, 64), (1, 2, 3, 4)),
])
def test_too_few_sizes_show_nothing(sizes: tuple[int, ...], counts: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="show no exponent"):
        slope(sizes, counts)


def test_bytes_are_counted() -> None:
    assert 8000 <= peak_bytes(lambda: np.ones(1000)) < 12_000
    quadratic = [peak_bytes(lambda n=n: np.ones((n, n)).sum()) for n in SIZES]  # type: ignore[misc]
    assert slope(SIZES, quadratic).value == pytest.approx(2, abs=0.05)


def test_every_strategy_declares_its_bounds() -> None:
    assert set(parts.BOUNDS) == set(catalogue.STRATEGIES), "give a new strategy its line in nasopt.strategies.complexity.BOUNDS"


def test_memory_stays_within_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "can_count", lambda: False)
    found = parts.count()
    assert [c.name for c in found] == list(parts.parts())
    for c in found:
        assert c.space.within(c.part.space), f"{c.name}: {c.space}"
        assert c.time is None
    with pytest.raises(InputError, match="unknown part 'hypervolum, M = 3': did you mean 'hypervolume, M = 3'"):
        parts.count(["hypervolum, M = 3"])


def test_the_command_says_what_it_could_not_count(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(parts, "can_count", lambda: False)
    monkeypatch.setattr(parts, "parts", lambda: {"hypervolume": parts.PARTS["hypervolume, M = 3"]})
    assert cli.main(["bench", "complexity"]) == 0
    out = capsys.readouterr().out
    assert "not counted" in out
    assert "needs valgrind" in out
    assert "O(n log n)" in out


def test_counting_without_valgrind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complexity.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="needs valgrind"):
        instructions("pass")


needs_valgrind = pytest.mark.skipif(not can_count(), reason="valgrind is not installed")


@needs_valgrind
@pytest.mark.slow
def test_instructions_are_those_between_the_markers() -> None:
    """Loops of Python without numpy, so that little is loaded: n and n² steps, and the same counts on a second run."""
    code = ("import os\n"
            "for power in (1, 2):\n"
            "    for n in (8, 16, 32, 64):\n"
            "        sum(range(99)); os.getppid()\n"
            "        for _ in range(20 * n**power): pass\n"
            "        os.getppid()\n")
    found = instructions(code)
    assert len(found) == 8
    linear, quadratic = slope(octaves(8, 64), found[:4]), slope(octaves(8, 64), found[4:])
    assert linear.value == pytest.approx(1, abs=0.3)
    assert quadratic.value == pytest.approx(2, abs=0.3)
    assert instructions(code) == pytest.approx(found, rel=0.02)


@needs_valgrind
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_time_stays_within_the_bounds() -> None:
    for c in parts.count():
        assert c.time is not None
        assert c.time.within(c.part.time), f"{c.name}: {c.time}"
