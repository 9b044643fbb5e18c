"""The certificate of gradient searches that ran: what their histories allow to say, and no more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nasopt.analysis.convergence import MIN_STEPS, Certificate, certificate
from nasopt.errors import InputError
from nasopt.pipeline.folder import Folder
from nasopt.pipeline.ledger import Ledger
from nasopt.pipeline.relaxed import recipe_of
from nasopt.pipeline.setup import Config
from nasopt.protocols import Storage
from nasopt.run.storage import Sqlite
from nasopt.strategies.catalogue import HISTORIES, PREFERENCE
from nasopt.strategies.gradient import history_of
from nasopt.strategies.watch import DEEP, History, Slice, recording


@dataclass(frozen=True)
class Searched:
    """A run of a gradient strategy: its folder, what was asked for, which data it saw, and its history."""

    path: Path
    config: Config
    data: str
    history: History


@dataclass(frozen=True)
class Certified:
    """Runs that differ in their seeds, and their certificate."""

    runs: tuple[Searched, ...]
    certificate: Certificate

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"certificate": self.certificate.to_json(),
                "runs": [{"run": str(r.path), "seed": r.config.seed, "strategy": r.config.strategy, **summary(r.history)}
                         for r in self.runs]}

    def text(self) -> str:
        """Several lines to print."""
        head = f"{self.runs[0].config.strategy} on {self.runs[0].config.data}, space {self.runs[0].config.space}"
        lines = [line for r in self.runs for line in (f"Seed {r.config.seed}:", *sentences(r.history))]
        return "\n".join([head, self.certificate.text(), *lines])


def certify(paths: Sequence[Path]) -> Certified:
    """The certificate of runs that differ in their seeds.

    Raises:
        InputError: a folder that holds no run, a run without a gradient strategy or with too few slices, runs that differ in more
            than their seeds, or one seed twice.
    """
    runs = tuple(read(path) for path in paths)
    first = runs[0]
    for other in runs[1:]:
        for what, one, two in (("data", first.data, other.data), ("space", first.config.space, other.config.space),
                               ("strategy", first.config.strategy, other.config.strategy),
                               ("budget", first.config.seconds, other.config.seconds),
                               ("network", first.history.groups, other.history.groups),
                               ("settings", _settings(first.config), _settings(other.config))):
            if one != two:
                raise InputError(f"{first.path} and {other.path} differ in their {what}: give runs of one problem and recipe "
                                 "that differ in their seeds.")
    seeds = [r.config.seed for r in runs]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"two of the runs have one seed ({', '.join(map(str, seeds))}): give runs of different seeds.")
    return Certified(runs, certificate([recording(r.history.slices) for r in runs], None))


def _settings(config: Config) -> Config:
    """All settings but the seed and how the data were given, which are compared by what they are."""
    return replace(config, seed=0, data="", given=False, image_size=None)


def read(path: Path) -> Searched:
    """A run of a gradient strategy.

    Raises:
        InputError: there is none, or it has too few slices.
    """
    folder = Folder(path)
    folder.require()
    with closing(Sqlite(folder.study, readonly=True)) as storage:
        ledger = Ledger(storage)
        if ledger.recall("config") is None:
            raise InputError(f"{path} was interrupted before it began: remove it and start again.")
        config = Config.from_json(ledger.recall("config"))
        if config.strategy not in HISTORIES:
            why = "has no one α to certify" if config.strategy == PREFERENCE else "follows no gradient"
            raise InputError(f"{path} was searched by {config.strategy}, which {why}: give a run of "
                             "nasopt search --strategy darts1, or of another of its family.")
        history = kept(storage, config.strategy)
        if history is None or len(history.slices) < MIN_STEPS:
            over = ledger.recall("stopped search") is not None
            raise InputError(f"{path} has {0 if history is None else len(history.slices)} slices of its gradient search, and a "
                             f"certificate takes {MIN_STEPS}: "
                             + ("search again with a larger --budget." if over else f"go on with 'nasopt resume {path}'."))
        return Searched(path, config, str(ledger.recall("data")), history)


def kept(storage: Storage, strategy: str) -> History | None:
    """The history that a gradient strategy has kept in a run's storage; None before its first slice."""
    blob = storage.get(f"{recipe_of(strategy)}.weights")
    return None if blob is None else history_of(blob)


