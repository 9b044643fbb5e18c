"""Tuning a network of a finished run: what is judged where, when a training is stopped, and going on after an interruption."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nasopt import cli, job
from nasopt.errors import InputError
from nasopt.nets import train
from nasopt.pipeline import final, tune
from nasopt.pipeline.folder import Folder
from nasopt.pipeline.ledger import Ledger
from nasopt.pipeline.setup import Config, Setup, prepare
from nasopt.run.storage import Sqlite
from nasopt.tasks.data import Dataset, load
from nasopt.trial import Constraint, Objective

AIMS = (Objective("error"), Objective("params"))


@pytest.fixture(scope="module")
def setup() -> Setup:
    return prepare(Config("digits", objectives=AIMS), load("digits"))


@pytest.fixture
def run(setup: Setup, tmp_path: Path) -> Path:
    """What a finished run leaves that a tuning needs: its log, its split, and results of one network."""
    from nasopt.pipeline.setup import Sampled

    folder = Folder(tmp_path / "run")
    folder.path.mkdir()
    storage = Sqlite(folder.study)
    job._begin(storage, setup, Sampled([], [], []), None, time.perf_counter())
    storage.close()
    folder.save_split(setup.split)
    folder.write_json("results.json", {"front": [], "dominated": [], "designed": [
        {"id": "small-resnet", "name": "small ResNet"}, {"id": "small-mobilenetv2-like", "name": "small MobileNetV2-like"}]})
    return folder.path


class Linear(nn.Module):
    """The smallest network, always with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(x.flatten(1))
        return logits


