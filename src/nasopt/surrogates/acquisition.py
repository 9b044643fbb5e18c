"""How much an evaluation promises, from normal predictions. All values are to be minimised.

Notation: m candidates, d objectives, p points of the front.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, ndtr

from nasopt.surrogates.gp import Posterior
from nasopt.trial import nondominated

Floats: TypeAlias = NDArray[np.float64]
Region: TypeAlias = tuple[Floats, Floats]
Point: TypeAlias = tuple[float, ...]


def log_expected_improvement(predicted: Posterior, best: float) -> Floats:
    """The logarithm of the expected improvement below ``best``, (m,) (Jones, Schonlau & Welch, 1998), computed so that it keeps
    its order where the improvement itself is 0 in floating point (Ament et al., NeurIPS 2023)."""
    z = (best - predicted.mean) / predicted.deviation
    log_density = -0.5 * (z**2 + np.log(2 * np.pi))
    above, below = np.maximum(z, 0.0), np.minimum(z, 0.0)
    # density + z cdf, for z < 0 with the density taken out: 1 + z cdf / density
    rest = 1 + below * np.sqrt(np.pi / 2) * erfcx(-below / np.sqrt(2))
    direct = np.log(np.exp(-0.5 * above**2) / np.sqrt(2 * np.pi) + above * ndtr(above))
    return np.asarray(np.where(z > 0, direct, log_density + np.log(np.maximum(rest, 1e-300))) + np.log(predicted.deviation))


def boxes(front: Floats, reference: Floats) -> Iterator[tuple[Point, Point]]:
    """The region below ``reference`` that no point of the front dominates, as disjoint boxes (lower, upper), lower bounds
    possibly minus infinity; by a sweep over the last objective, in which a box lasts while its base does. In three objectives
    these are O(p).

    Args:
        front: (p, d), mutually non-dominated.
        reference: (d,).
    """
    inside = front[(front < reference).all(axis=1)]
    yield from _swept(tuple(sorted(map(tuple, inside.tolist()), key=lambda point: point[-1])), tuple(reference.tolist()))


def _swept(front: Sequence[Point], reference: Point) -> Iterator[tuple[Point, Point]]:
    """The same of points in the order of their last objective."""
    if len(reference) == 1:
        yield (-np.inf,), min([reference, *front])
        return
    bases: dict[tuple[Point, Point], float] = {}  # a box of the other objectives -> from where on it is there
    low, shadow = -np.inf, list[Point]()
    for high in [*dict.fromkeys(point[-1] for point in front), reference[-1]]:
        now = dict.fromkeys(_swept(shadow, reference[:-1]))
        for lower, upper in [base for base in bases if base not in now]:
            yield (*lower, bases[lower, upper]), (*upper, low)
            del bases[lower, upper]
        for base in now:
            bases.setdefault(base, low)
        low = high
        shadow = _least([*shadow, *(point[:-1] for point in front if point[-1] == high)])
    for (lower, upper), since in bases.items():
        yield (*lower, since), (*upper, low)


def _least(points: list[Point]) -> list[Point]:
    """The non-dominated ones, in the order of their last objective."""
    if not points:
        return []
    found = np.array(sorted(set(points), key=lambda point: point[-1]))
    return [tuple(point) for point in found[nondominated(found)].tolist()]


def region(front: Floats, reference: Floats) -> Region:
    """The lower and upper corners of the `boxes`, (boxes, d) each."""
    pairs = list(boxes(front, reference))
    return np.array([lower for lower, _ in pairs]), np.array([upper for _, upper in pairs])


def expected_hypervolume_improvement(draws: Sequence[Floats], region: Region) -> Floats:
    """The expected gain of hypervolume, (m,), of candidates whose objectives are independent, by the disjoint `boxes`: in each,
    the product over the objectives of E[(upper - max(lower, Y))^+] (Emmerich & Klinkenberg, 2008; Yang et al., 2019).

    Args:
        draws: one matrix (m, q) an objective: equally probable values of every candidate.
        region: that the front leaves.
    """
    lower, upper = region
    gains = np.zeros(len(draws[0]))
    luckiest = np.stack([drawn.min(axis=1) for drawn in draws], axis=1)
    some = np.flatnonzero(np.any(np.all(luckiest[:, None] < upper, axis=2), axis=1))  # the others add nothing in any draw
    gains[some] = _gains([drawn[some] for drawn in draws], lower, upper)
    return gains


def _gains(draws: Sequence[Floats], lower: Floats, upper: Floats) -> Floats:
    total = np.ones((len(draws[0]), len(lower)))
    for k, drawn in enumerate(draws):
        edges, places = np.unique(np.concatenate([lower[:, k], upper[:, k]]), return_inverse=True)
        below = np.zeros((len(drawn), len(edges)))  # E[(edge - Y)^+]
        for value in drawn.T:
            below += np.maximum(edges - value[:, None], 0.0)
        below /= drawn.shape[1]
        total *= below[:, places[len(lower):]] - below[:, places[:len(lower)]]
    return np.asarray(total.sum(axis=1))
