"""The phases of a run. Each leaves its result in the run's storage, and a run that is resumed skips what is there."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import nn

from nasopt import goals
from nasopt import space as spaces
from nasopt.analysis import rank
from nasopt.analysis.hypervolume import hypervolume
from nasopt.analysis.pareto import Archive
from nasopt.cost.layers import Layers
from nasopt.errors import InputError, one_line
from nasopt.estimators.combine import Known, Staged
from nasopt.estimators.images import Costs, OneShot, StandAlone
from nasopt.nets import supernet, train
from nasopt.pipeline import final, relaxed, target, warm
from nasopt.pipeline.parts import Parts
from nasopt.pipeline.progress import Watch
from nasopt.pipeline.setup import Config, Sampled, Setup, survey
from nasopt.protocols import Estimator, Storage, Strategy
from nasopt.run.executors import Serial
from nasopt.run.search import INTERRUPTED, Budget, Progress, load, search
from nasopt.space import Arch
from nasopt.strategies.catalogue import COLD, NETWORKS, PREFERENCE, make
from nasopt.strategies.gradient import weights_of
from nasopt.strategies.stopping import Reached, SmallGain
from nasopt.trial import Ask, Constraint, Metrics, Problem, Study, Trial

SHARES: Mapping[str, float] = {"supernet": 0.10, "trust": 0.04, "warm start": 0.06, "search": 0.07, "random search": 0.13}
"""Share of the time budget of every phase before the final trainings, which take the rest. Random search has as much as the
warm start and the search together."""

PHASES = ("preparation", *SHARES, "final training")

MIN_PASSES = 5.0
"""Passes over the training part below which shared weights are not trained at all: each step trains four networks, and what
it moves one network by, it moves the others from."""

PROBES = ((3, MIN_PASSES / 4), (12, MIN_PASSES))
"""Steps of the supernet that are timed, and the passes that they must promise: where far too few fit, three steps show it."""

COLD_STEPS = 20
"""Steps of the supernet before those on a GPU, which loads and chooses its kernels when it meets them."""

CANDIDATES = 32
"""Random networks whose training alone, briefly, would fill a search's share of the time."""

MIN_BRIEF = 140
"""Steps below which a brief training tells little of a longer one."""

SMALL_BATCH = 64
"""Images a step of a brief training: it needs steps more than it needs exact gradients."""

SLACK = 1.5
"""By how much two rough timings of one step may differ."""

OFF = 2.0
"""By how much a rough timing may be above a real one."""

WITNESSES = 8
"""Architectures that are trained alone to see whether shared weights rank them the same way."""


def seconds_of(config: Config, phase: str) -> float:
    """The share of the time budget that a phase has. Strategies without a warm start have its time for the search; with a
    target no random search stands beside, and the search has its time. Beside random search itself stands none either, whose
    time goes to the final trainings."""
    shares, alone = dict(SHARES), config.strategy == "random"
    for name, missing in (("warm start", alone or config.strategy in COLD), ("random search", bool(config.target))):
        if missing:
            shares["search"] += shares[name]
            shares[name] = 0.0
    if alone:
        shares["random search"] = 0.0
    return shares[phase] * config.seconds


def planned(setup: Setup, sampled: Sampled) -> relaxed.Plan:
    """How the time of a strategy that trains a network is to be divided.

    Raises:
        InputError: there is too little, or the strategy is not for this space or these objectives.
    """
    seconds = seconds_of(setup.config, "search")
    if setup.config.strategy == PREFERENCE:
        return relaxed.plan_of_preferences(setup, seconds, sampled)
    return relaxed.plan(setup, setup.config.strategy, seconds)


