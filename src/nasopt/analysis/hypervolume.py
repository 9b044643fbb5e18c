"""The hypervolume indicator and the fixed frame it is measured in. All values are to be minimised."""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from nasopt.analysis.pareto import Archive
from nasopt.errors import InputError


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """The volume that the points dominate within the reference point (Zitzler & Thiele, IEEE TEC 1999).

    Args:
        points: shape (n, objectives). A point that is not better than the reference in every objective adds nothing.
        reference: shape (objectives,).

    Raises:
        InputError: the shapes do not fit, or the reference is not finite.
    """
    ref = np.asarray(reference, dtype=float)
    values = np.asarray(points, dtype=float)
    if ref.ndim != 1 or not np.isfinite(ref).all():
        raise InputError(f"the reference point {ref.tolist()} must be one finite number an objective.")
    if values.size and (values.ndim != 2 or values.shape[1] != len(ref)):
        raise InputError(f"points of shape {values.shape} do not fit a reference point of {len(ref)} objectives.")
    if not values.size:
        return 0.0
    inside = values[(values < ref).all(axis=1)]
    if np.isneginf(inside).any():
        raise InputError("a point is minus infinity in an objective: its hypervolume is not defined.")
    return float(moocore.hypervolume(inside, ref=ref)) if len(inside) else 0.0


def curve(values: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """The hypervolume of everything seen so far after each evaluation, shape (n,): the anytime curve of a search.

    Args:
        values: shape (n, objectives), in the order of evaluation; rows that failed are infinite.
        reference: shape (objectives,), fixed before the comparison.
    """
    rows = np.asarray(values, dtype=float)
    ref = np.asarray(reference, dtype=float)
    archive: Archive[None] = Archive(len(ref))
    out = np.zeros(len(rows))
    for k, row in enumerate(rows):
        changed = bool((row < ref).all()) and archive.add(row[None], [None])[0]
        out[k] = hypervolume(archive.values, ref) if changed else (out[k - 1] if k else 0.0)
    return out


def bounds(values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ideal and the nadir point, shape (objectives,) each, of the non-dominated finite rows.

    Take them from the known front, or once from everything that all compared searches found: a frame that moves with
    the results makes hypervolumes incomparable.

    Raises:
        InputError: no row is finite.
    """
    rows = np.asarray(values, dtype=float)
    finite = rows[np.isfinite(rows).all(axis=1)]
    if not len(finite):
        raise InputError("the frame of a report needs at least one point that is finite in every objective.")
    front = finite[np.asarray(moocore.is_nondominated(finite))]
    return front.min(axis=0), front.max(axis=0)


def normalise(values: ArrayLike, ideal: ArrayLike, nadir: ArrayLike) -> NDArray[np.float64]:
    """Values with the ideal point at 0 and the nadir at 1; an objective without range is only shifted."""
    low = np.asarray(ideal, dtype=float)
    span = np.asarray(nadir, dtype=float) - low
    return np.asarray((np.asarray(values, dtype=float) - low) / np.where(span > 0, span, 1.0))


def reference_point(ideal: ArrayLike, nadir: ArrayLike, margin: float = 0.1) -> NDArray[np.float64]:
    """The nadir moved outwards by ``margin`` of the range, so that the front's ends count (Ishibuchi et al., 2018).

    An objective without range moves by ``margin`` itself.
    """
    low, high = np.asarray(ideal, dtype=float), np.asarray(nadir, dtype=float)
    return np.asarray(high + margin * np.where(high > low, high - low, 1.0))
