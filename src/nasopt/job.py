"""The main job: from a data set to a Pareto front of trained, measured, exported networks, and a report."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nasopt import goals
from nasopt import space as spaces
from nasopt.analysis.hypervolume import bounds, curve, hypervolume, reference_point
from nasopt.errors import InputError, unknown
from nasopt.files import write_whole
from nasopt.machine import machine, versions
from nasopt.nets.train import bf16_pays
from nasopt.pipeline import certify
from nasopt.pipeline import phases as phase
from nasopt.pipeline import target as targets
from nasopt.pipeline.final import DESIGNED_SHARE, LARGEST_SHARE
from nasopt.pipeline.finals import Finals
from nasopt.pipeline.folder import Folder
from nasopt.pipeline.ledger import Ledger
from nasopt.pipeline.phases import Phases, load_weights, weights_to_bytes
from nasopt.pipeline.progress import Display
from nasopt.pipeline.relaxed import Plan, said_of
from nasopt.pipeline.setup import Config, Sampled, Setup, check_config, fingerprint, has_onnx, prepare, survey
from nasopt.run.search import spent
from nasopt.run.storage import Sqlite
from nasopt.space import Arch
from nasopt.strategies.catalogue import COLD, NETWORKS
from nasopt.tasks.data import WORDS, Dataset, Split, checked, load
from nasopt.trial import Constraint, Objective, Study, nondominated


@dataclass(frozen=True)
class Network:
    """One trained network of a run.

    Attributes:
        id: short name, from the architecture.
        architecture: path of every choice -> label of its option.
        metrics: measured after training; ``test_error`` is a fraction, the other keys carry their units.
        files: format (``onnx``, ``torch``) -> absolute path.
    """

    id: str
    architecture: Mapping[str, str]
    metrics: Mapping[str, float]
    files: Mapping[str, Path]


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its record (what the report shows)."""

    path: Path
    results: Mapping[str, Any]

    def front(self) -> list[Network]:
        """The trained networks that no other trained network dominates, most accurate first."""
        return [Network(r["id"], r["architecture"], r["metrics"], {k: (self.path / v).resolve() for k, v in r["files"].items()})
                for r in self.results["front"]]

    @property
    def report(self) -> Path:
        """The report, one HTML file."""
        return Folder(self.path).report


