"""Pareto dominance: ranks, crowding, and an archive that forgets nothing. All values are to be minimised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from nasopt.errors import InputError

T = TypeVar("T")


def ranks(values: NDArray[np.float64], violation: NDArray[np.float64] | None = None) -> NDArray[np.int64]:
    """Non-dominated ranks, 0 the best (Deb et al., IEEE TEC 2002, §III-A).

    With a violation, constraint domination holds (§VI): whatever is feasible comes before whatever is not, and of two
    infeasible points the one that violates less is the better.

    Args:
        values: shape (n, objectives).
        violation: shape (n,), 0 where feasible; None: everything is.

    Returns:
        Shape (n,). Equal points have equal ranks.
    """
    if violation is None or not violation.any():
        return np.asarray(moocore.pareto_rank(values), dtype=np.int64)
    rank = np.empty(len(values), dtype=np.int64)
    feasible = violation == 0
    rank[feasible] = moocore.pareto_rank(values[feasible])
    first = rank[feasible].max(initial=-1) + 1
    rank[~feasible] = first + np.unique(violation[~feasible], return_inverse=True)[1]
    return rank


def crowding(values: NDArray[np.float64], rank: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """Crowding distance within every rank (Deb et al., IEEE TEC 2002, §III-B).

    The distance of a point is the sum over the objectives of the gap between its two neighbours, relative to the range
    of its rank; the two ends of every objective are infinitely far. Ties in an objective stand in the rows' order.

    Args:
        values: shape (n, objectives).
        rank: shape (n,); None: all points are of one rank.
    """
    n = len(values)
    distance = np.zeros(n)
    if n == 0:
        return distance
    rank = np.zeros(n, dtype=np.int64) if rank is None else rank
    ends = np.ones(n + 1, dtype=bool)
    with np.errstate(invalid="ignore"):
        for column in values.T:
            order = np.lexsort((column, rank))
            v, r = column[order], rank[order]
            np.not_equal(r[1:], r[:-1], out=ends[1:-1])
            first, last = np.flatnonzero(ends[:-1]), np.flatnonzero(ends[1:])
            span = np.repeat(v[last] - v[first], last - first + 1)
            gap = np.zeros(n)
            np.divide(v[2:] - v[:-2], span[1:-1], out=gap[1:-1], where=(span[1:-1] > 0) & np.isfinite(span[1:-1]))
            gap[first] = gap[last] = np.inf
            distance[order] += gap
    return distance


class Archive(Generic[T]):
    """Every non-dominated point ever added, with something attached to it; its hypervolume never decreases.

    Of several points with one objective vector the first added is kept. Points with an infinite or undefined value and
    points that violate a constraint never enter.

    Args:
        objectives: number of objectives.

    Attributes:
        values: shape (points, objectives), in the order in which they were added.
        payloads: what was given with them, in the same order.
    """

    def __init__(self, objectives: int) -> None:
        self.values: NDArray[np.float64] = np.empty((0, objectives))
        self.payloads: list[T] = []

    def __len__(self) -> int:
        return len(self.values)

    def add(self, values: ArrayLike, payloads: Sequence[T], violation: ArrayLike | None = None) -> NDArray[np.bool_]:
        """Adds a batch at once.

        Args:
            values: shape (n, objectives).
            payloads: n of them.
            violation: shape (n,), 0 where feasible; None: everything is.

        Returns:
            Shape (n,): which of the batch are in the archive now.

        Raises:
            InputError: the shapes do not fit.
        """
        batch = np.asarray(values, dtype=float)
        if batch.ndim != 2 or batch.shape[1] != self.values.shape[1] or len(batch) != len(payloads):
            raise InputError(
                f"an archive of {self.values.shape[1]} objectives was given values of shape {batch.shape} and "
                f"{len(payloads)} payloads: give one row and one payload a point."
            )
        entered = np.zeros(len(batch), dtype=bool)
        able = np.isfinite(batch).all(axis=1)
        if violation is not None:
            able &= np.asarray(violation) == 0
        new = np.flatnonzero(able)
        new = new[~_covered(batch[new], self.values)]
        if not len(new):
            return entered
        both = np.concatenate([self.values, batch[new]])
        keep = np.asarray(moocore.is_nondominated(both, keep_weakly=False))  # of equal rows it keeps the first
        old = len(self.values)
        entered[new[keep[old:]]] = True
        self.payloads = [p for p, k in zip(self.payloads, keep[:old].tolist(), strict=True) if k]
        self.payloads += [payloads[k] for k in np.flatnonzero(entered).tolist()]
        self.values = both[keep]
        return entered


def _covered(points: NDArray[np.float64], front: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points some row of the front equals or dominates, shape (points,); in slices, to bound the memory."""
    covered = np.zeros(len(points), dtype=bool)
    for k in range(0, len(points), 256):
        below = np.asarray(front[None] <= points[k:k + 256, None])
        covered[k:k + 256] = np.any(np.all(below, axis=2), axis=1)
    return covered