@dataclass(frozen=True, eq=False)
class Phases(Parts):
    """The phases of one run over its set-up, storage and folder. Call them in the order in which they stand here."""

    def seconds(self, phase: str) -> float:
        """The share of the time budget that a phase has; of the search what its costs' tables left of it, and with a target what
        the warm start left besides."""
        config, left = self.setup.config, 0.0
        if phase == "search":
            if config.target:
                left = max(0.0, seconds_of(config, "warm start") - self.ledger.seconds("warm start"))
            left -= self.measured
        return seconds_of(config, phase) + left

    @property
    def measured(self) -> float:
        """Seconds of the search that were spent before it began."""
        return self.plan().measured if self.setup.config.strategy in NETWORKS else 0.0

    def spent(self) -> float:
        """Seconds of all phases so far."""
        return sum(self.ledger.seconds(phase) for phase in PHASES)

    @cached_property
    def sampled(self) -> Sampled:
        """What a sample of the space costs."""
        return Sampled(**self.ledger.remember("survey", lambda: asdict(survey(self.setup))))

    # ----------------------------------------------------------------------------------------------------------- supernet
    def supernet(self) -> dict[str, Any]:
        """Trains the shared weights for their share of the time."""
        return self.ledger.remember("supernet", self._train_supernet)

    def _train_supernet(self) -> dict[str, Any]:
        setup = self.setup
        recipe = train.Recipe(batch=128, lr=0.3, momentum=0.9, warmup=0.1)
        net = copy.deepcopy(setup.net)
        try:
            if setup.training.device.type == "cuda":
                supernet.fit(copy.deepcopy(setup.net), setup.training, recipe, setup.augment, COLD_STEPS, setup.config.seed)
            for tried, needed in PROBES:
                ticks: list[float] = []
                supernet.fit(copy.deepcopy(setup.net), setup.training, recipe, setup.augment, tried, setup.config.seed,
                             watch=lambda done, total, ticks=ticks: ticks.append(time.perf_counter()))  # type: ignore[misc]
                steps = max(10, int(self.seconds("supernet") / float(np.mean(np.diff(ticks)))))
                passes = steps * recipe.batch_for(setup.training) / len(setup.training)
                if passes < needed:
                    return {"error": f"the time allows {passes:.1f} passes over the images, {MIN_PASSES:g} are needed"}
            with self.display.phase("supernet") as watch:
                fitted = supernet.fit(net, setup.training, recipe, setup.augment, steps, setup.config.seed,
                                      watch=watch)
        except (FloatingPointError, torch.OutOfMemoryError) as problem:
            return {"error": one_line(problem)}
        self.storage.put("supernet.weights", weights_to_bytes(net))
        return {"steps": steps, "passes": passes, "loss": fitted.loss}

    @cached_property
    def shared(self) -> nn.Module:
        """The network with the trained shared weights."""
        blob = self.storage.get("supernet.weights")
        if blob is None:
            raise InputError(f"{self.folder.study} lost the weights of its supernet: start the run again in a new folder.")
        net: nn.Module = copy.deepcopy(self.setup.net)
        load_weights(net, blob)
        return train.channels_last(net.to(self.setup.training.device))

    def one_shot(self) -> OneShot:
        """Judges by shared weights."""
        return OneShot(self.shared, self.setup.training, self.setup.validation, delivered=self.setup.delivered)

    # -------------------------------------------------------------------------------------------------------------- trust
    def witnesses(self) -> list[Arch]:
        """The architectures that are trained alone: the first feasible ones of the survey, which are different random ones."""
        return [self.sampled.archs[k] for k in self.sampled.feasible[:WITNESSES]]

    def low_fidelity(self) -> train.Recipe:
        """A recipe so short that `CANDIDATES` trainings of a random network that is not too dear fit into a search's share of the
        time, but of `MIN_BRIEF` steps at least. For a target the ledger also knows how many times as long an epoch of a final
        training is."""
        recipe = train.Recipe(epochs=1.0, batch=SMALL_BATCH)

        def plan() -> dict[str, float]:
            s, archs = self.setup, self.trainable()[1]
            brief = sum(final.epoch_of(s, a, recipe, s.training) for a in archs)
            per_epoch = brief / len(archs)
            least = MIN_BRIEF / train.steps_of(s.training, recipe)
            epochs = min(final.MAX_EPOCHS / 4, max(least, self.seconds("search") / CANDIDATES / per_epoch))
            found = {"epochs": epochs, "seconds": epochs * per_epoch}
            if s.config.aims_at_target:
                found["final"] = sum(final.epoch_of(s, a) for a in archs) / brief
            return found

        return recipe.scaled(self.ledger.remember("low fidelity", plan)["epochs"])

    def alone(self, source: nn.Module) -> StandAlone:
        """Judges by a short training of its own, from the weights of a network with choices."""
        s = self.setup
        return StandAlone(source, s.training, s.validation, self.low_fidelity(), s.augment, s.delivered, self.display.log)

    def trust(self) -> dict[str, Any]:
        """Trains the witnesses alone and compares the two orders."""
        def compute() -> dict[str, Any]:
            failed = self.supernet().get("error")
            with self.display.phase("trust") as watch:
                found = []
                for k, arch in enumerate([] if failed else self.witnesses()):
                    found.append(self.ledger.remember(f"witness {k}", partial(self._witness, k, arch)))
                    watch(k + 1, len(self.witnesses()))
            pairs = [[w["shared"], w["alone"]] for w in found if "shared" in w and "alone" in w]
            return judge(pairs, self.setup.config, failed)

        return self.ledger.remember("trust", compute)

    def _witness(self, k: int, arch: Arch) -> dict[str, Any]:
        """Both errors of a witness; one that fails is left out of the comparison."""
        ask, found = Ask(k, arch, 1.0, self.setup.config.seed, "trust"), dict[str, Any]()
        try:
            found = {f"own {name}": value for name, value in self.alone(self.setup.net)(ask).items()}
            found["alone"] = found["own error"]
            found["shared"] = self.one_shot()(ask)["error"]
        except (FloatingPointError, MemoryError, RuntimeError) as problem:
            found["failed"] = one_line(problem)
        return found

    def known(self) -> dict[str, Metrics]:
        """What the witnesses' own trainings gave: the search need not repeat them."""
        found: dict[str, Metrics] = {}
        for k, arch in enumerate(self.witnesses()):
            blob = self.ledger.recall(f"witness {k}") or {}
            if "alone" in blob:
                found[spaces.key(arch)] = {n.removeprefix("own "): v for n, v in blob.items() if n.startswith("own ")}
        return found

    # --------------------------------------------------------------------------------------------------------- warm start
    def warm_start(self) -> list[Arch]:
        """Architectures with which the search begins: networks designed by hand that the space has, and others that are found by
        their costs alone, all small enough to be trained in the end.

        Most of the time is for looking, the rest for timing training steps of those found.
        """
        def compute() -> dict[str, list[Arch]]:
            seconds, dearest = 0.9 * self.seconds("warm start"), self._dearest()
            with self.display.phase("warm start") as watch:
                bound = warm.affordable(dearest["rate"], dearest["epoch"]).upper
                first = warm.designs(self.setup, bound, self.trainable()[0].upper if self.trust()["fallback"] else bound,
                                     self.steps)
                found = warm.start(replace(self.setup, problem=self.problem), seconds, dearest["epoch"], dearest["rate"],
                                   partial(final.epoch_of, self.setup), lambda spent: watch(min(spent, seconds), seconds))
                return {"archs": [*first, *(arch for arch in found if arch not in first)]}

        found: list[Arch] = self.ledger.remember("warm start", compute)["archs"]
        return found

    def _dearest(self) -> dict[str, float]:
        """``seconds``: of all final trainings, about; ``epoch``: those that an epoch of a network may take, so that there is the
        time for `final.MIN_EPOCHS` of them; ``rate``: `warm.rate_of` the images."""
        def compute() -> dict[str, float]:
            config = self.setup.config
            others = sum(seconds_of(config, phase) for phase in ("warm start", "search", "random search")) - self.measured
            seconds = max(config.seconds - self.spent() - others, final.LEAST_SHARE * config.seconds)
            return {"seconds": seconds, "epoch": final.dearest(seconds, final.MIN_EPOCHS), "rate": warm.rate_of(self.setup)}

        return self.ledger.remember("dearest", compute)

    @cached_property
    def steps(self) -> Layers:
        """Rough times of training steps; with those, when a run is resumed, by which the bound of `trainable` was found."""
        return replace(warm.step_table(self.setup), known=self.ledger.recall("layers") or {})

    def _step(self, arch: Arch) -> float:
        """Rough milliseconds of a training step."""
        return Costs(self.setup.net, [self.steps], self.setup.example)(Ask(0, arch))[warm.STEP]

    @cached_property
    def problem(self) -> Problem:
        """What is searched for. Where candidates are trained, `trainable` is one of the constraints; a bound on the error is
        none, since it is meant for networks that have learned all they can."""
        problem = self.setup.problem
        more = [self.trainable()[0]] if self.trust()["fallback"] else []
        bounds = [c for c in problem.constraints if c.name != "error"]
        return replace(problem, objectives=self.setup.config.searched, constraints=(*bounds, *more))

    def trainable(self) -> tuple[Constraint, list[Arch]]:
        """That an architecture can be trained in the end for `final.LEAST_EPOCHS`, and the witnesses that can. The bound is so
        loose that the cheapest of them always can: a run with too little time has a result nevertheless. With a target it is as
        loose as the dearest network takes that was designed by hand and can be trained for `final.FEWEST_EPOCHS`."""
        def compute() -> dict[str, Any]:
            setup, found = self.setup, self._dearest()
            steps = [self._step(arch) for arch in self.witnesses()]
            bound = warm.affordable(found["rate"], found["epoch"] * final.MIN_EPOCHS / final.LEAST_EPOCHS)
            ms = max(bound.upper, SLACK * min(steps))
            if setup.config.aims_at_target:
                most = found["seconds"] / final.FEWEST_EPOCHS
                for arch in warm.members(setup):
                    step = self._step(arch)
                    if ms < step <= OFF * found["rate"] * most and final.epoch_of(setup, arch) <= most:
                        ms = step
            self.ledger.store("layers", self.steps.known)
            return {"ms": ms, "witnesses": [k for k, step in enumerate(steps) if step <= ms]}

        known = self.ledger.remember("trainable", compute)
        return Constraint(warm.STEP, known["ms"], "ms"), [self.witnesses()[k] for k in known["witnesses"]]

    # ------------------------------------------------------------------------------------------------------------- search
    def estimator(self) -> Estimator:
        """Costs first, then the error, by shared weights if they are to be trusted; what is too dear is not trained."""
        setup, brief = self.setup, self.trust()["fallback"]
        aims = setup.config.aims_at_target
        models = setup.of_delivered(replace(setup, problem=self.problem).cost_models())
        costs = Costs(setup.net, [self.steps, *models] if brief or aims else models, setup.example)
        judge: Estimator
        if not brief:
            judge = self.one_shot()
        elif self.inherits:
            judge = self.alone(self.mixture)
        else:
            judge = Known(self.known(), self.alone(setup.net))
        staged = Staged(self.problem, [costs, judge])
        return target.Expecting(staged, self._epochs) if aims else staged

    def _epochs(self, ask: Ask, metrics: Metrics) -> tuple[float, float]:
        """The epochs behind an error, and those that the network would have if its final training were the only one."""
        known = self._dearest()
        if "training_seconds" in metrics:
            brief = ask.fidelity * self.low_fidelity().epochs
            epoch = metrics["training_seconds"] / brief * self.ledger.recall("low fidelity")["final"]
        else:
            brief, epoch = self.supernet()["passes"], metrics[warm.STEP] / known["rate"]
        return brief, min(final.MAX_EPOCHS, known["seconds"] / epoch)

    @property
    def inherits(self) -> bool:
        """Whether candidates are trained alone and begin with the weights of the network that the gradients have trained."""
        name = self.setup.config.strategy
        return name in NETWORKS and self.trust()["fallback"] and relaxed.whole(self.setup, relaxed.recipe_of(name))

    @cached_property
    def mixture(self) -> nn.Module:
        """The network that a gradient strategy relaxes, with the weights that were kept, if it was trained."""
        name = relaxed.recipe_of(self.setup.config.strategy)
        net = relaxed.network(self.setup, name, None if "error" in self.supernet() else self.shared)
        blob = self.storage.get(f"{name}.weights")
        if blob is not None:
            net.load_state_dict(weights_of(blob))
        return net

    def search(self, name: str, storage: Storage, title: str = "search", initial: Sequence[Arch] = ()) -> Study:
        """Runs a strategy on the estimator for its share of the time. It begins with the witnesses, unless their trainings began
        with other weights than the candidates' will, with ``initial``, and, if none of these can be trained in the end, with the
        cheapest of the witnesses."""
        done = self.ledger.recall(f"stopped {title}")
        if done is not None:
            return replace(load(storage), problem=self.problem, stopped=done)
        setup, main = self.setup, threading.current_thread() is threading.main_thread()
        known = self.witnesses() if "value" in self.trust() and not self.inherits else []
        first = self.ledger.remember(f"first of {title}", lambda: {"archs": self._with_cheapest([*known, *initial])})
        strategy = self._strategy(name, title, first["archs"])
        with self.display.phase(title) as watch:
            study = search(self.problem, strategy, self.estimator(), storage=storage, seed=setup.config.seed,
                           budget=Budget(trials=setup.config.trials, seconds=self.seconds(title)),
                           executor=Serial(timeout=max(60.0, self.seconds(title)) if main else None),
                           watch=self._narrate(watch, title), stop=self._stop if title == "search" else None)
        if study.stopped == INTERRUPTED:
            raise KeyboardInterrupt
        for remark in strategy.remarks if isinstance(strategy, relaxed.Relaxed) else ():
            self.display.log(remark)
        self.ledger.store(f"stopped {title}", study.stopped)
        return study

    def _with_cheapest(self, archs: list[Arch]) -> list[Arch]:
        """The architectures; where candidates are trained and each of these is dearer than `trainable` allows, the cheapest of
        the witnesses after them."""
        if not archs or not self.trust()["fallback"]:
            return archs
        bound, cheap = self.trainable()
        return archs if any(self._step(arch) <= bound.upper for arch in archs) else [*archs, min(cheap, key=self._step)]

    def _stop(self, trials: Sequence[Trial]) -> str:
        """Why the search should end before its time is over, or an empty text."""
        config, problem = self.setup.config, self.problem
        bounds = tuple(dict.fromkeys((*config.target, *(c for c in config.constraints if c.name == "error"))))
        rules: list[Callable[[Sequence[Trial]], str]] = [Reached(problem, bounds)] if config.target else []
        rules += [] if config.min_gain is None else [SmallGain(problem, config.min_gain, config.seed)]
        if config.aims_at_target and len(problem.objectives) == 1:
            rules.append(target.Dearer(problem, self._dearest()["seconds"] + self.seconds("search"), config.seed))
        return next((why for rule in rules if (why := rule(trials))), "")

    def _strategy(self, name: str, title: str, initial: Sequence[Arch]) -> Strategy:
        """The strategy of that name. One that trains a network begins with what it finds, not with ``initial``."""
        if name not in NETWORKS:
            return make(name, self.problem, self.setup.config.seed, initial)
        stride = self.ledger.remember("stride", lambda: {
            "slices": relaxed.stride(self.seconds(title), self._evaluation(), self.setup.config.trials)})
        setup = replace(self.setup, problem=self.problem)
        return relaxed.strategy(setup, name, self.mixture, self.plan(), stride["slices"], self.storage, initial, self.inherits)

    def plan(self) -> relaxed.Plan:
        """How the time of a strategy that trains a network is divided."""
        return relaxed.Plan(**self.ledger.remember("plan", lambda: asdict(planned(self.setup, self.sampled))))

    def _evaluation(self) -> float:
        """Seconds that the search's estimator takes for a random architecture, about."""
        if self.trust()["fallback"]:
            self.low_fidelity()
            return float((self.ledger.recall("low fidelity") or {})["seconds"])
        began = time.perf_counter()
        with suppress(FloatingPointError):
            self.one_shot()(Ask(0, self.witnesses()[0]))
        return time.perf_counter() - began

    def _narrate(self, watch: Watch, title: str) -> Callable[[Progress], None]:
        """Shows the size of the front and its hypervolume: the share of the box up to an error of 1 and up to the largest
        costs of the survey, the same for every search of the run. Of one objective, an error, the least."""
        problem, limit = self.problem, self.setup.config.trials
        archive: Archive[None] = Archive(len(problem.objectives))
        largest = np.array([1.0 if goals.named(o.name).kind == "share" else
                            max(m[o.name] for m in self.sampled.metrics) + 1e-9 for o in problem.objectives])

        def tell(progress: Progress) -> None:
            trial = progress.trial
            if problem.accepts(trial):
                archive.add([problem.values(trial.metrics)], [None])
            note = f"{progress.done} networks"
            if len(largest) > 1:
                volume = hypervolume(archive.values / largest, np.ones(len(largest)))
                note += f", front {len(archive)}, hypervolume {volume:.3f}"
            elif len(archive):
                name = problem.objectives[0].name
                note += f", {goals.named(name).title} {goals.format_metric(name, float(archive.values.min()))}"
            if limit:
                watch(progress.done, limit, note)
            else:
                watch(min(progress.spent, self.seconds(title)), self.seconds(title), note)

        return tell