def search(data: str | Path | Dataset, *, net: nn.Module | None = None, space: str = "cells",
           objectives: str | Sequence[Objective] = "error,latency,memory", constraints: Sequence[str | Constraint] = (),
           budget: float | str = 200.0, trials: int | None = None, strategy: str = "hybrid", networks: int = 10,
           min_gain: float | str | None = None, target: str | Constraint | Sequence[str | Constraint] = (),
           device: str = "cpu", mirror: bool = False, image_size: tuple[int, int] | None = None, out: str | Path = "runs/study",
           seed: int = 0, log: Callable[[str], None] = print, progress: bool = False) -> Run:
    """Searches, trains the front, measures and exports every network, and writes the report.

    Args:
        data: a source that `nasopt.tasks.data.load` knows, or a `Dataset`.
        net: a network of your own with inline choices (`nasopt.nets.choices`); None: the built-in ``space``.
        space: ``cells``, ``nb201``, ``darts``, ``fast`` or ``fast-wide``.
        objectives: names as on the command line, or `Objective`s; the error is one of them.
        constraints: bounds as on the command line ("latency<=2ms"), or `Constraint`s.
        budget: the time for everything, search and training: seconds, or a text such as "30m".
        trials: evaluations of the search at most.
        strategy: how to search, by its name on the command line.
        networks: how many networks of the front are trained at most.
        min_gain: end the search when the next tenth of its trials is expected to add less than this share to the hypervolume:
            a number, or a text such as "1%". What it saves is left to the final trainings.
        target: a bound, or several that one network must meet, such as "error<=6%": the run ends with the first trained network
            whose error on the validation part and whose costs meet it, or with the budget. All time is the target's then: no
            random search and no hand-designed networks beside.
        device: where networks are trained, ``cpu``, ``cuda`` or ``cuda:1``, ...; strategies that relax a network only on the CPU.
            Latencies and the other costs are those of the CPU.
        mirror: deliver networks that answer with the mean for an image and for its mirror image, for images that are mirrored in
            training: less error at twice the latency.
        image_size: (height, width) in pixels to which the images of a folder are resized; None requires equal sizes.
        out: the run folder; it must not exist yet.
        seed: of everything random; runs with one seed propose the same networks as long as they measure the same.
        log: takes one line of text at a time.
        progress: draw progress bars.

    Raises:
        InputError: anything in the input that cannot work, before anything is written; or, later, a disk that is full or a
            search that finds nothing feasible.
    """
    began, folder, display = time.perf_counter(), Folder(Path(out)), Display(log, progress)
    texts = [objectives] if isinstance(objectives, str) else objectives
    aims = tuple(o for t in texts for o in (goals.parse_objectives(t) if isinstance(t, str) else (t,)))
    limits = [constraints] if isinstance(constraints, str) else constraints
    bars = tuple(goals.parse_constraint(c) if isinstance(c, str) else c for c in limits)
    seconds = goals.parse_duration(budget) if isinstance(budget, str) else float(budget)
    if isinstance(data, Dataset):
        source = data.name
    else:
        source = str(data) if data in WORDS else os.path.realpath(os.path.expanduser(data))
    least = goals.parse_share(min_gain) if isinstance(min_gain, str) else min_gain
    wanted = [target] if isinstance(target, str | Constraint) else target
    ends = tuple(goals.parse_constraint(c, "target") if isinstance(c, str) else c for c in wanted)
    if net is not None and not isinstance(net, nn.Module):
        raise InputError(f"net is a {type(net).__name__}, not a module: give an nn.Module with choices, such as net=Net().")
    if net is not None and space != "cells":
        raise InputError(f"net has its own space, so that space={space!r} says nothing: leave one of them out.")
    if net is None and space == "own":
        raise InputError("space='own' is that of a network of your own: give the network, such as net=Net().")
    config = Config(source, "own" if net is not None else space, aims, bars, seconds, trials, strategy, seed, networks,
                    min_gain=least, target=ends, device=device, mirror=mirror, given=isinstance(data, Dataset),
                    image_size=image_size)
    check_config(config)
    folder.refuse_existing()
    setup = prepare(config, checked(data) if isinstance(data, Dataset) else load(data, image_size), net)
    sampled = survey(setup)
    log(preflight(setup, folder))
    plan = phase.planned(setup, sampled) if strategy in NETWORKS else None
    with folder.created():
        storage = Sqlite(folder.study)
        try:
            _begin(storage, setup, sampled, plan, began)
            folder.save_split(setup.split)
        finally:
            storage.close()
    return _continue(Sqlite(folder.study), setup, folder, display)


def _begin(storage: Sqlite, setup: Setup, sampled: Sampled, plan: Plan | None, began: float) -> None:
    """Stores what a resume needs; the configuration last, as the sign that all of it is there. What was done since the time
    ``began`` counts, that of a gradient strategy's plan as search."""
    ledger = Ledger(storage)
    ledger.store("started", datetime.now(UTC).isoformat(timespec="seconds"))
    ledger.store("origin", origin(setup.config))
    ledger.store("survey", asdict(sampled))
    ledger.store("data", fingerprint(setup.dataset))
    if plan is not None:
        ledger.store("plan", asdict(plan))
        ledger.charge("search", plan.measured)
    storage.put("initial.weights", weights_to_bytes(setup.net))
    ledger.charge("preparation", time.perf_counter() - began - (0.0 if plan is None else plan.measured))
    ledger.store("config", setup.config.to_json())


def origin(config: Config) -> dict[str, Any]:
    """Where and with what a run is made."""
    return {"machine": machine(), "versions": versions(), "device": device_text(config.device),
            "threads": torch.get_num_threads()}


def _continue(storage: Sqlite, setup: Setup, folder: Folder, display: Display) -> Run:
    try:
        return _carry_out(Phases(setup, storage, folder, display))
    finally:
        storage.close()


def resume(out: str | Path, *, data: Dataset | None = None, net: nn.Module | None = None, log: Callable[[str], None] = print,
           progress: bool = False) -> Run:
    """Continues a run that was interrupted, from the last result that was stored.

    Args:
        data, net: the data set and network that `search` was given, if they were not named by a word or path.

    Raises:
        InputError: no run, a damaged one, one that another process is using, or one whose network is missing.
    """
    folder = Folder(Path(out))
    folder.require()
    storage = Sqlite(folder.study)
    try:
        setup = _restored(storage, folder, data, net)
    except BaseException:
        storage.close()
        raise
    return _continue(storage, setup, folder, Display(log, progress))


