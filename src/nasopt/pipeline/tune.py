"""The hyper-parameters of one network's training, tuned with Optuna on the validation part of a finished run.

The log (``tune/ID.db``) is the whole state: every proposal follows from the seed, its number and the trainings before it, so
that a tuning which is cut off goes on as if it had never stopped.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nasopt import seed as seeds
from nasopt.errors import InputError, one_line, unknown
from nasopt.nets import choices
from nasopt.nets.train import Augment, Recipe, error, fit
from nasopt.pipeline import final
from nasopt.pipeline.folder import Folder
from nasopt.pipeline.kept import Kept
from nasopt.pipeline.ledger import Ledger
from nasopt.pipeline.progress import Display, Watch
from nasopt.pipeline.setup import Setup
from nasopt.run.storage import Sqlite
from nasopt.space import from_labels
from nasopt.trial import nondominated

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import TrialState
except ImportError as missing:
    raise InputError(f"tuning needs the package {missing.name!r}, which is not installed: "
                     "run pip install 'nasopt[optuna]'.") from missing

from nasopt.strategies.optuna import quiet

OBJECTIVES = ("error", "seconds")
"""What a tuning can minimise: the validation error, and the seconds of the training."""

PARTS = 4
"""A training is judged after every so-manieth of its steps, and may be stopped there."""

STARTUP = 4
"""Trainings that must have been finished before one is stopped."""

FEW = 7
"""Finished trainings that say nothing of which hyper-parameter matters."""

TRAININGS = 16
"""Longest trainings that the time would be enough for, the two last ones included."""


def parse(text: str) -> tuple[str, ...]:
    """The objectives of a tuning from their names with commas between them.

    Raises:
        InputError: an unknown name, one twice, or no error among them.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in OBJECTIVES:
            raise unknown("objective of a tuning", name, OBJECTIVES)
    if "error" not in names or len(set(names)) < len(names):
        raise InputError(f"objectives {text!r} of a tuning must hold 'error', and each only once: write 'error' or "
                         "'error,seconds'.")
    return names


# ------------------------------------------------------------------------------------------------- hyper-parameters
def untuned(setup: Setup, epochs: float) -> dict[str, Any]:
    """The hyper-parameters with which a run trains, for that many epochs."""
    known = asdict(Recipe(epochs=epochs)) | asdict(setup.augment)
    return {name: known[name] for name in ranges(setup, epochs)}