@pytest.fixture
def linear(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuning of `Linear` in seconds: nothing is prepared again, and what is exported is its state."""
    def export(self: final.Delivery, net: nn.Module, folder: Path) -> dict[str, str]:
        torch.save(net.state_dict(), folder / "model.pt2")
        return {"torch": str((folder / "model.pt2").relative_to(folder.parent.parent))}

    def mistakes(self: final.Delivery, folder: Path, files: Mapping[str, str]) -> tuple[int, int]:
        net, test = Linear(), replace(setup.rest, index=torch.from_numpy(setup.split.test))
        net.load_state_dict(torch.load(folder / Path(files["torch"]).name))
        return round(train.error(net.eval(), test) * len(test)), len(test)

    monkeypatch.setattr(tune, "builder", lambda setup, record: Linear)
    monkeypatch.setattr(final, "epoch_seconds", lambda *given: 0.05)
    monkeypatch.setattr(final.Delivery, "export", export)
    monkeypatch.setattr(final.Delivery, "mistakes", mistakes)
    monkeypatch.setattr(job, "_restored", lambda *given: setup)


def tuned(run: Path, **more: Any) -> dict[str, Any]:
    return job.tune(run, "small-r", **{"budget": 60.0, "trials": 6, "log": lambda line: None} | more)


def never(part: str, metrics: Mapping[str, float]) -> bool:
    return False


# --------------------------------------------------------------------------------------------------------- one trial
def test_a_training_is_judged_on_the_validation_part_after_each_quarter(setup: Setup) -> None:
    params = tune.untuned(setup, 2.0)
    record = tune.Judge(Linear, setup)(params, never)
    assert record["params"] == params and list(record["course"]) == ["1", "2", "3"]
    net = Linear()
    train.fit(net, setup.training, train.Recipe(epochs=2.0), setup.augment, setup.config.seed)
    assert record["metrics"]["error"] == train.error(net, setup.validation, fast=True)
    seconds = [p["seconds"] for p in [*record["course"].values(), record["metrics"]]]
    assert seconds == sorted(seconds)
    assert record["course"]["1"]["error"] > record["metrics"]["error"]


def test_a_training_ends_where_it_is_stopped_or_diverges(setup: Setup) -> None:
    params = tune.untuned(setup, 2.0)
    stopped = tune.Judge(Linear, setup)(params, lambda part, metrics: part == "2")
    assert list(stopped["course"]) == ["1", "2"] and stopped["metrics"] is None

    class Broken(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * torch.nan

    broken = tune.Judge(Broken, setup)(params, never)
    assert broken["metrics"] is None and broken["course"]["1"]["error"] == 1.0


def test_every_hyper_parameter_changes_the_training(setup: Setup) -> None:
    """None is an option without effect; the two of the kernels need a kernel."""
    def conv() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10))

    def weights(params: Mapping[str, Any]) -> torch.Tensor:
        recipe, augment = tune.training(params)
        net = conv()
        train.fit(net, setup.training, recipe, augment, 0)
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    default = tune.untuned(setup, 0.5)
    before = weights(default)
    assert set(default) == set(tune.ranges(setup, 0.5))
    for name, where in tune.ranges(setup, 0.5).items():
        other = {"flip": True, "translate": 0, "epochs": 0.25}.get(name, getattr(where, "high", None))
        assert other != default[name]
        assert not torch.equal(weights(default | {name: other}), before), name
    assert torch.equal(weights(default), before)


def test_a_mirrored_network_learns_from_mirror_images_and_is_judged_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).integers(0, 255, (60, 16, 16, 3)).astype(np.uint8)
    data = Dataset(x, np.arange(60) % 3, ("a", "b", "c"), "NHWC", "noise", {})
    plain, mirrored = (prepare(Config("noise", objectives=AIMS, mirror=m), data) for m in (False, True))
    assert tune.ranges(plain, 4.0)["flip"].choices == (False, True)  # type: ignore[attr-defined]
    assert tune.ranges(mirrored, 4.0)["flip"].choices == (True,)  # type: ignore[attr-defined]
    judged = list[nn.Module]()
    monkeypatch.setattr(tune, "error", lambda net, *rest, **more: judged.append(net) or 0.5)
    build = lambda: nn.Sequential(nn.Conv2d(3, 3, 16), nn.Flatten())  # noqa: E731
    tune.Judge(build, mirrored)(tune.untuned(mirrored, 1.0), never)
    assert judged and all(isinstance(net, train.Mirrored) for net in judged)


@pytest.mark.parametrize(("point", "others", "stopped"), [
    ([0.5], [[0.1], [0.2], [0.6], [0.7]], True),  # worse than half
    ([0.5], [[0.1], [0.5], [0.6], [0.7]], False),  # an equal one is not better
    ([0.5], [[0.1], [0.1], [0.1]], False),  # too few to tell
    ([0.5, 9.0], [[0.1, 1.0], [0.2, 8.0], [0.6, 1.0], [0.1, 10.0]], True),
    ([0.5, 9.0], [[0.1, 1.0], [0.2, 9.5], [0.6, 1.0], [0.1, 10.0]], False),  # quicker than those that are more accurate
    ([0.5], [], False),
])
def test_the_stopping_rule(point: list[float], others: list[list[float]], stopped: bool) -> None:
    assert tune.outdone(point, np.array(others).reshape(len(others), len(point))) == stopped


# ------------------------------------------------------------------------------------------------------- proposals
def records(setup: Setup, count: int, error: Callable[[Mapping[str, Any]], float],
            names: tuple[str, ...]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for _ in range(count):
        params = tune.propose(found, tune.ranges(setup, 8.0), names, 0)
        course = {"1": {"error": 0.9, "seconds": 0.1}}
        done = {"error": error(params), "seconds": params["epochs"]}
        found.append({"params": params, "course": course, "metrics": None if len(found) % 5 == 4 else done})
    return found


def test_proposals_follow_from_the_log_and_find_what_matters(setup: Setup) -> None:
    def error(params: Mapping[str, Any]) -> float:
        return float(abs(np.log10(params["lr"]) + 1.5)) + 0.01 * float(params["flip"])

    found = records(setup, 40, error, ("error",))
    assert records(setup, 12, error, ("error",)) == found[:12]
    early, late = ([error(t["params"]) for t in part] for part in (found[:10], found[-10:]))
    assert np.median(late) < np.median(early)
    shares = tune.importance(found, tune.ranges(setup, 8.0))
    assert max(shares, key=lambda n: shares[n]) == "lr" and sum(shares.values()) == pytest.approx(1)
    assert tune.importance(found[:tune.FEW], tune.ranges(setup, 8.0)) == {}
    assert tune.importance([found[0]] * 20, tune.ranges(setup, 8.0)) == {}
    two = records(setup, 14, error, ("error", "seconds"))
    assert len({t["params"]["lr"] for t in two}) == 14


# ----------------------------------------------------------------------------------------------------------- tuning
@pytest.mark.usefixtures("linear")
def test_a_tuning_compares_with_the_untuned_recipe_on_the_test_part_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    real = final.Delivery.mistakes

    def count(self: final.Delivery, folder: Path, files: Mapping[str, str]) -> tuple[int, int]:
        seen.append((folder.name, len(self.setup.rest)))
        return real(self, folder, files)

    monkeypatch.setattr(final.Delivery, "mistakes", count)
    found = tuned(run, objectives="error,seconds")
    assert json.loads((run / "tune" / "small-resnet.json").read_text()) == found
    trials = found["trials"]
    assert len(trials) == 6 and trials[0]["params"]["lr"] == train.Recipe().lr
    done = {k: t["metrics"] for k, t in enumerate(trials) if t["metrics"] is not None}
    assert done[found["best"]]["error"] == min(m["error"] for m in done.values())
    assert found["best"] in found["front"] and min(done, key=lambda k: done[k]["seconds"]) in found["front"]
    before, after = found["untuned"], found["tuned"]
    assert before["params"]["epochs"] == after["params"]["epochs"] == before["epochs"] == after["epochs"]
    assert before["params"]["momentum"] == train.Recipe().momentum
    assert after["params"] == trials[found["best"]]["params"]
    for record in (before, after):
        low, high = record["intervals"]["test_error"]
        assert low < record["metrics"]["test_error"] < high and (run / record["files"]["torch"]).is_file()
    assert {name for name, _ in seen} == {"small-resnet-untuned", *(["small-resnet-tuned"] if found["best"] else [])}
    assert len(seen) <= 2 and {n for _, n in seen} == {len(load("digits").y) - found_test(run)}
    assert tuned(run, objectives="error,seconds", trials=50) == found and len(seen) <= 2, "what is done is not done again"
    with pytest.raises(InputError, match="was begun with the objectives error,seconds: give the same"):
        tuned(run)


def found_test(run: Path) -> int:
    return len(np.load(run / "split.npz")["test"])


def interrupted(run: Path, monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """A tuning that ends in its fourth training; what is trained, from then on too."""
    whole, calls = tune.Judge.__call__, list[Mapping[str, Any]]()

    def cut(self: tune.Judge, params: Mapping[str, Any], stop: Callable[..., bool]) -> dict[str, Any]:
        calls.append(params)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(self, params, never)

    monkeypatch.setattr(tune.Judge, "__call__", cut)
    with pytest.raises(KeyboardInterrupt):
        tuned(run)
    return calls


@pytest.mark.usefixtures("linear")
def test_an_interrupted_tuning_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = interrupted(run, monkeypatch)
    log = Sqlite(run / "tune" / "small-resnet.db", readonly=True)
    kept = [Ledger(log).recall(f"trial {k}") for k in range(4)]
    log.close()
    assert kept[3] is None and None not in kept[:3]
    found = tuned(run)
    assert found["trials"][:3] == kept[:3] and len(calls) == 4 + 3 and len(found["trials"]) == 6


@pytest.mark.usefixtures("linear")
def test_a_tuning_that_was_killed_knows_its_time(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(run, monkeypatch)
    log = Sqlite(run / "tune" / "small-resnet.db")
    assert 0 < Ledger(log).recall("spent") <= Ledger(log).seconds("trials")
    Ledger(log).store("seconds of trials", 0.0)  # what a SIGKILL leaves
    Ledger(log).store("spent", 1e9)
    log.close()
    assert len(tuned(run)["trials"]) == 3, "the time is over"


@pytest.mark.usefixtures("linear")
def test_a_last_training_that_fails_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*given: object, **named: object) -> None:
        raise FloatingPointError("the loss is nan")

    monkeypatch.setattr(final.Delivery, "__call__", failing)
    with pytest.raises(InputError, match=r"untuned, of small-resnet failed \(FloatingPointError: the loss is nan\): tune"):
        tuned(run)
    monkeypatch.setattr(final, "epoch_seconds", failing)
    with pytest.raises(InputError, match="first step of a training of small-mobilenetv2-like failed"):
        job.tune(run, "small-m", budget=60.0, log=lambda line: None)


@pytest.mark.usefixtures("linear")
def test_a_tuning_that_is_complete_says_so_and_one_beyond_its_limit_ends(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = interrupted(run, monkeypatch)
    assert len(tuned(run, trials=2)["trials"]) == 3 and len(calls) == 4
    said = list[str]()
    assert len(tuned(run, trials=9, log=said.append)["trials"]) == 3
    assert any("is complete, with 3 trainings: to tune it anew remove" in line for line in said)


@pytest.mark.usefixtures("linear")
def test_the_command_prints_both_test_errors(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune", str(run), "small-r", "--budget", "60s", "--trials", "3", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "test error, untuned: " in out and "test error, tuned: " in out and "3 trainings, 0 of them stopped" in out
    assert "weight_decay" in out and f"written: {run}/tune/small-resnet.json" in out


@pytest.mark.usefixtures("linear")
def test_the_last_trainings_of_a_run_with_a_target_have_both_parts(run: Path, setup: Setup,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    aimed = prepare(Config("digits", objectives=AIMS, target=(Constraint("error", 0.1),)), setup.dataset, parts=setup.split)
    assert len(aimed.lessons) < len(aimed.rest)
    monkeypatch.setattr(job, "_restored", lambda *given: aimed)
    learned = list[int]()
    fit = train.fit
    monkeypatch.setattr(final.train, "fit", lambda net, images, *rest, **more: learned.append(len(images))
                        or fit(net, images, *rest, **more))
    tuned(run, trials=1)
    assert learned and set(learned) == {len(aimed.rest)}


@pytest.mark.usefixtures("linear")
def test_the_time_ends_a_tuning(run: Path) -> None:
    """Two seconds are less than the two last trainings take: nothing but the untuned training is tried, and tells alone."""
    found = tuned(run, budget=2.0, trials=None)
    assert len(found["trials"]) == 1 and found["tuned"] == found["untuned"]
    assert not (run / "tune" / "small-resnet-tuned").exists()


def test_the_networks_of_a_record(setup: Setup) -> None:
    from nasopt import space

    arch = space.sample(setup.problem.space, np.random.default_rng(0))
    found = tune.builder(setup, {"architecture": space.labels(setup.problem.space, arch)})
    assert found()(setup.example).shape == (1, 10)
    assert all(torch.equal(a, b) for a, b in zip(found().parameters(), found().parameters(), strict=True))
    assert tune.builder(setup, {"name": "small ResNet"})().eval()(setup.example).shape == (1, 10)


@pytest.mark.parametrize(("name", "options", "sentence"), [
    ("small", {}, "fits several networks, small-resnet, small-mobilenetv2-like"),
    ("nonsense", {}, "unknown network 'nonsense'"),
    ("small-r", {"objectives": "error,second"}, "did you mean 'seconds'"),
    ("small-r", {"objectives": "seconds"}, "must hold 'error'"),
    ("small-r", {"trials": 0}, "at least 1 training"),
    ("small-r", {"budget": "0s"}, "duration '0s'"),
])
def test_bad_input(run: Path, name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        job.tune(run, name, **options)
    assert not (run / "tune").exists()


def test_a_run_that_is_missing_or_not_finished(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        job.tune(tmp_path, "small-r")
    (run / "results.json").unlink()
    with pytest.raises(InputError, match="finish the run with 'nasopt resume"):
        job.tune(run, "small-r")
