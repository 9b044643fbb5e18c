"""An ensemble of randomised trees as a surrogate: n log n, for the thousands of observations that a process cannot take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor

from nasopt.surrogates.features import Groups
from nasopt.surrogates.gp import Posterior

Floats: TypeAlias = NDArray[np.float64]

TREES, LEAF = 64, 2
"""Trees of an ensemble, and observations in a leaf at least."""


@dataclass(frozen=True, eq=False)
class Forest:
    """A fitted ensemble of extremely randomised trees (Geurts, Ernst & Wehenkel, Machine Learning 63, 2006); what its trees
    disagree by is its deviation (Hutter, Hoos & Leyton-Brown, LION 2011). Make it with `fit`."""

    _trees: ExtraTreesRegressor

    def predict(self, points: Groups) -> Posterior:
        """Means and deviations over the trees, (m,)."""
        each = self._each(points)
        return Posterior(each.mean(axis=0), np.maximum(each.std(axis=0), 1e-9))

    def sample(self, points: Groups, generator: np.random.Generator, n: int = 1) -> Floats:
        """The predictions of ``n`` random trees, (n, m)."""
        return self._each(points)[generator.integers(len(self._trees.estimators_), size=n)]

    def believing(self, points: Groups) -> Forest:
        """The same ensemble: its own means would teach it nothing."""
        return self

    def _each(self, points: Groups) -> Floats:
        joined = np.concatenate(points, axis=1).astype(np.float32)
        return np.stack([tree.predict(joined, check_input=False) for tree in self._trees.estimators_])


def fit(x: Groups, y: Floats, seed: int) -> Forest:
    """Fits an ensemble to n observations, features in groups (n, width) and values (n,); its randomness is the seed's."""
    trees = ExtraTreesRegressor(TREES, min_samples_leaf=LEAF, max_features=0.5, bootstrap=True, random_state=seed % 2**32)
    return Forest(trees.fit(np.concatenate(x, axis=1), y))
