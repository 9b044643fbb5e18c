"""The phases of a run. Each leaves its result in the run's storage, and a run that is resumed skips what is there."""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import nn

from nasopt import seed as seeds
from nasopt import space as spaces
from nasopt.analysis import rank
from nasopt.analysis.hypervolume import hypervolume
from nasopt.analysis.pareto import Archive
from nasopt.errors import InputError
from nasopt.estimators.combine import Staged
from nasopt.estimators.images import Costs, OneShot, StandAlone
from nasopt.nets import choices, supernet, train
from nasopt.pipeline import final
from nasopt.pipeline.folder import Folder
from nasopt.pipeline.progress import Display, Watch
from nasopt.pipeline.setup import STRATEGIES, Config, Sampled, Setup, survey
from nasopt.protocols import Estimator, Storage
from nasopt.run.executors import Serial
from nasopt.run.search import INTERRUPTED, Budget, Progress, search
from nasopt.space import Arch
from nasopt.trial import Ask, Study, Trial

SHARES: Mapping[str, float] = {"supernet": 0.20, "trust": 0.08, "search": 0.12, "random search": 0.12}
"""Share of the time budget of every phase before the final trainings, which take the rest."""

PHASES = (*SHARES, "final training")

WITNESSES = 8
"""Architectures that are trained alone to see whether shared weights rank them the same way."""

