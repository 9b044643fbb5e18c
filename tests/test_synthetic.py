"""The fronts of the synthetic problems against enumeration of the whole space."""

from __future__ import annotations

import numpy as np
import pytest

from nasopt.benchmarks.synthetic import Synthetic, bad_options, dtlz2, lotz, one_min_max
from nasopt.errors import InputError
from nasopt.space import everything, size
from nasopt.trial import Ask, nondominated


def all_values(s: Synthetic) -> np.ndarray:
    return np.array([s.problem.values(s(Ask(0, a))) for a in everything(s.problem.space)])


@pytest.mark.parametrize(("s", "points"), [
    (one_min_max(6), 7), (one_min_max(6, 3), 16), (one_min_max(8, 4), 25), (one_min_max(6, 6), 27), (lotz(7), 8),
    (dtlz2(4, 5, 3), 21), (dtlz2(3, 5, 2), 5), (dtlz2(2, 7, 3), 43), (bad_options(2, 3), 1)])
def test_front_equals_enumeration(s: Synthetic, points: int) -> None:
    values = all_values(s)
    assert len(values) == size(s.problem.space)
    assert len(s.front) == points
    assert np.array_equal(np.unique(values[nondominated(values)], axis=0), s.front)
    assert s.found(values) == points and s.found(values[:0]) == 0 and s.found(s.front[1:]) == points - 1


def test_by_hand() -> None:
    bits = {f"b{i}": int(c) for i, c in enumerate("110100")}
    assert one_min_max(6)(Ask(0, bits)) == {"f0": 3.0, "f1": 3.0}
    assert one_min_max(6, 3)(Ask(0, bits)) == {"f0": 3.0, "f1": 2.0, "f2": 1.0}
    assert one_min_max(6, 4)(Ask(0, bits)) == {"f0": 1.0, "f1": 2.0, "f2": 2.0, "f3": 1.0}
    assert lotz(6)(Ask(0, bits)) == {"leading_ones": 2.0, "trailing_zeros": 2.0}
    assert len(one_min_max(20, 3).front) == 121


def test_dtlz2_is_the_published_formula() -> None:
    """f1 = (1+g) cos cos, f2 = (1+g) cos sin, f3 = (1+g) sin: worked out for one point, and the norm for all."""
    s = dtlz2(4, 5, 3)
    found = s(Ask(0, {"x0": 1, "x1": 2, "x2": 0, "x3": 3}))
    g, a, b = 0.25 + 0.0625, np.pi / 8, np.pi / 4
    expected = (1 + g) * np.array([np.cos(a) * np.cos(b), np.cos(a) * np.sin(b), np.sin(a)])
    assert np.allclose([found[f"f{k}"] for k in range(3)], expected, atol=1e-12)
    assert np.allclose(np.linalg.norm(s.front, axis=1), 1, atol=1e-11)


def test_bad_options_by_hand() -> None:
    arch = {"vital0": 1, "vital1": 0, "minor0": 3, "minor1": 0, "minor2": 0}
    assert bad_options(2, 3)(Ask(0, arch))["error"] == pytest.approx(0.45 + 0.1 / 3)
    with pytest.raises(InputError, match="at least 1 of each"):
        bad_options(0, 3)


@pytest.mark.parametrize("make", [lambda: one_min_max(7, 3), lambda: one_min_max(8, 5), lambda: one_min_max(0),
                                  lambda: dtlz2(4, 4), lambda: dtlz2(1, 5), lambda: dtlz2(3, 5, 1)])
def test_what_does_not_exist_is_refused(make: object) -> None:
    with pytest.raises(InputError, match="does not exist"):
        make()  # type: ignore[operator]
