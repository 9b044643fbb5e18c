"""From what a search found to delivered networks: which are trained, for how long, and their records."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from nasopt import space as spaces
from nasopt.cost.clock import Latency
from nasopt.errors import ExportError, InputError, one_line
from nasopt.nets import choices, train
from nasopt.pipeline import final, target
from nasopt.pipeline.kept import Kept
from nasopt.pipeline.parts import Parts
from nasopt.pipeline.progress import Watch
from nasopt.pipeline.setup import EXPECTED
from nasopt.pipeline.warm import STEP
from nasopt.trial import Metrics, Study, Trial


@dataclass(frozen=True, eq=False)
class Finals(Parts):
    """The last phase of one run."""

    def finalists(self, study: Study, spent: float) -> dict[str, Any]:
        """Which networks are trained, and for how long: {numbers: of trials, epochs, dear: numbers that were left out}.

        Without a target networks of the front, and one of whose epochs is too dear for the time (`final.LARGEST_SHARE`) gives
        way to the next best; the hand-designed ones come after them.

        Args:
            spent: seconds of the budget that are gone.

        Raises:
            InputError: the search found nothing.
        """
        return self.ledger.remember("finalists", lambda: self._choose(study, spent))

    def _choose(self, study: Study, spent: float) -> dict[str, Any]:
        setup = self.setup
        study = study.promoted()
        found = study.feasible() if setup.config.aims_at_target else study.front()
        if not found:
            raise InputError(nothing_found(study))
        seconds = max(setup.config.seconds - spent, final.LEAST_SHARE * setup.config.seconds)
        return self._for_target(found, seconds) if setup.config.target else self._for_front(found, seconds)

    def _for_front(self, found: Sequence[Trial], seconds: float) -> dict[str, Any]:
        setup = self.setup
        baselines = final.designed(setup)
        front, bars = self._timed_together(found, list(baselines.values()))
        recipe = train.Recipe()
        bar_epochs = [final.epoch_seconds(net, setup.lessons, recipe, setup.augment) for net in baselines.values()]
        limit, epochs = final.dearest(seconds, final.LEAST_EPOCHS), dict[int, float]()
        left = final.useful(front, setup.dataset.y[setup.split.train])
        while True:
            chosen = final.choose(left, setup.problem.objectives, bars, setup.config.networks)
            for t in chosen:
                if t.ask.number not in epochs:
                    epochs[t.ask.number] = final.epoch_of(setup, t.ask.arch)
            dear = [t for t in chosen if epochs[t.ask.number] > limit]
            if not dear or len(left) - len(dear) < final.MIN_NETWORKS:
                break
            left = [t for t in left if t not in dear]
        n, lengths = final.plan([epochs[t.ask.number] for t in chosen], bar_epochs, seconds)
        return {"numbers": [t.ask.number for t in chosen[:n]], "epochs": lengths,
                "dear": [k for k, s in epochs.items() if s > limit and k not in {t.ask.number for t in chosen[:n]}]}

    def _for_target(self, found: Sequence[Trial], seconds: float) -> dict[str, Any]:
        """The trainings of a run with a target (`target.trainings`): no hand-designed networks, all the time for the target."""
        config, began = self.setup.config, time.perf_counter()
        chosen = target.ordered(found, config.target)[:config.networks]
        epoch, share = [final.epoch_of(self.setup, t.ask.arch) for t in chosen], 0.0
        seconds = max(seconds - (time.perf_counter() - began), seconds / 2)
        if config.aims_at_target:
            best = chosen[0].metrics
            share = target.needed(best[EXPECTED], best[target.EPOCHS], config.target) * epoch[0] / seconds
        plan = target.trainings(epoch, seconds, share)
        return {"numbers": [chosen[k].ask.number for k, _ in plan], "epochs": [n for _, n in plan],
                "seconds": [n * epoch[k] for k, n in plan], "dear": []}

    def _timed_together(self, trials: Sequence[Trial], nets: Sequence[nn.Module]) -> tuple[list[Trial], list[Metrics]]:
        """The trials and the costs of the networks; latencies in PyTorch were timed by turns just now, so that they can be
        compared (in ONNX Runtime each would take seconds to export)."""
        setup, nets = self.setup, [self.setup.delivered(net) for net in nets]
        models = setup.cost_models()
        clocks = [m for m in models if isinstance(m, Latency) and m.runtime == "torch"]
        alone = [m for m in models if m not in clocks]
        costs: list[Metrics] = [{k: v for m in alone for k, v in m(net.eval(), setup.example).items()} for net in nets]
        for clock in clocks:
            found = [setup.delivered(choices.extract(setup.net, t.ask.arch)) for t in trials]
            times = clock.compare([*found, *nets], setup.example)
            trials = [replace(t, metrics={**t.metrics, **m}) for t, m in zip(trials, times, strict=False)]
            costs = [{**c, **m} for c, m in zip(costs, times[len(trials):], strict=True)]
        return list(trials), costs

    def deliver(self, trials: Sequence[Trial], plan: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Trains, exports and measures the finalists and the hand-designed networks: their records. With a target there are no
        hand-designed ones, every training has its time, whatever the epochs, and it ends with the first network that meets the
        target."""
        config, problem = self.setup.config, self.setup.problem
        orders = [self._found(t, sum(u is t for u in trials[:k])) for k, t in enumerate(trials)]
        orders += [] if config.target else [self._designed(name) for name in final.designed(self.setup)]
        delivery, records = final.Delivery(self.setup, train.Recipe(), self.display.log), []
        with self.display.phase("final training") as watch:
            times = plan.get("seconds", [None] * len(orders))
            for number, (order, length, seconds) in enumerate(zip(orders, plan["epochs"], times, strict=True)):
                tick = partial(_within, watch, number, len(orders), order.id)
                kept = Kept(self.storage, f"checkpoint {order.id}")
                train_it = partial(self._delivered, delivery, order, number, length, tick, kept, seconds)
                records.append(self.ledger.remember(f"final {order.id}", train_it))
                kept.forget()
                if config.target and target.meets(config.target, problem, target.judged(records[-1])):
                    break
            records = self._timed(delivery, orders, records)
        return records[:len(trials)], records[len(trials):]

    def _timed(self, delivery: final.Delivery, orders: Sequence[Order], records: Sequence[Mapping[str, Any]]
               ) -> list[dict[str, Any]]:
        """The records with the latencies of the networks that were delivered, and their quartiles."""
        good = [k for k, record in enumerate(records) if "metrics" in record]

        def compute() -> dict[str, Metrics]:
            nets, folders = [orders[k].build() for k in good], [self.folder.model(orders[k].id) for k in good]
            return dict(zip((orders[k].id for k in good), delivery.latencies(nets, folders), strict=True))

        times, timed = self.ledger.remember("final latencies", compute), list[dict[str, Any]]()
        for record in records:
            timed.append(dict(record))
            if "metrics" in record:
                found = times[record["id"]]
                spreads = {f"{name}_ms": _around(found[f"{name}_ms"], found[f"{name}_iqr_ms"])
                           for name in ("latency", "latency_onnx") if f"{name}_ms" in found}
                timed[-1] |= {"metrics": {**record["metrics"], **found}, "intervals": {**record["intervals"], **spreads}}
        return timed

    def _found(self, trial: Trial, before: int) -> Order:
        """Of an architecture that is trained for the second time, the name says so."""
        arch, setup = trial.ask.arch, self.setup
        predicted = {name: value for name, value in trial.metrics.items() if name != "training_seconds"}  # of a brief training
        about = {"architecture": spaces.labels(setup.problem.space, arch), "predicted": predicted}
        name = spaces.key(arch)[:8] + (f"-{before + 1}" if before else "")
        return Order(name, about, partial(choices.extract, setup.net, arch))

    def _designed(self, name: str) -> Order:
        return Order(name.lower().replace(" ", "-"), {"name": name}, lambda: final.designed(self.setup)[name])

    def _delivered(self, delivery: final.Delivery, order: Order, number: int, epochs: float,
                   watch: Callable[[int, int], None], kept: Kept, seconds: float | None) -> dict[str, Any]:
        """The record of one network; of one whose training fails, the error."""
        folder = self.folder.model(order.id)
        shutil.rmtree(folder, ignore_errors=True)
        with self.folder.writing(folder):
            folder.mkdir(parents=True)
        try:
            found = delivery(order.build(), number, epochs, folder, watch, kept, seconds)
        except (ExportError, FloatingPointError, MemoryError) as problem:
            found = {"failed": one_line(problem)}
        return {"id": order.id, **order.about, **found}


