"""Dominance, archive and hypervolume against brute force, inclusion-exclusion and numbers worked out by hand."""

from __future__ import annotations

from itertools import combinations

import moocore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nasopt.analysis.hypervolume import bounds, curve, hypervolume, normalise, reference_point
from nasopt.analysis.pareto import Archive, crowding, ranks
from nasopt.errors import InputError

Values = NDArray[np.float64]


def dominates(a: Values, b: Values) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def by_peeling(values: Values) -> list[int]:
    rank, left, level = [-1] * len(values), set(range(len(values))), 0
    while left:
        top = [i for i in left if not any(dominates(values[j], values[i]) for j in left)]
        for i in top:
            rank[i] = level
        left -= set(top)
        level += 1
    return rank


def inclusion_exclusion(points: Values, reference: Values) -> float:
    """The union of the boxes [p, reference] by the sieve formula: exact on the small integers given here."""
    total = 0.0
    for k in range(1, len(points) + 1):
        for some in combinations(points, k):
            total -= (-1) ** k * float(np.prod(np.maximum(reference - np.max(some, axis=0), 0)))
    return total


small = st.integers(1, 4).flatmap(
    lambda m: st.lists(st.lists(st.integers(0, 5), min_size=m, max_size=m), min_size=1, max_size=9)
)


@given(small)
def test_ranks_equal_peeling_off_fronts(rows: list[list[int]]) -> None:
    values = np.array(rows, dtype=float)
    assert ranks(values).tolist() == by_peeling(values)


@given(small, st.data())
def test_constraint_domination(rows: list[list[int]], data: st.DataObject) -> None:
    values = np.array(rows, dtype=float)
    violation = np.array(
        data.draw(st.lists(st.sampled_from([0.0, 0.5, 2.0, np.inf]), min_size=len(rows), max_size=len(rows)))
    )
    rank = ranks(values, violation)
    for i in range(len(rows)):
        for j in range(len(rows)):
            better = violation[i] < violation[j] or (
                violation[i] == violation[j] == 0 and dominates(values[i], values[j])
            )
            assert not better or rank[i] < rank[j]
    assert set(rank) == set(range(rank.max() + 1))


def test_crowding_by_hand() -> None:
    values = np.array([[0.0, 10], [2, 6], [3, 5], [10, 0], [20, 20]])
    assert crowding(values[:4]).tolist() == [np.inf, 3 / 10 + 5 / 10, 8 / 10 + 6 / 10, np.inf]
    assert crowding(values, np.array([0, 0, 0, 0, 1])).tolist() == [
        np.inf,
        3 / 10 + 5 / 10,
        8 / 10 + 6 / 10,
        np.inf,
        np.inf,
    ]
    assert crowding(np.ones((4, 2))).tolist() == [np.inf, 0, 0, np.inf]
    assert crowding(np.empty((0, 2))).shape == (0,)
    assert not np.isnan(crowding(np.array([[np.inf, np.inf]] * 4 + [[0, 0]]))).any()


@given(small, st.integers(1, 4))
def test_crowding_of_ranks_equals_each_front_alone(rows: list[list[int]], fronts: int) -> None:
    values = np.array(rows, dtype=float)
    rank = np.arange(len(rows)) % fronts
    distance = crowding(values, rank)
    for r in set(rank.tolist()):
        assert np.array_equal(distance[rank == r], crowding(values[rank == r]))


@given(small, st.lists(st.integers(1, 4), min_size=1, max_size=9))
def test_archive_equals_brute_force(rows: list[list[int]], sizes: list[int]) -> None:
    values = np.array(rows, dtype=float)
    archive: Archive[int] = Archive(values.shape[1])
    start = 0
    for size in [*sizes, len(rows)]:
        batch = range(start, min(start + size, len(rows)))
        entered = archive.add(values[start:start + size], list(batch))
        assert [k for k, e in zip(batch, entered, strict=True) if e] == [k for k in archive.payloads if k >= start]
        start = min(start + size, len(rows))
    wanted = [i for i, v in enumerate(values) if not any(dominates(w, v) for w in values)
              and not any((w == v).all() for w in values[:i])]
    assert archive.payloads == wanted and np.array_equal(archive.values, values[wanted]) and len(archive) == len(wanted)