# ------------------------------------------------------------------------------------------------------------- in words
def sentences(history: History) -> list[str]:
    """What one search showed, with its numbers."""
    ends = [(k, s.watched.extremes) for k, s in enumerate(history.slices, 1) if s.watched and s.watched.extremes]
    found = [f"Extreme eigenvalues of ∇²_α L_val after slice {k}: {e.low:.4g} ± {e.low_residual:.2g} and {e.high:.4g} ± "
             f"{e.high_residual:.2g} (Lanczos, {e.products} products; within ± there is an eigenvalue)." for k, e in ends[-1:]]
    rest = [s.watched.residual for s in history.slices if s.watched]
    if rest and rest[0] > 0:
        found.append(f"The inner residual ‖∇_w L_train‖ went from {rest[0]:.4g} to {rest[-1]:.4g}, "
                     f"{rest[-1] / rest[0]:.0%} of what it was after slice 1.")
    bias = [b for s in history.slices if (b := _numbers(s)["bias"]) is not None]
    if bias:
        more = f"went from {bias[0]:.4g} to {bias[-1]:.4g} ({len(bias)} looks)"
        found.append(f"‖b‖, the hypergradient's distance from that of {DEEP} terms of Neumann's series, "
                     f"{more if len(bias) > 1 else f'was {bias[0]:.4g} (1 look)'}; along negative curvature of L_train in w the "
                     "series grows, and this may be too large.")
    last = history.slices[-1]
    if math.isfinite(last.ranks):
        found.append(f"Rank correlation of the mixture's shares with the measured accuracy of {last.measured} networks: "
                     f"{last.ranks:.2f}.")
    return [*found, *(history.remarks or ["No alarm."])]


def summary(history: History) -> dict[str, Any]:
    """The history as plain JSON values, None where a number is missing.

    Returns:
        groups: path, rows and labels; shares: softmax(α) of every group, slice, row and option; slices: numbers by name;
        alarms; broken; sentences.
    """
    shares = [[s.scores[k].softmax(1).tolist() for s in history.slices] for k in range(len(history.groups))]
    return {"groups": [asdict(g) for g in history.groups], "shares": shares, "slices": [_numbers(s) for s in history.slices],
            "alarms": [asdict(a) for a in history.alarms], "broken": history.broken, "sentences": sentences(history)}


def _numbers(done: Slice) -> dict[str, float | None]:
    w = done.watched
    ends = None if w is None else w.extremes
    found = {"loss": done.loss, "entropy": done.entropy, "skips": done.skips, "ranks": done.ranks, "measured": done.measured,
             "gradient": math.nan if w is None else np.linalg.norm(w.gradient), "residual": math.nan if w is None else w.residual,
             "bias": math.nan if w is None or w.deep is None else np.linalg.norm(w.gradient - w.deep),
             "high": done.curvature, "low": math.nan if ends is None else ends.low}
    return {k: float(v) if math.isfinite(v) else None for k, v in found.items()}


def report(storage: Storage, strategy: str) -> dict[str, Any] | None:
    """What a run's report shows of its gradient search: `summary` and ``certificate``, the lines of its certificate or why there
    is none; None if the strategy has no one α or has trained no slice."""
    history = kept(storage, strategy) if strategy in HISTORIES else None
    if history is None:
        return None
    try:
        said = certificate([recording(history.slices)], None).text()
    except InputError as problem:
        said = f"No certificate: {problem}"
    if len(history.slices) < MIN_STEPS:
        said = f"No certificate: the search had time for {len(history.slices)} slices, and it takes {MIN_STEPS}."
    return {"strategy": strategy, **summary(history), "certificate": said.splitlines()}