def _restored(storage: Sqlite, folder: Folder, data: Dataset | None, net: nn.Module | None) -> Setup:
    ledger, weights = Ledger(storage), storage.get("initial.weights")
    if ledger.recall("config") is None or weights is None or not folder.split.exists():
        raise InputError(f"{folder.path} was interrupted before it began: remove it and start again.")
    config = Config.from_json(ledger.recall("config"))
    if config.space == "own" and net is None:
        raise InputError(f"{folder.path} searches a network of your own: give it from Python, as in "
                         "nasopt.resume(path, net=...) or nasopt.tune(path, id, net=...).")
    if config.given and data is None:
        raise InputError(f"{folder.path} was given its data from Python: give it again, as in nasopt.resume(path, data=...) or "
                         "nasopt.tune(path, id, data=...).")
    dataset = load(config.data, config.image_size) if data is None else checked(data)
    if fingerprint(dataset) != ledger.recall("data"):
        raise InputError(f"the data {config.data!r} is not what it was when {folder.path} began: put the old data back, or "
                         "start a new run.")
    setup = prepare(config, dataset, net, Split.load(folder.split))
    load_weights(setup.net, weights)
    return setup


def preflight(setup: Setup, folder: Folder) -> str:
    """One line before the start: size of the space, expected time and memory."""
    config = setup.config
    tensors = sum(t.numel() * t.element_size() for t in setup.net.state_dict().values())
    images = setup.training.x.nbytes
    free = shutil.disk_usage(_existing(folder.path.absolute())).free
    return (f"space {config.space}: {spaces.counted(setup.problem.space, '.3g')} architectures; "
            f"{len(setup.split.train)} training, {len(setup.split.val)} validation, {len(setup.split.test)} test images; "
            f"time about {config.seconds:.0f} s; "
            f"memory about {(4 * tensors + images) / 1e9 + 0.5:.1f} GB; disk free {free / 1e9:.0f} GB")


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _carry_out(phases: Phases) -> Run:
    folder, name = phases.folder, phases.setup.config.strategy
    here = origin(phases.setup.config)
    if phases.ledger.remember("origin", lambda: here) != here and not phases.ledger.recall("complete final training"):
        phases.ledger.store("elsewhere", True)
    with phases.ledger.timed("supernet"):
        phases.supernet()
    with phases.ledger.timed("trust"):
        trust = phases.trust()
    phases.display.log(trust["sentence"])
    costs = said_of(phases.plan()) if name in NETWORKS else ""
    if costs:
        phases.display.log(costs)
        trust = {**trust, "costs": costs}
    initial = list[Arch]()
    if name != "random" and name not in COLD:
        with phases.ledger.timed("warm start"):
            initial = phases.warm_start()
    with phases.ledger.timed("search"):
        study = phases.search(name, phases.storage, initial=initial)
    head = phases.ledger.seconds("warm start") + phases.measured  # part of what the search cost
    times, studies = {name: [head + s for s in spent(phases.storage)]}, {name: study}
    if name != "random" and not phases.setup.config.target:
        with phases.ledger.timed("random search"), closing(Sqlite(folder.random)) as log:
            studies["random"] = phases.search("random", log, "random search")
            times["random"] = spent(log)
    with phases.ledger.timed("final training"):
        finals = Finals(phases.setup, phases.storage, phases.folder, phases.display)
        plan = finals.finalists(study, phases.spent())
        chosen = [next(t for t in study.trials if t.ask.number == n) for n in plan["numbers"]]
        trained, designed = finals.deliver(chosen, plan)
    plan = {**plan, "epochs": plan["epochs"][:len(trained) + len(designed)], "skipped": len(chosen) - len(trained)}
    results = assemble(phases, progress_of(studies, times), trained, designed, trust, plan)
    folder.write_json("results.json", results)
    folder.write_json("front.json", [{k: r[k] for k in ("id", "architecture", "metrics", "files")} for r in results["front"]])
    report(folder.path)
    return Run(folder.path, results)