@dataclass(frozen=True, eq=False)
class Phases:
    """The phases of one run over its set-up, storage and folder. Call them in the order in which they stand here."""

    setup: Setup
    storage: Storage
    folder: Folder
    display: Display

    # -------------------------------------------------------------------------------------------------------- bookkeeping
    def remember(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A JSON result: the stored one, or computed now and stored."""
        blob = self.storage.get(name)
        if blob is None:
            blob = json.dumps(compute()).encode()
            self.storage.put(name, blob)
        found: dict[str, Any] = json.loads(blob)
        return found

    def seconds(self, phase: str) -> float:
        """The share of the time budget that a phase has."""
        return SHARES[phase] * self.setup.config.seconds

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds what happens inside to the phase's seconds, earlier parts of a resumed run included; going through a
        phase again that was complete costs nothing."""
        started, before = time.perf_counter(), self.clock(phase)
        complete = self.storage.get(f"complete {phase}") is not None
        try:
            yield
        finally:
            if not complete:
                self.storage.put(f"seconds of {phase}", json.dumps(before + time.perf_counter() - started).encode())
        self.storage.put(f"complete {phase}", b"1")

    def clock(self, phase: str) -> float:
        """Seconds that a phase has taken so far."""
        return float(json.loads(self.storage.get(f"seconds of {phase}") or b"0"))

    def spent(self) -> float:
        """Seconds of all phases so far."""
        return sum(self.clock(phase) for phase in PHASES)

    @cached_property
    def sampled(self) -> Sampled:
        """What a sample of the space costs."""
        return Sampled(**self.remember("survey", lambda: asdict(survey(self.setup))))

    # ----------------------------------------------------------------------------------------------------------- supernet
    def supernet(self) -> dict[str, Any]:
        """Trains the shared weights for their share of the time."""
        return self.remember("supernet", self._train_supernet)

    def _train_supernet(self) -> dict[str, Any]:
        setup = self.setup
        recipe = train.Recipe(batch=128, kernel_lr=None, lr=0.1, momentum=0.9, warmup=0.2)
        probe = supernet.fit(copy.deepcopy(setup.net), setup.training, recipe, setup.augment, 3, setup.config.seed)
        steps = max(10, int(self.seconds("supernet") / (probe.seconds / probe.steps)))
        net = copy.deepcopy(setup.net)
        with self.display.phase("supernet") as watch:
            fitted = supernet.fit(net, setup.training, recipe, setup.augment, steps, setup.config.seed,
                                  watch=lambda done, total: watch(done, total))
        self.storage.put("supernet.weights", tensors_to_bytes({k: v.contiguous() for k, v in net.state_dict().items()}))
        return {"steps": steps, "loss": fitted.loss}

    @cached_property
    def shared(self) -> nn.Module:
        """The network with the trained shared weights."""
        blob = self.storage.get("supernet.weights")
        if blob is None:
            raise InputError(f"{self.folder.study} lost the weights of its supernet: start the run again in a new folder.")
        net: nn.Module = copy.deepcopy(self.setup.net)
        net.load_state_dict(tensors_from_bytes(blob))
        return train.channels_last(net)

    def one_shot(self) -> OneShot:
        """Judges by shared weights."""
        return OneShot(self.shared, self.setup.training, self.setup.validation)

    # -------------------------------------------------------------------------------------------------------------- trust
    def witnesses(self) -> list[Arch]:
        """The architectures that are trained alone: a random draw of the feasible ones of the survey."""
        rng = seeds.rng(self.setup.config.seed, 0, "witnesses")
        feasible = self.sampled.feasible
        return [self.sampled.archs[k] for k in rng.permutation(feasible)[:WITNESSES]]

    def low_fidelity(self) -> train.Recipe:
        """A recipe so short that the witnesses fit into their share of the time."""
        def plan() -> dict[str, float]:
            per_epoch = sum(self.epoch_seconds(a) for a in self.witnesses())
            return {"epochs": min(final.MAX_EPOCHS / 4, max(0.2, self.seconds("trust") / per_epoch))}

        return train.Recipe(epochs=self.remember("low fidelity", plan)["epochs"])

    def epoch_seconds(self, arch: Arch) -> float:
        """How long one epoch of an architecture takes, from three steps."""
        return final.epoch_seconds(choices.extract(self.setup.net, arch), self.setup.training, train.Recipe())

    def alone(self) -> StandAlone:
        """Judges by a short training of its own."""
        s = self.setup
        return StandAlone(s.net, s.training, s.validation, self.low_fidelity(), s.augment)

    def trust(self) -> dict[str, Any]:
        """Trains the witnesses alone and compares the two orders."""
        def compute() -> dict[str, Any]:
            pairs = []
            with self.display.phase("trust") as watch:
                for k, arch in enumerate(self.witnesses()):
                    pair = self.remember(f"witness {k}", partial(self._witness, k, arch))
                    pairs.append([pair["shared"], pair["alone"]])
                    watch(k + 1, WITNESSES)
            return {"pairs": pairs}

        found = self.remember("trust", compute)
        return {**found, **judge(found["pairs"], self.setup.config)}

    def _witness(self, k: int, arch: Arch) -> dict[str, float]:
        ask = Ask(k, arch, 1.0, self.setup.config.seed, "trust")
        return {"shared": self.one_shot()(ask)["error"], "alone": self.alone()(ask)["error"]}

    # ------------------------------------------------------------------------------------------------------------- search
    def estimator(self) -> Estimator:
        """Costs first, then the error: by shared weights if they are to be trusted."""
        setup = self.setup
        costs = Costs(setup.net, setup.cost_models(), setup.example)
        error: Estimator = self.alone() if self.trust()["fallback"] else self.one_shot()
        return Staged(setup.problem, [costs, error])

    def search(self, name: str, storage: Storage, title: str = "search") -> Study:
        """Runs a strategy on the estimator for its share of the time.

        Raises:
            InputError: nothing feasible was found.
        """
        setup = self.setup
        initial = [self.sampled.archs[k] for k in self.sampled.feasible[:8]]
        strategy = STRATEGIES[name](setup.problem, setup.config.seed, initial)
        with self.display.phase(title) as watch:
            study = search(setup.problem, strategy, self.estimator(), storage=storage, seed=setup.config.seed,
                           budget=Budget(trials=setup.config.trials, seconds=self.seconds(title)),
                           executor=Serial(timeout=max(60.0, self.seconds(title))), watch=self._narrate(watch, title))
        if study.stopped == INTERRUPTED:
            raise KeyboardInterrupt
        return study

    def _narrate(self, watch: Watch, title: str) -> Callable[[Progress], None]:
        archive: Archive[None] = Archive(len(self.setup.problem.objectives))
        reference: list[NDArray[np.float64]] = []

        def tell(progress: Progress) -> None:
            problem, trial = self.setup.problem, progress.trial
            values = np.array([problem.values(trial.metrics)])
            if trial.error is None and np.isfinite(values).all():
                archive.add(values, [None], np.array([problem.violation(trial.metrics)]))
                reference[:] = reference or [1.1 * np.abs(values[0])]
            volume = hypervolume(archive.values / reference[0], np.ones(values.shape[1])) if reference else 0.0
            note = f"{progress.done} networks, front {len(archive)}, hypervolume {volume:.3f}"
            limit = self.setup.config.trials
            if limit:
                watch(progress.done, limit, note)
            else:
                watch(min(progress.spent, self.seconds(title)), self.seconds(title), note)

        return tell

    # -------------------------------------------------------------------------------------------------------------- final
    def finalists(self, study: Study) -> dict[str, Any]:
        """Which networks of the front are trained, and for how long; from the time that is left.

        A network one of whose epochs is too dear for the time (`final.LARGEST_SHARE`) gives way to the next best.
        """
        return self.remember("finalists", lambda: self._choose(study))

    def _choose(self, study: Study) -> dict[str, Any]:
        setup = self.setup
        if not study.front():
            raise InputError(nothing_found(study))
        baselines = final.designed(setup)
        bars = [{k: v for m in setup.cost_models() for k, v in m(net.eval(), setup.example).items()}
                for net in baselines.values()]
        recipe = train.Recipe()
        bar_epochs = [final.epoch_seconds(net, setup.rest, recipe) for net in baselines.values()]
        seconds = max(setup.config.seconds - self.spent(), 0.2 * setup.config.seconds)
        limit, epochs = seconds * final.LARGEST_SHARE / final.MIN_EPOCHS, dict[int, float]()
        left = final.useful(study.front(), setup.dataset.y[setup.split.train])
        while True:
            chosen = final.choose(left, setup.problem.objectives, bars, setup.config.networks)
            for t in chosen:
                if t.ask.number not in epochs:
                    epochs[t.ask.number] = final.epoch_seconds(choices.extract(setup.net, t.ask.arch), setup.rest, recipe)
            dear = [t for t in chosen if epochs[t.ask.number] > limit]
            if not dear or len(left) - len(dear) < final.MIN_NETWORKS:
                break
            left = [t for t in left if t not in dear]
        n, length = final.plan([epochs[t.ask.number] for t in chosen], bar_epochs, seconds)
        return {"numbers": [t.ask.number for t in chosen[:n]], "epochs": length,
                "dear": [k for k, s in epochs.items() if s > limit and k not in {t.ask.number for t in chosen[:n]}]}

    def deliver(self, trials: Sequence[Trial], epochs: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Trains, exports and measures the finalists and the hand-designed networks: their records."""
        orders = [self._found(t) for t in trials] + [self._designed(name) for name in final.designed(self.setup)]
        delivery, records = final.Delivery(self.setup, train.Recipe(epochs=epochs)), []
        with self.display.phase("final training") as watch:
            for number, order in enumerate(orders):
                records.append(self.remember(f"final {order.id}", partial(self._delivered, delivery, order, number, partial(
                    _within, watch, number, len(orders), order.id))))
        return records[:len(trials)], records[len(trials):]

    def _found(self, trial: Trial) -> Order:
        arch, setup = trial.ask.arch, self.setup
        about = {"architecture": spaces.labels(setup.problem.space, arch), "predicted": dict(trial.metrics)}
        return Order(spaces.key(arch)[:8], about, partial(choices.extract, setup.net, arch))

    def _designed(self, name: str) -> Order:
        return Order(name.lower().replace(" ", "-"), {"name": name}, lambda: final.designed(self.setup)[name])

    def _delivered(self, delivery: final.Delivery, order: Order, number: int,
                   watch: Callable[[int, int], None]) -> dict[str, Any]:
        return {"id": order.id, **order.about, **delivery(order.build(), number, self.folder.model(order.id), watch)}


@dataclass(frozen=True)
class Order:
    """A network to train: its name, what its record says of it, and how to build it untrained."""

    id: str
    about: dict[str, Any]
    build: Callable[[], nn.Module]


def _within(watch: Watch, number: int, count: int, note: str, done: int, total: int) -> None:
    watch(number + done / total, count, note)


def judge(pairs: Sequence[Sequence[float]], config: Config) -> dict[str, Any]:
    """Whether shared weights rank the witnesses as their own trainings do (Kendall's tau with a bootstrap interval)."""
    found = rank.kendall([a for a, _ in pairs], [b for _, b in pairs], config.seed) if len(pairs) >= 3 else None
    if found is None:
        sentence = f"Only {len(pairs)} architectures could be compared, too few to trust shared weights."
        return {"statistic": "Kendall tau", "value": 0.0, "interval": [-1.0, 1.0], "n": len(pairs), "threshold": config.trust,
                "fallback": True, "sentence": sentence}
    fallback = found.value < config.trust
    verdict = "not trusted: candidates are trained alone, briefly" if fallback else "trusted"
    return {"statistic": "Kendall tau", "value": found.value, "interval": [found.low, found.high], "n": found.n,
            "threshold": config.trust, "fallback": fallback,
            "sentence": f"Kendall's tau {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] between shared weights and own "
                        f"trainings of {found.n} architectures (threshold {config.trust:g}): shared weights are {verdict}."}


def nothing_found(study: Study) -> str:
    """Why a search has no front: the constraint that is missed by most, or the most frequent error."""
    clean = [t for t in study.trials if t.error is None]
    if not clean:
        errors = Counter(t.error for t in study.trials)
        return (f"all {len(study.trials)} trials failed, most often with: {errors.most_common(1)[0][0]}" if errors
                else "the budget ended before the first trial: give more time.")
    nearest = min(clean, key=lambda t: study.problem.violation(t.metrics))
    worst = max(study.problem.constraints, key=lambda c: c.violation(nearest.metrics))
    return (f"no architecture meets {worst}: the nearest of {len(clean)} has {nearest.metrics[worst.name]:.4g}"
            f"{worst.unit and ' ' + worst.unit}; relax it, or give more time.")
