"""What a search is about and what it found: objectives, constraints, asks, trials, studies. Frozen, and plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nasopt.space import Arch, Space

Metrics: TypeAlias = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Objective:
    """A metric to optimise: its key in the metrics, its unit, and the direction."""

    name: str
    unit: str = ""
    minimise: bool = True


@dataclass(frozen=True, slots=True)
class Constraint:
    """``metric <= upper``. The metric need not be an objective."""

    name: str
    upper: float
    unit: str = ""

    def violation(self, metrics: Metrics) -> float:
        """How far the metric lies above the bound, relative to it; 0 if it holds or the metric was not measured."""
        value = metrics.get(self.name)
        if value is None:
            return 0.0
        excess = value - self.upper
        return max(0.0, excess / abs(self.upper) if self.upper else excess) if not math.isnan(value) else math.inf

    def met(self, metrics: Metrics) -> bool:
        """Whether the metric was measured and the bound holds."""
        return self.name in metrics and self.violation(metrics) == 0

    def __str__(self) -> str:
        return f"{self.name} <= {self.upper:g}{self.unit and ' ' + self.unit}"


@dataclass(frozen=True, slots=True)
class Problem:
    """A search space, what to optimise in it, and what must hold.

    Raises:
        ValueError: no objective, or one twice.
    """

    space: Space
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()

    def __post_init__(self) -> None:
        names = [o.name for o in self.objectives]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a problem needs at least one objective and each only once, got {names}.")

    def values(self, metrics: Metrics) -> list[float]:
        """The objectives as numbers to minimise; inf where a metric is missing or NaN."""
        out = []
        for o in self.objectives:
            v = metrics.get(o.name, math.nan)
            out.append(math.inf if math.isnan(v) else v if o.minimise else -v)
        return out

    def violation(self, metrics: Metrics) -> float:
        """The sum of the relative violations of all constraints; 0: feasible (Deb et al., IEEE TEC 2002, §VI)."""
        return sum(c.violation(metrics) for c in self.constraints)

    def accepts(self, trial: Trial) -> bool:
        """Whether a trial is a result: of full fidelity, without error, with every objective, and no constraint is violated."""
        return (trial.error is None and trial.ask.fidelity >= 1 and self.violation(trial.metrics) == 0
                and all(math.isfinite(v) for v in self.values(trial.metrics)))


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for an evaluation.

    Attributes:
        number: counts the asks of a run from 0.
        arch: the architecture.
        fidelity: share of the full effort, in (0, 1].
        seed: the run's seed; an estimator draws its randomness from ``seed.rng(ask.seed, ask.number, stream)``.
        by: who proposed it.
    """

    number: int
    arch: Arch
    fidelity: float = 1.0
    seed: int = 0
    by: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """The answer to an ask: metrics, or an error (then the metrics hold what was known before it).

    ``cost`` is in seconds. A trial without error may lack an objective only if it violates a constraint: then nothing
    dearer was measured.
    """

    ask: Ask
    metrics: Metrics
    cost: float
    error: str | None = None


def ask_to_json(ask: Ask) -> dict[str, Any]:
    """An ask as plain JSON values."""
    return {"number": ask.number, "arch": dict(ask.arch), "fidelity": ask.fidelity, "seed": ask.seed, "by": ask.by}


def ask_from_json(data: Mapping[str, Any]) -> Ask:
    """The inverse of `ask_to_json`."""
    return Ask(data["number"], data["arch"], data["fidelity"], data["seed"], data["by"])


def nondominated(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows of ``values`` (n, objectives; to be minimised) no other row dominates. Equal rows both stay.

    O(n · front) after a lexicographic sort: a row can only be dominated by one before it.
    """
    n = len(values)
    keep = np.zeros(n, dtype=bool)
    order = np.lexsort(values.T[::-1])
    front = np.empty((0, values.shape[1]))
    for k in order:
        v = values[k]
        weakly = (front <= v).all(axis=1)
        if not (weakly & (front < v).any(axis=1)).any():
            keep[k] = True
            front = np.vstack([front, v])
    return keep


@dataclass(frozen=True)
class Study:
    """A problem and the trials made so far, in the order in which they were told."""

    problem: Problem
    trials: tuple[Trial, ...] = field(default_factory=tuple)
    stopped: str = ""

    def feasible(self) -> list[Trial]:
        """Trials of full fidelity without error that hold every objective and violate no constraint."""
        return [t for t in self.trials if self.problem.accepts(t)]

    def front(self) -> list[Trial]:
        """The non-dominated feasible trials, sorted by the first objective."""
        trials = self.feasible()
        if not trials:
            return []
        values = np.array([self.problem.values(t.metrics) for t in trials])
        chosen = np.flatnonzero(nondominated(values))
        return [trials[k] for k in sorted(chosen, key=lambda k: tuple(values[k]))]

    def promoted(self) -> Study:
        """The trials of the highest fidelity that anything feasible had, as if it were the full one; all trials if nothing is."""
        whole = [replace(t, ask=replace(t.ask, fidelity=1.0)) for t in self.trials]
        pairs = list(zip(self.trials, whole, strict=True))
        most = max((t.ask.fidelity for t, full in pairs if self.problem.accepts(full)), default=0.0)
        return replace(self, trials=tuple(full for t, full in pairs if t.ask.fidelity >= most))

    def rows(self) -> list[dict[str, Any]]:
        """One flat dictionary a trial, for a table or a data frame."""
        return [{"number": t.ask.number, "by": t.ask.by, "fidelity": t.ask.fidelity, "cost_s": t.cost, "error": t.error,
                 **t.metrics, **{f"arch.{p}": v for p, v in t.ask.arch.items()}} for t in self.trials]


def problem_to_json(problem: Problem) -> dict[str, Any]:
    """A problem as plain JSON values."""
    from nasopt.space import to_json

    return {"space": to_json(problem.space), "objectives": [asdict(o) for o in problem.objectives],
            "constraints": [asdict(c) for c in problem.constraints]}


def problem_from_json(data: Mapping[str, Any]) -> Problem:
    """The inverse of `problem_to_json`."""
    from nasopt.space import from_json

    return Problem(from_json(data["space"]), tuple(Objective(**o) for o in data["objectives"]),
                   tuple(Constraint(**c) for c in data["constraints"]))