def test_archive_leaves_out_what_failed_and_what_is_infeasible() -> None:
    archive: Archive[str] = Archive(2)
    entered = archive.add([[np.inf, 0], [np.nan, 0], [0, 0], [1, 1]], list("abcd"), violation=[0, 0, 0.1, 0])
    assert entered.tolist() == [False, False, False, True] and archive.payloads == ["d"]
    with pytest.raises(InputError, match="2 objectives"):
        archive.add([[1, 2, 3]], ["x"])


@pytest.mark.parametrize(("objectives", "count"), [(2, 85_000), (3, 15_000)])
def test_hypervolume_of_the_archive_never_decreases(objectives: int, count: int) -> None:
    """1e5 insertions in all; points near a sphere, so that the front is long and often changes."""
    rng = np.random.default_rng(objectives)
    direction = np.abs(rng.normal(size=(count, objectives)))
    points = 1 - direction / np.linalg.norm(direction, axis=1, keepdims=True) * rng.uniform(0.2, 1, (count, 1)) ** 0.1
    archive: Archive[int] = Archive(objectives)
    reference, last, changes = np.full(objectives, 1.1), 0.0, 0
    for k, point in enumerate(points):
        if archive.add(point[None], [k])[0]:
            now = hypervolume(archive.values, reference)
            assert now >= last * (1 - 1e-13)
            last, changes = now, changes + 1
    assert changes > 200
    assert np.array_equal(archive.values, points[moocore.is_nondominated(points)])


def test_hypervolume_by_hand() -> None:
    assert hypervolume([[1, 3], [2, 2], [3, 1]], [4, 4]) == 6
    assert hypervolume([[1, 2, 3], [2, 3, 1], [3, 1, 2]], [4, 4, 4]) == 13
    assert hypervolume([[1.5]], [4]) == 2.5
    assert hypervolume([], [4, 4]) == 0 == hypervolume([[5, 0], [4, 1], [np.inf, 0], [np.nan, 0]], [4, 4])
    assert hypervolume([[1, 3], [5, 0]], [4, 4]) == 3
    with pytest.raises(InputError, match="do not fit"):
        hypervolume([[1, 2]], [4, 4, 4])
    with pytest.raises(InputError, match="finite"):
        hypervolume([[1, 2]], [np.inf, 4])
    with pytest.raises(InputError, match="minus infinity"):
        hypervolume([[-np.inf, 2]], [4, 4])


@given(small)
@settings(max_examples=60)
def test_hypervolume_equals_inclusion_exclusion(rows: list[list[int]]) -> None:
    values = np.array(rows, dtype=float)
    reference = np.full(values.shape[1], 4.0)
    assert (
        abs(hypervolume(values, reference) - inclusion_exclusion(values, reference)) <= 1e-12 * 6.0 ** values.shape[1]
    )


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolume_equals_moocore(objectives: int) -> None:
    points = np.random.default_rng(0).random((100, objectives)) * 1.2
    expected = moocore.hypervolume(points, ref=np.ones(objectives))
    assert abs(hypervolume(points, np.ones(objectives)) - expected) <= 1e-12


@given(small)
def test_curve_is_the_hypervolume_of_every_prefix(rows: list[list[int]]) -> None:
    values, reference = np.array(rows, dtype=float), np.full(len(rows[0]), 4.0)
    values[::4, 0] = np.inf
    expected = [hypervolume(values[:k + 1], reference) for k in range(len(rows))]
    assert np.allclose(curve(values, reference), expected, rtol=0, atol=1e-12)


def test_frame() -> None:
    values = [[1.0, 30, 5], [3, 10, 5], [9, 90, 5], [np.inf, 0, 5]]
    ideal, nadir = bounds(values)
    assert ideal.tolist() == [1, 10, 5] and nadir.tolist() == [3, 30, 5]
    assert normalise([[1, 30, 5], [3, 10, 6]], ideal, nadir).tolist() == [[0, 1, 0], [1, 0, 1]]
    assert np.allclose(reference_point(ideal, nadir), [3.2, 32, 5.1]) and np.allclose(
        reference_point(ideal, nadir, 0), nadir
    )
    with pytest.raises(InputError, match="at least one point"):
        bounds([[np.inf, 1]])