def judge(pairs: Sequence[Sequence[float]], config: Config, failed: str | None = None) -> dict[str, Any]:
    """Whether shared weights rank the witnesses as their own trainings do (Kendall's tau with a bootstrap interval)."""
    known = {"statistic": "Kendall tau", "n": len(pairs), "threshold": config.trust, "pairs": pairs}
    if failed or len(pairs) < 3:
        why = f"No shared weights ({failed})" if failed else f"Only {len(pairs)} architectures could be compared"
        return {**known, "fallback": True, "sentence": f"{why}: candidates are trained alone, briefly."}
    found = rank.kendall([a for a, _ in pairs], [b for _, b in pairs], config.seed)
    fallback = found.value < config.trust
    verdict = "not trusted: candidates are trained alone, briefly" if fallback else "trusted"
    return {**known, "value": found.value, "interval": [found.low, found.high], "fallback": fallback,
            "sentence": f"Kendall's tau {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] between shared weights and own "
                        f"trainings of {found.n} random architectures (threshold {config.trust:g}): shared weights are "
                        f"{verdict}."}


def weights_to_bytes(net: nn.Module) -> bytes:
    """The state of a module in the safetensors format."""
    return tensors_to_bytes({k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
                             for k, v in net.state_dict().items()})


def load_weights(net: nn.Module, blob: bytes) -> None:
    """Loads what `weights_to_bytes` wrote.

    Raises:
        InputError: the module is not the one whose state it is.
    """
    try:
        net.load_state_dict(tensors_from_bytes(blob))
    except RuntimeError as problem:
        raise InputError("the network is not the one that this run began with: give that one "
                         f"({one_line(problem)}).") from problem