@dataclass(frozen=True)
class Order:
    """A network to train: its name, what its record says of it, and how to build it untrained."""

    id: str
    about: dict[str, Any]
    build: Callable[[], nn.Module]


def _around(middle: float, iqr: float) -> list[float]:
    return [middle - iqr / 2, middle + iqr / 2]


def _within(watch: Watch, number: int, count: int, note: str, done: int, total: int) -> None:
    watch(number + done / total, count, note)


def nothing_found(study: Study) -> str:
    """Why a search has no front: the constraint that is missed by most, or the most frequent error. Of the bound on training
    steps nobody needs to know more than that it follows from the time."""
    clean = [t for t in study.trials if t.error is None]
    if not clean:
        errors = Counter(t.error for t in study.trials)
        return (f"all {len(study.trials)} trials failed, most often with: {errors.most_common(1)[0][0]}" if errors
                else "the budget ended before the first trial: give more time.")
    nearest = min(clean, key=lambda t: study.problem.violation(t.metrics))
    worst = max(study.problem.constraints, key=lambda c: c.violation(nearest.metrics))
    if worst.name == STEP:
        return f"none of {len(clean)} architectures can be trained in the time that is left: give more time."
    return (f"no architecture meets {worst}: the nearest of {len(clean)} has {nearest.metrics[worst.name]:.4g}"
            f"{worst.unit and ' ' + worst.unit}; relax it, or give more time.")