def ranges(setup: Setup, most: float) -> dict[str, BaseDistribution]:
    """Where each hyper-parameter is looked for: those of `Recipe` and `Augment`, with at most ``most`` epochs. A network that
    answers for mirror images too learns from them."""
    height, width = setup.dataset.input_shape[1:]
    return {
        "epochs": FloatDistribution(most / 4, most, log=True),
        "kernel_lr": FloatDistribution(0.02, 0.5, log=True),
        "kernel_momentum": FloatDistribution(0.3, 0.95),
        "lr": FloatDistribution(0.01, 1.0, log=True),
        "momentum": FloatDistribution(0.5, 0.98),
        "weight_decay": FloatDistribution(1e-5, 1e-2, log=True),
        "smoothing": FloatDistribution(0.0, 0.3),
        "warmup": FloatDistribution(0.0, 0.5),
        "flip": CategoricalDistribution([True] if setup.config.mirror else [False, True]),
        "translate": IntDistribution(0, min(max(2, 2 * setup.augment.translate), min(height, width) - 1)),
        "cutout": IntDistribution(0, min(height, width) // 2),
    }


def training(params: Mapping[str, Any]) -> tuple[Recipe, Augment]:
    """The recipe and the augmentation with these hyper-parameters; the others are as ever."""
    own = {f.name for f in fields(Recipe)}
    return (Recipe(**{k: v for k, v in params.items() if k in own}),
            Augment(**{k: v for k, v in params.items() if k not in own}))


# -------------------------------------------------------------------------------------------------------- one trial
class Stopped(Exception):  # noqa: N818  nothing went wrong
    """Raised within a training to end it."""


def outdone(point: Sequence[float], others: NDArray[np.float64]) -> bool:
    """Whether a training is stopped: at least half of the finished ones, and at least `STARTUP` of them, were better in
    every objective at the same share of their steps.

    With one objective this is the median stopping rule (Golovin et al., KDD 2017, §3.1); Optuna has none for several.

    Args:
        point: the objectives so far, (m,).
        others: those of the finished trainings at the same share, (k, m).
    """
    return len(others) >= STARTUP and bool((others < np.asarray(point)).all(axis=1).mean() >= 0.5)


@dataclass(frozen=True)
class Judge:
    """Trains a network on the training part, judges it on the validation part, and stops where it is told to.

    All trainings begin with the same weights and see the images in the same order, so that they differ in their
    hyper-parameters alone.
    """

    build: Callable[[], nn.Module]
    setup: Setup

    def __call__(self, params: Mapping[str, Any], stop: Callable[[str, Mapping[str, float]], bool]) -> dict[str, Any]:
        """A record {params, course, metrics}: what was known after each `PARTS`-th ("1", "2", ...), and in the end; no
        metrics if the training was stopped, which one that diverges is at an error of 1.

        Args:
            stop: (part, metrics so far) -> whether to end the training.
        """
        setup, (recipe, augment) = self.setup, training(params)
        net, course, started, judging = self.build(), dict[str, dict[str, float]](), time.perf_counter(), 0.0

        def known(wrong: float) -> dict[str, float]:
            return {"error": wrong, "seconds": time.perf_counter() - started - judging}

        def judged() -> float:
            return error(setup.delivered(net).eval(), setup.validation, fast=True)

        def watch(done: int, total: int) -> None:
            nonlocal judging
            part = str(PARTS * done // total)
            if part == "0" or part in course or done == total:
                return
            course[part], before = known(1.0), time.perf_counter()
            course[part]["error"] = judged()
            net.train()
            judging += time.perf_counter() - before
            if stop(part, course[part]):
                raise Stopped

        record = {"params": dict(params), "course": course, "metrics": None}
        try:
            fit(net, setup.training, recipe, augment, setup.config.seed, watch=watch)
            return {**record, "metrics": known(1.0) | {"error": judged()}}
        except Stopped:
            return record
        except FloatingPointError:
            course[str(len(course) + 1)] = known(1.0)
            return record


def propose(trials: Sequence[Mapping[str, Any]], where: Mapping[str, BaseDistribution], names: Sequence[str],
            seed: int) -> dict[str, Any]:
    """The hyper-parameters of the next training, by tree-structured Parzen estimators."""
    with quiet():
        sampler = optuna.samplers.TPESampler(seed=seeds.integer(seed, len(trials), "tune") % 2**32)
        study = study_of(trials, where, names, sampler)
        return dict(study.ask(dict(where)).params)


def study_of(trials: Sequence[Mapping[str, Any]], where: Mapping[str, BaseDistribution], names: Sequence[str],
             sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
    """Records as a study of Optuna, in memory."""
    study = optuna.create_study(directions=["minimize"] * len(names), sampler=sampler)
    for record in trials:
        done = record["metrics"] is not None
        study.add_trial(optuna.trial.create_trial(
            state=TrialState.COMPLETE if done else TrialState.PRUNED, params=record["params"], distributions=dict(where),
            values=[record["metrics"][n] for n in names] if done else None,
            intermediate_values={int(k): p["error"] for k, p in record["course"].items()} if len(names) == 1 else None))
    return study


def importance(trials: Sequence[Mapping[str, Any]], where: Mapping[str, BaseDistribution]) -> dict[str, float]:
    """The share of the validation error's variance that each hyper-parameter explains (fANOVA: Hutter et al., ICML 2014);
    empty where that cannot be told: `FEW` finished trainings or fewer, or all of one error."""
    finished = [t for t in trials if t["metrics"] is not None]
    if len(finished) <= FEW or len({t["metrics"]["error"] for t in finished}) == 1:
        return {}
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scikit-learn's, on few trials
            study = study_of(finished, where, ("error",))
            found = optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0))
    except (ValueError, RuntimeError):
        return {}
    return {name: float(value) for name, value in found.items()}


# ----------------------------------------------------------------------------------------------------------- tuning
@dataclass(frozen=True)
class Tuning:
    """The tuning of one network, over what is remembered of it.

    Attributes:
        build: makes the network, untrained, always with the same weights.
        name: its id.
        names: the objectives.
        seconds: for everything.
        limit: trainings at most; None: as many as the time allows.
    """

    setup: Setup
    build: Callable[[], nn.Module]
    folder: Folder
    name: str
    names: tuple[str, ...]
    seconds: float
    limit: int | None
    ledger: Ledger
    display: Display

    def result(self) -> dict[str, Any]:
        """What is written to ``tune/ID.json``."""
        plan = self.ledger.remember("plan", self._plan)
        if plan["objectives"] != list(self.names):
            raise InputError(f"the tuning of {self.name} was begun with the objectives {','.join(plan['objectives'])}: give "
                             f"the same, or remove {self.folder.path / 'tune'}/{self.name}.db to start again.")
        known = self.ledger.recall("trials")
        if known is not None:
            self.display.log(f"The tuning of {self.name} is complete, with {len(known['trials'])} trainings: to tune it anew "
                             f"remove {self.folder.path / 'tune'}/{self.name}.db.")
        with self.ledger.timed("trials"):
            trials = self.ledger.remember("trials", partial(self._search, plan))["trials"]
        finished = [k for k, t in enumerate(trials) if t["metrics"] is not None]
        if not finished:
            raise InputError(f"no training of {self.name} came to its end, with the untuned hyper-parameters neither: tune "
                             "another network.")
        best = min(finished, key=lambda k: [trials[k]["metrics"][n] for n in OBJECTIVES])
        values = np.array([[trials[k]["metrics"][n] for n in self.names] for k in finished])
        with self.display.phase("final training") as watch:
            before = untuned(self.setup, trials[best]["params"]["epochs"])
            plain = self.ledger.remember("untuned", partial(self._deliver, "untuned", before, 0, watch))
            same = trials[best]["params"] == before
            tuned = plain if same else self.ledger.remember(
                "tuned", partial(self._deliver, "tuned", trials[best]["params"], 1, watch))
        return {"id": self.name, "objectives": list(self.names), "trials": trials, "best": best,
                "front": [k for k, best_of_some in zip(finished, nondominated(values), strict=True) if best_of_some],
                "importance": importance(trials, ranges(self.setup, plan["epochs"])),
                "untuned": {"params": before, **plain}, "tuned": {"params": trials[best]["params"], **tuned}}

    def _plan(self) -> dict[str, Any]:
        """How long trainings may be: so that `TRAININGS` of the longest fit into the time."""
        with self._explained("A first step of a training"):
            epoch = final.epoch_seconds(self.build(), self.setup.rest, Recipe(), self.setup.augment)
        seconds = max(self.seconds - 2 * final.EXPORT_SECONDS, self.seconds / 2)
        most = float(np.clip(seconds / TRAININGS / epoch, 1.0, final.MAX_EPOCHS))
        return {"objectives": list(self.names), "epochs": most, "last": 2 * (most * epoch + final.EXPORT_SECONDS)}

    def _search(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Trains until the time or the number of trainings is used up, first with the untuned hyper-parameters."""
        where, judge = ranges(self.setup, plan["epochs"]), Judge(self.build, self.setup)
        trials, started = list[dict[str, Any]](), time.perf_counter()
        before = max(self.ledger.seconds("trials"), float(self.ledger.recall("spent") or 0.0))  # the second after a SIGKILL
        most = self.seconds - plan["last"]
        with self.display.phase("tuning") as watch:
            while True:
                spent, key = before + time.perf_counter() - started, f"trial {len(trials)}"
                enough = spent >= most or (self.limit is not None and len(trials) >= self.limit)
                if self.ledger.recall(key) is None and trials and enough:
                    return {"trials": trials}
                params = propose(trials, where, self.names, self.setup.config.seed) if trials else untuned(
                    self.setup, plan["epochs"])
                trials.append(self.ledger.remember(key, partial(judge, params, partial(self._stop, tuple(trials)))))
                self.ledger.store("spent", before + time.perf_counter() - started)
                watch(min(spent, most), most, _note(trials))

    def _stop(self, trials: Sequence[Mapping[str, Any]], part: str, metrics: Mapping[str, float]) -> bool:
        others = [t["course"][part] for t in trials if t["metrics"] is not None and part in t["course"]]
        points = np.array([[p[n] for n in self.names] for p in others]).reshape(len(others), len(self.names))
        return outdone([metrics[n] for n in self.names], points)

    def _deliver(self, kind: str, params: Mapping[str, Any], number: int, watch: Watch) -> dict[str, Any]:
        """Trains on the training and the validation part, exports, and counts the test error, here alone."""
        recipe, augment = training(params)
        folder = self.folder.path / "tune" / f"{self.name}-{kind}"
        folder.mkdir(exist_ok=True)
        delivery = final.Delivery(replace(self.setup, augment=augment), recipe)
        kept = Kept(self.ledger.storage, f"checkpoint {kind}")
        with self._explained(f"The last training, {kind},"):
            found = delivery(self.build(), 0, recipe.epochs, folder, lambda done, total: watch(number + done / total, 2, kind),
                             kept)
        kept.forget()
        return found

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turns a training that fails into one sentence: it would fail again.

        Raises:
            InputError: it did.
        """
        try:
            yield
        except (FloatingPointError, MemoryError) as problem:
            raise InputError(f"{what} of {self.name} failed ({one_line(problem)}): tune another network, or remove "
                             f"{self.folder.path / 'tune'}/{self.name}.db and tune it with another --budget.") from problem


def _note(trials: Sequence[Mapping[str, Any]]) -> str:
    errors = [t["metrics"]["error"] for t in trials if t["metrics"] is not None]
    best = f"least error {100 * min(errors):.2f} %" if errors else "none finished"
    return f"{len(trials)} trainings, {len(trials) - len(errors)} stopped, {best}"


def builder(setup: Setup, record: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """What makes the network of a record of ``results.json``, untrained."""
    if "architecture" not in record:
        return lambda: final.designed(setup)[record["name"]]
    return partial(choices.extract, setup.net, from_labels(setup.problem.space, record["architecture"]))


def tune(setup: Setup, record: Mapping[str, Any], folder: Folder, names: tuple[str, ...], seconds: float, limit: int | None,
         display: Display) -> dict[str, Any]:
    """Tunes the network of one record of ``results.json``, or goes on with that, and writes ``tune/ID.json``.

    Args:
        names, seconds, limit: as in `Tuning`.

    Raises:
        InputError: it was begun with other objectives, another process is at it, or the disk is full.
    """
    where, name = folder.path / "tune", record["id"]
    with folder.writing(where):
        where.mkdir(exist_ok=True)
    with closing(Sqlite(where / f"{name}.db")) as storage:
        found = Tuning(setup, builder(setup, record), folder, name, names, seconds, limit, Ledger(storage), display).result()
    folder.write_json(str(Path("tune", f"{name}.json")), found)
    return found