# --------------------------------------------------------------------------------------------------------------- results
def assemble(phases: Phases, search: dict[str, Any], delivered: Sequence[Mapping[str, Any]],
             baselines: Sequence[Mapping[str, Any]], trust: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the report shows, as plain JSON values."""
    setup, config = phases.setup, phases.setup.config
    names = ["test_error" if o.name == "error" else o.name for o in config.objectives]
    trained, designed = ([dict(r) for r in records if "metrics" in r] for records in (delivered, baselines))
    allowed, good_designed = ([r for r in records if _violation(setup, r) == 0] for records in (trained, designed))
    on_front = nondominated(np.array([[r["metrics"][n] for n in names] for r in allowed]).reshape(-1, len(names)))
    front = sorted((r for r, good in zip(allowed, on_front, strict=True) if good), key=lambda r: r["metrics"]["test_error"])
    relaxed = certify.report(phases.storage, config.strategy)
    ending = targets.verdict(config.target, setup.problem, delivered, plan["skipped"]) if config.target else None
    parts = {part: len(getattr(setup.split, part)) for part in ("train", "val", "test")}
    estimates = "stand-alone" if trust["fallback"] else "one-shot"
    estimates += ", from the weights of the relaxed network" if phases.inherits else ""
    return {
        "title": f"nasopt: {setup.dataset.name}",
        "command": command(config, phases.folder.path),
        "data": {"source": setup.dataset.name, "classes": list(setup.dataset.classes), **parts,
                 "input_shape": list(setup.dataset.input_shape), "notes": list(setup.dataset.notes)},
        "space": {"name": config.space, "size": spaces.counted(setup.problem.space, ".3g"),
                  "description": f"{len(spaces.layout(setup.problem.space).genes)} choices"},
        "seed": config.seed,
        "interval_note": "errors: 95 % Wilson interval over the images; latencies: half the interquartile range",
        "objectives": [{"name": o.name, "unit": o.unit, "minimise": o.minimise} for o in config.objectives],
        "constraints": [str(c) for c in config.constraints],
        "front": front,
        "dominated": [r for r in trained if r not in front],
        "designed": [r | {"breaks": _broken(setup, r)} for r in designed],
        "search": search | {"front_hypervolume": compare(allowed, good_designed, names),
                            "estimator": estimates},
        **({} if relaxed is None else {"relaxed": relaxed}),
        **({} if ending is None else {"target": ending}),
        "trust": {k: v for k, v in trust.items() if k != "sentence" or "value" not in trust},
        "provenance": {**phases.ledger.recall("origin"), "started": phases.ledger.recall("started"),
                       "phases": {p: phases.ledger.seconds(p) for p in phase.PHASES}, "total_seconds": phases.spent(),
                       "peak_memory_mb": {p: peaks for p in phase.PHASES if (peaks := phases.ledger.peaks(p))},
                       "epochs": max([r["epochs"] for r in (*trained, *designed)] or plan["epochs"]),
                       "bf16": setup.training.device.type != "cpu" or bf16_pays(),
                       "warnings": warnings(phases, front, [*delivered, *baselines], plan)},
    }


def device_text(name: str) -> str:
    """The device where networks were trained: a GPU with its product name."""
    return "cpu" if torch.device(name).type == "cpu" else f"{name}, {torch.cuda.get_device_name(name)}"


def _violation(setup: Setup, record: Mapping[str, Any]) -> float:
    """By how much the final measurements violate the constraints."""
    return setup.problem.violation(_measured(record))


def _broken(setup: Setup, record: Mapping[str, Any]) -> list[str]:
    """The constraints that the final measurements violate."""
    return [str(c) for c in setup.problem.constraints if c.violation(_measured(record)) > 0]


def _measured(record: Mapping[str, Any]) -> dict[str, float]:
    """The final measurements, of which the error is the test error."""
    return {**record["metrics"], "error": record["metrics"]["test_error"]}


def progress_of(studies: Mapping[str, Study], times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Hypervolume over time of every search in one fixed frame, that of their joint front on the scale of ratios of each
    objective; and all trials. Where no network of any search had its whole training, those of each that had the most count.

    Args:
        times: seconds spent when each trial was complete.
    """
    problem = next(iter(studies.values())).problem
    whole = any(s.feasible() for s in studies.values())
    feasible = {name: {t.ask.number for t in (s if whole else s.promoted()).feasible()} for name, s in studies.items()}
    values = {name: np.array([_log_values(s, t.metrics) if t.ask.number in feasible[name] else [np.inf] * len(problem.objectives)
                              for t in s.trials]).reshape(-1, len(problem.objectives)) for name, s in studies.items()}
    reference = reference_point(*bounds(np.concatenate(list(values.values()))))
    curves = {name: {"seconds": list(times[name]), "evaluations": list(range(1, len(s.trials) + 1)),
                     "hypervolume": curve(values[name], reference).tolist()} for name, s in studies.items()}
    return {"reference": reference.tolist(), "objectives": [o.name for o in problem.objectives], "curves": curves,
            "stopped": next(iter(studies.values())).stopped,
            "scale": "natural logarithm of every objective (errors: of error + 0.01)",
            "trials": [{"by": name, "metrics": dict(t.metrics), "error": t.error}
                       for name, s in studies.items() for t in s.trials]}


def _log_values(study: Study, metrics: Mapping[str, float]) -> list[float]:
    return [float(np.log(v + 0.01)) if goals.named(o.name).kind == "share" else float(np.log(max(v, 1e-9)))
            for o, v in zip(study.problem.objectives, study.problem.values(metrics), strict=True)]


def compare(trained: Sequence[Mapping[str, Any]], designed: Sequence[Mapping[str, Any]],
            names: Sequence[str]) -> dict[str, float]:
    """Hypervolume of the trained networks and of the hand-designed ones, of either those that meet the constraints, on the final
    measurements, as shares of their joint frame (natural logarithms; error + 0.01). Empty if one side is."""
    if not trained or not designed:
        return {}

    def rows(records: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        values = [[r["metrics"][n] + (0.01 if n == "test_error" else 1e-9) for n in names] for r in records]
        return np.asarray(np.log(np.array(values)))

    everything = np.concatenate([rows(trained), rows(designed)])
    low, high = everything.min(axis=0), everything.max(axis=0)
    reference = reference_point(low, high)
    total = float(np.prod(reference - low))
    return {"found": hypervolume(rows(trained), reference) / total, "designed": hypervolume(rows(designed), reference) / total}


def warnings(phases: Phases, front: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]],
             plan: Mapping[str, Any]) -> list[str]:
    """What a reader should know before believing the rest."""
    setup, out = phases.setup, []
    if not has_onnx():
        out.append("ONNX is not installed: no ONNX files were written (pip install 'nasopt[onnx]').")
    if phases.ledger.recall("elsewhere"):
        out.append("The run was continued on another machine, with other versions or threads than those named: its latencies and "
                   "times are of both.")
    killed = [name for name in phase.PHASES if phases.ledger.killed(name)]
    if killed:
        out.append(f"The run was killed during {' and '.join(killed)} and resumed: its times lack what was lost there.")
    if phases.spent() > 1.2 * setup.config.seconds:
        out.append(f"The run took {phases.spent():.0f} s instead of {setup.config.seconds:.0f} s.")
    if plan["dear"]:
        out.append(f"{len(plan['dear'])} larger networks of the search's front were too dear to train in this time.")
    short = [r["id"] for r in records if "epochs" in r and r["epochs"] < 0.99 * max(plan["epochs"])]
    if short and not setup.config.target:
        out.append(f"{', '.join(short)} learned for fewer epochs than the others: a found network may take "
                   f"{LARGEST_SHARE:.0%} of the time, a hand-designed one {DESIGNED_SHARE:.0%}.")
    out += [f"The training of {r['id']} failed: {r['failed']}." for r in records if "failed" in r]
    broken = [r["id"] for r in records if "predicted" in r and "metrics" in r and _violation(setup, r) > 0]
    if broken:
        out.append(f"{', '.join(broken)} broke a constraint after training: kept off the front.")
    out.append("The front is judged by the test error, which flatters its most accurate member a little.")
    if sum("predicted" in r and "metrics" in r for r in records) > 1 and not setup.config.target:
        out.append("The hypervolume compares several found networks with two hand-designed ones at most.")
    least = 1 if len(setup.config.objectives) == 1 else min(3, setup.config.networks)
    if len(front) < least and not setup.config.target:
        out.append(f"Only {len(front)} network{' is' if len(front) == 1 else 's are'} on the front: give more time.")
    return out


