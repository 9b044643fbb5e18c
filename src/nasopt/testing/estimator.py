"""The conformance kit of the estimator seam: what executors, the loop and resuming rely on.

    from nasopt.testing.estimator import check_estimator
    check_estimator(MyEstimator(...), [Ask(0, arch), Ask(1, other_arch)])
"""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Collection, Mapping, Sequence

from nasopt.protocols import Estimator
from nasopt.trial import Ask, Metrics


def check_estimator(estimate: Estimator, asks: Sequence[Ask], measured: Collection[str] = ()) -> None:
    """Runs every check: metrics are finite numbers, the ask is left alone, and an answer follows from its ask alone,
    whatever was asked before (else a resumed run is not the uninterrupted one).

    Args:
        estimate: the estimator under test.
        asks: at least two that it can evaluate, with different numbers.
        measured: metrics read from a clock, which may differ from call to call.

    Raises:
        AssertionError: a check failed; the message says which and how.
    """
    _require(len({a.number for a in asks}) == len(asks) >= 2, "give at least two asks with different numbers.")
    first = [_answer(estimate, a) for a in asks]
    again = [_answer(estimate, a) for a in reversed(asks)][::-1]
    for ask, one, two in zip(asks, first, again, strict=True):
        _require(one.keys() == two.keys(), f"ask {ask.number}: the metrics are {sorted(one)}, then {sorted(two)}.")
        for name in one.keys() - set(measured):
            _require(one[name] == two[name], f"ask {ask.number}: metric {name} is {one[name]!r}, and {two[name]!r} "
                     "when asked again in another order: draw from seed.rng(ask.seed, ask.number, ...).")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _answer(estimate: Estimator, ask: Ask) -> Metrics:
    before = copy.deepcopy(ask)
    metrics = estimate(ask)
    _require(ask == before, f"ask {ask.number} was changed by the estimator: {ask} instead of {before}.")
    _require(isinstance(metrics, Mapping) and len(metrics) > 0, f"ask {ask.number}: {metrics!r} is no metrics.")
    for name, value in metrics.items():
        _require(isinstance(name, str), f"ask {ask.number}: the metric's name {name!r} is not a string.")
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        _require(number and math.isfinite(value), f"ask {ask.number}: metric {name} is {value!r}, not a finite number.")
    return dict(metrics)
