"""Values of one objective on a scale on which they look normal, and back: Yeo and Johnson's power transformation (Biometrika 87,
2000) of what lies so many interquartile ranges from the median. Unlike Box and Cox's it needs no positive values, so that what is
maximised has it, too: there a few very bad networks would hide how the good ones differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Floats: TypeAlias = NDArray[np.float64]

FEWEST = 4
"""Values below which nothing can be said of their shape."""

RANGE = (-2.0, 2.0)
"""Of the powers that are tried; with 1 nothing is bent."""


@dataclass(frozen=True)
class Power:
    """The transformation; make it with `fit`.

    Attributes:
        middle, spread: what becomes 0, and what becomes about 1.
        power: below 1 large values are brought nearer, above 1 small ones.
    """

    middle: float
    spread: float
    power: float

    def scores(self, values: Floats) -> Floats:
        """The transformed values (equation 2.1)."""
        z = (values - self.middle) / self.spread
        return np.where(z >= 0, _up(np.maximum(z, 0), self.power), -_up(np.maximum(-z, 0), 2 - self.power))

    def values(self, scores: Floats) -> Floats:
        """The values of scores; infinite beyond the largest (smallest) that has one."""
        return self.middle + self.spread * np.where(scores >= 0, _down(np.maximum(scores, 0), self.power),
                                                    -_down(np.maximum(-scores, 0), 2 - self.power))


def fit(values: Floats) -> Power:
    """The transformation by its likelihood under a normal distribution; only shifted and scaled if there are fewer than `FEWEST`
    values or all are equal."""
    middle = float(np.median(values)) if len(values) else 0.0
    quartiles = np.quantile(values, (0.25, 0.75)) if len(values) else np.zeros(2)
    spread = float(quartiles[1] - quartiles[0]) or float(np.std(values)) or 1.0
    if len(values) < FEWEST or values.max() <= values.min():
        return Power(middle, spread, 1.0)
    z = (values - middle) / spread
    stretch = float((np.sign(z) * np.log1p(np.abs(z))).mean())

    def loss(power: float) -> float:  # minus the log-likelihood a value (equation 3.1)
        return 0.5 * float(np.log(Power(0.0, 1.0, power).scores(z).var())) - (power - 1) * stretch

    return Power(middle, spread, float(minimize_scalar(loss, bounds=RANGE, method="bounded").x))


def _up(z: Floats, power: float) -> Floats:
    """((1 + z)^power - 1) / power of z >= 0; log(1 + z) for power 0."""
    logs = np.log1p(z)
    return np.asarray(logs if abs(power) < 1e-9 else np.expm1(power * logs) / power)


def _down(y: Floats, power: float) -> Floats:
    """The inverse of `_up`; infinite where there is none."""
    if abs(power) < 1e-9:
        return np.asarray(np.expm1(y))
    base = power * y
    with np.errstate(divide="ignore", over="ignore"):
        return np.asarray(np.expm1(np.log1p(np.maximum(base, -1.0)) / power))