def command(config: Config, out: Path) -> str:
    """The command line that repeats the run; of a network or data of the user's own, the call."""
    bounds, ends = ([f"{c.name}<={float(c.upper)!r}{c.unit}" for c in of] for of in (config.constraints, config.target))
    own = config.space == "own"
    options = {"space": None if own else config.space, "objectives": ",".join(o.name for o in config.objectives),
               "constraint": bounds, "budget": f"{config.seconds:.10g}s", "target": ends, "trials": config.trials,
               "networks": config.networks, "strategy": config.strategy, "min_gain": config.min_gain, "device": config.device,
               "mirror": config.mirror, "image_size": config.image_size, "seed": config.seed, "out": str(out)}
    said = {name: value for name, value in options.items() if value is not None and value is not False and value != []}
    if own or config.given:
        said = {"constraints" if name == "constraint" else name: value for name, value in said.items()}
        head = ["..." if config.given else repr(config.data), *(["net=..."] if own else [])]
        return f"nasopt.search({', '.join([*head, *(f'{name}={value!r}' for name, value in said.items())])})"
    words = ["nasopt", "search", "--data", config.data]
    for name, value in said.items():
        for each in value if isinstance(value, list) else [value]:
            text = "x".join(map(str, each)) if isinstance(each, tuple) else str(each)
            words += [f"--{name.replace('_', '-')}", *([] if each is True else [text])]
    return shlex.join(words)


