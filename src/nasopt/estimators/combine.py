"""Estimators made of estimators: in stages, and from memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nasopt.errors import EstimateError, InputError, one_line
from nasopt.protocols import Estimator
from nasopt.space import Space, canonical, key
from nasopt.trial import Ask, Metrics, Problem


class Staged:
    """Several estimators, cheap ones first. As soon as what is known violates a constraint the rest is left out, so
    nothing infeasible is trained. Later stages overwrite metrics of earlier ones.

    Args:
        problem: whose constraints count.
        stages: in this order, at least one.

    Raises:
        InputError: no stage.
        EstimateError: (when called) a later stage failed; carries the metrics of those before it.
    """

    def __init__(self, problem: Problem, stages: Sequence[Estimator]) -> None:
        if not stages:
            raise InputError("Staged has no stages: give at least one estimator.")
        self.problem = problem
        self.stages = tuple(stages)

    def __call__(self, ask: Ask, /) -> Metrics:
        known: dict[str, float] = {}
        for stage in self.stages:
            known.update(_keeping(stage, ask, known))
            if self.problem.violation(known) > 0:
                break
        return known


def _keeping(stage: Estimator, ask: Ask, known: Metrics) -> Metrics:
    """The stage's answer; if it fails, what was known before is kept."""
    try:
        return stage(ask)
    except EstimateError as error:
        raise EstimateError(str(error), {**known, **error.metrics}) from error
    except Exception as error:
        if not known:
            raise
        raise EstimateError(one_line(error), known) from error


class Cached:
    """Answers an architecture that is the same network as an earlier one (`space.canonical`), at the same fidelity and
    seed, from memory.

    The estimator gets the canonical architecture, numbered by its name instead of by the ask: the answer then follows
    from seed, network and fidelity alone, and neither resuming nor another order of evaluations changes it. Failures
    are not remembered. A copy sent to another process starts with what is in memory and learns on its own.

    Args:
        estimate: asked for what is not in memory.
        space: whose architectures are asked for.
    """

    def __init__(self, estimate: Estimator, space: Space) -> None:
        self.estimate = estimate
        self.space = space
        self._known: dict[tuple[str, float, int], dict[str, float]] = {}

    def __call__(self, ask: Ask, /) -> Metrics:
        arch = canonical(self.space, ask.arch)
        name = key(arch)
        place = name, ask.fidelity, ask.seed
        if place not in self._known:
            # 52 bits: exact in every number format on the way.
            self._known[place] = dict(self.estimate(replace(ask, arch=arch, number=int(name, 16) >> 12)))
        return dict(self._known[place])


class Known:
    """Answers architectures whose metrics are known from elsewhere, and asks the estimator for all others.

    Args:
        metrics: `space.key` of an architecture -> its metrics at full fidelity.
        estimate: asked for what is not known.
    """

    def __init__(self, metrics: Mapping[str, Metrics], estimate: Estimator) -> None:
        self.metrics = metrics
        self.estimate = estimate

    def __call__(self, ask: Ask, /) -> Metrics:
        found = self.metrics.get(key(ask.arch)) if ask.fidelity == 1 else None
        return self.estimate(ask) if found is None else found
