"""How much an evaluation promises, from normal predictions. All values are to be minimised.

Notation: m candidates, d objectives, p points of the front.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, ndtr

from nasopt.surrogates.gp import Posterior
from nasopt.trial import nondominated

Floats: TypeAlias = NDArray[np.float64]
Region: TypeAlias = tuple[Floats, Floats]


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


def boxes(front: Floats, reference: Floats) -> Iterator[tuple[Floats, Floats]]:
    """The region below ``reference`` that no point of the front dominates, as disjoint boxes (lower, upper), lower bounds
    possibly minus infinity; by a sweep over the last objective.

    Args:
        front: (p, d), mutually non-dominated.
        reference: (d,).
    """
    inside = front[(front < reference).all(axis=1)]
    if len(reference) == 1:
        top = inside.min() if len(inside) else reference[0]
        yield np.array([-np.inf]), np.array([top])
        return
    inside = inside[np.argsort(inside[:, -1], kind="stable")]
    levels = [-np.inf, *np.unique(inside[:, -1]).tolist(), float(reference[-1])]
    for low, high in itertools.pairwise(levels):
        for lower, upper in boxes(_front(inside[inside[:, -1] <= low, :-1]), reference[:-1]):
            yield np.append(lower, low), np.append(upper, high)


def _front(points: Floats) -> Floats:
    return points[nondominated(points)] if len(points) else points


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
    total = np.ones((len(draws[0]), len(lower)))
    for k, drawn in enumerate(draws):
        edges, places = np.unique(np.concatenate([lower[:, k], upper[:, k]]), return_inverse=True)
        below = np.zeros((len(drawn), len(edges)))  # E[(edge - Y)^+]
        for value in drawn.T:
            below += np.maximum(edges - value[:, None], 0.0)
        below /= drawn.shape[1]
        total *= below[:, places[len(lower):]] - below[:, places[:len(lower)]]
    return np.asarray(total.sum(axis=1))