# ------------------------------------------------------------------------------------------------------------ afterwards
def report(out: str | Path) -> Path:
    """Writes the report of a run again.

    Raises:
        InputError: no finished run.
    """
    from nasopt.report import html

    folder = Folder(Path(out))
    folder.require()
    results = folder.read_json("results.json")
    with folder.writing(folder.report):
        html.write(results, folder.report)
    return folder.report


def export(out: str | Path, name: str, form: str, to: str | Path) -> Path:
    """Copies one exported network of a run.

    Args:
        name: the network's id, or the beginning of one.
        form: ``onnx`` or ``torch``.
        to: a file, or a folder.

    Raises:
        InputError: no such run, network or format, or the target exists or cannot be written.
    """
    folder = Folder(Path(out))
    record = _trained(folder, name)
    files = record["files"]
    if form not in files:
        raise unknown("format", form, files)
    source, target = folder.path / files[form], Path(to)
    if not source.is_file():
        raise InputError(f"{source} is missing: the run folder is not complete.")
    try:
        target = target / f"{record['id']}{source.suffix}" if target.is_dir() else target
        if target.exists():
            raise InputError(f"{target} exists already: choose another name with --to.")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, source.read_bytes())
    except OSError as problem:
        raise InputError(f"{target} cannot be written ({problem.strerror}): choose another place with --to.") from problem
    return target


def _trained(folder: Folder, name: str) -> dict[str, Any]:
    """The record of one trained network of a finished run, by its id or the beginning of it.

    Raises:
        InputError: no run, one that is not finished, or no such network.
    """
    folder.require()
    records = folder.read_json("results.json")
    known: dict[str, dict[str, Any]] = {r["id"]: r for group in ("front", "dominated", "designed") for r in records[group]}
    matches = [name] if name in known else [i for i in known if i.startswith(name)]
    if name and len(matches) > 1:
        raise InputError(f"the name {name!r} fits several networks, {', '.join(matches)}: give all of one.")
    if not name or not matches:
        raise unknown("network", name, known)
    return known[matches[0]]


def tune(out: str | Path, name: str, *, budget: float | str = "5m", trials: int | None = None, objectives: str = "error",
         data: Dataset | None = None, net: nn.Module | None = None, log: Callable[[str], None] = print,
         progress: bool = False) -> dict[str, Any]:
    """Tunes the hyper-parameters of the training of one network of a finished run, or goes on with that.

    The validation part judges. In the end the best hyper-parameters and the untuned ones train on training and validation part
    for equally many epochs, and the test part tells, once. All of it is kept below ``tune`` in the run folder.

    Args:
        name: the network's id, or the beginning of one.
        budget: the time for everything: seconds, or a text such as "30m".
        trials: trainings of the search at most; two more follow.
        objectives: ``error``, or ``error,seconds``: of the training.
        data, net: the data set and network that `search` was given, if they were not named by a word or path.

    Returns:
        What stands in ``tune/ID.json``: {id, objectives, trials, best, front, importance, untuned, tuned}.

    Raises:
        InputError: no finished run, no such network, bad limits, other objectives than it was begun with, or no Optuna.
    """
    from nasopt.pipeline import tune as tuning

    seconds = goals.parse_duration(budget) if isinstance(budget, str) else float(budget)
    if not 0 < seconds < math.inf or (trials is not None and trials < 1):
        raise InputError(f"a tuning needs a time above 0 and at least 1 training, got {seconds:g} s and {trials}.")
    names, folder = tuning.parse(objectives), Folder(Path(out))
    record = _trained(folder, name)
    with closing(Sqlite(folder.study, readonly=True)) as storage:
        setup = _restored(storage, folder, data, net)
    setup = replace(setup, config=replace(setup.config, target=()), lessons=setup.rest)  # a tuning ends with both parts
    return tuning.tune(setup, record, folder, names, seconds, trials, Display(log, progress))
