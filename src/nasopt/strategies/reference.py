"""NSGA-III: survival by niches around reference directions (Deb & Jain, IEEE TEC 2014; constraints: Jain & Deb, same volume).

Notation: N members of the pool, n survivors, m objectives, H directions. All values are to be minimised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np

from nasopt.space import Arch
from nasopt.strategies.evolution import CrossoverMutation, Evolution, Floats, Ints, Mating, Pool, Variation, place
from nasopt.trial import Problem

TINY = 1e-6
"""Weight of the other axes when the extreme point of one is sought (Deb & Jain 2014, eq. 4), and the least share of the
front's range that counts as an intercept."""


# ------------------------------------------------------------------------------------------------------- directions
def das_dennis(objectives: int, divisions: int) -> Floats:
    """All points of the unit simplex whose coordinates are multiples of 1/divisions, shape (H, objectives), with
    H = C(objectives + divisions - 1, divisions) (Das & Dennis, SIAM J. Optim. 1998).

    >>> das_dennis(2, 2).tolist()
    [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    """
    # where the objectives-1 bars stand among the divisions stars
    bars = np.array(list(combinations(range(objectives + divisions - 1), objectives - 1)), dtype=np.int64)
    left, right = np.full((len(bars), 1), -1), np.full((len(bars), 1), objectives + divisions - 1)
    return np.asarray((np.diff(np.hstack([left, bars, right]), axis=1) - 1) / divisions)


@lru_cache(maxsize=64)
def directions(objectives: int, most: int) -> Floats:
    """As many reference directions as fit into ``most``, shape (H, objectives), but always one along every axis.

    One layer, the finest that fits. With fewer divisions than objectives no direction of it would lie inside the simplex;
    then two, the second half as large around the centre (§IV-B): the numbers are those of the paper's table I.
    """
    if objectives == 1:
        return np.ones((1, 1))
    outer = max(1, _finest(objectives, most))
    first = das_dennis(objectives, outer)
    inner = min(_finest(objectives, most - len(first)), outer - 1)
    if outer >= objectives or not inner:
        return first
    return np.concatenate([first, 0.5 * das_dennis(objectives, inner) + 0.5 / objectives])


def _finest(objectives: int, most: int) -> int:
    """The largest number of divisions of which at most ``most`` directions come, 0 if there is none."""
    divisions = 0
    while math.comb(objectives + divisions, divisions + 1) <= most:
        divisions += 1
    return divisions


# ------------------------------------------------------------------------------------------------------------- parts
def niches(pool: Pool, n: int, generator: np.random.Generator) -> Ints:
    """Survival by rank; in the rank that fits only in part, always next a member of the niche with the fewest survivors.

    A niche is what lies nearest to one of at most ``n`` reference directions once the objectives are normalised
    (algorithms 1 to 4). The first of an empty niche is the nearest; after it members are taken at random, but copies of
    an objective vector only after all others of the niche, so that the many equal vectors of a discrete problem do not
    crowd out the rest. The ideal and the extreme points are those of the members at hand. With one objective this is
    plain elitist selection.
    """
    order = np.lexsort((generator.random(len(pool)), pool.rank))
    if len(pool) <= n:
        return order
    last = pool.rank[order[n - 1]]
    sure, border = order[pool.rank[order] < last], order[pool.rank[order] == last]
    if pool.violation[border[0]] > 0:
        return order[:n]
    scaled = normalised(pool.values[np.concatenate([sure, border])], pool.values[pool.rank == 0])
    niche, distance = associate(scaled, directions(pool.values.shape[1], n))
    held = np.bincount(niche[:len(sure)], minlength=niche.max() + 1)
    turn = _turns(pool.values[border], niche[len(sure):], distance[len(sure):], held, generator)
    return np.concatenate([sure, border[turn[:n - len(sure)]]])


def normalised(values: Floats, front: Floats) -> Floats:
    """``values`` (k, m) with the ideal point at 0 and the intercepts of the hyperplane through the extreme points at 1
    (algorithm 2).

    Where the extreme points span no hyperplane with intercepts within the values' range, the worst of the ``front``
    (l, m), and where that has no range, the worst of all values takes the place of the intercept.
    """
    ideal = values.min(axis=0)
    moved, reach = values - ideal, values.max(axis=0) - ideal
    intercepts = _intercepts(moved)
    if intercepts is None or (intercepts < TINY * reach).any() or (intercepts > reach * (1 + TINY)).any():
        intercepts = front.max(axis=0) - ideal
        intercepts = np.where(intercepts > TINY * reach, intercepts, reach)
    return np.asarray(moved / np.where(intercepts > 0, intercepts, 1.0))


def _intercepts(moved: Floats) -> Floats | None:
    """Where the hyperplane through the extreme points cuts the axes, shape (m,); None if they span none."""
    m = moved.shape[1]
    weights = np.where(np.eye(m, dtype=bool), 1.0, TINY)
    extremes = moved[(moved[:, None] / weights).max(axis=2).argmin(axis=0)]  # eq. 4
    try:
        slopes = np.linalg.solve(extremes, np.ones(m))
    except np.linalg.LinAlgError:
        return None
    if not (slopes > 0).all() or not np.allclose(extremes @ slopes, 1.0):
        return None
    return np.asarray(1 / slopes)


def associate(scaled: Floats, rays: Floats) -> tuple[Ints, Floats]:
    """The nearest of the ``rays`` (H, m) from the origin to each of the normalised values (k, m), and its perpendicular
    distance, shape (k,) each (algorithm 3)."""
    units = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    along = scaled @ units.T
    # |x|² - (x·u)² is smallest where x·u is largest; no value lies behind the origin
    nearest = along.argmax(axis=1)
    foot = along[np.arange(len(scaled)), nearest, None] * units[nearest]
    return nearest, np.asarray(np.linalg.norm(scaled - foot, axis=1))


def _turns(values: Floats, niche: Ints, distance: Floats, held: Ints, generator: np.random.Generator) -> Ints:
    """The order in which members are taken if always the niche with the fewest survivors has its turn, ties at random
    (algorithm 4).

    Args:
        values, niche, distance: of the members, (k, m), (k,) and (k,).
        held: how many survivors every niche has before.
    """
    chance = generator.random(len(niche))
    kind = np.unique(values, axis=0, return_inverse=True)[1].ravel()
    copy = place(kind, (chance,))
    rival = np.where(held[niche] == 0, distance, 0.0)
    nearest = place(niche, (chance, rival)) == 0
    level = held[niche] + place(niche, (chance, copy, ~(nearest & (held[niche] == 0))))
    return np.lexsort((generator.random(len(niche)), level))


def by_violation(pool: Pool, n: int, generator: np.random.Generator) -> Ints:
    """Parents at random, but of two the one that violates less (Jain & Deb, IEEE TEC 2014, algorithm 2): survival alone
    selects among feasible ones."""
    pairs = generator.integers(0, len(pool), size=(n, 2, 2))
    violation = pool.violation[pairs]
    return np.where(violation[..., 1] < violation[..., 0], pairs[..., 1], pairs[..., 0])


# ------------------------------------------------------------------------------------------------------------ recipe
VARIATION = CrossoverMutation()


def NSGA3(problem: Problem, seed: int = 0, population: int = 92, mating: Mating = by_violation,  # noqa: N802
          variation: Variation = VARIATION, immigrants: float = 0.05, initial: Sequence[Arch] = (),
          repeat: bool = False) -> Evolution:
    """NSGA-III (Deb & Jain, IEEE TEC 2014) for any number of objectives, with as many reference directions as fit into the
    population. See `Evolution` for the arguments."""
    return Evolution(problem, seed, mating=mating, variation=variation, survival=niches, population=population,
                     immigrants=immigrants, initial=initial, repeat=repeat, name="nsga3")
