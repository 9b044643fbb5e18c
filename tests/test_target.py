"""Searching until a target is met: what is planned, when it ends, what is said."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import nasopt
from nasopt import job, space
from nasopt.errors import InputError
from nasopt.goals import parse_constraint
from nasopt.pipeline import final, setup, target
from nasopt.pipeline import finals as finals_module
from nasopt.pipeline.finals import Finals
from nasopt.pipeline.setup import EXPECTED, Config
from nasopt.run.search import Budget, search
from nasopt.strategies.random import RandomSearch
from nasopt.strategies.stopping import Reached
from nasopt.trial import Ask, Constraint, Objective, Problem, Trial
from test_job import own

GRID = space.Product("", [space.Choice("a", "0123456789")])
PROBLEM = Problem(GRID, (Objective("error"), Objective("params")), (Constraint("latency_ms", 2.0, "ms"),))
ERROR, PARAMS = Constraint("error", 0.06), Constraint("params", 1000.0)


def trial(number: int, **metrics: float) -> Trial:
    return Trial(Ask(number, {"a": number}), metrics, 0.0)


def record(name: str, error: float, **predicted: float) -> dict[str, Any]:
    return {"id": name, "predicted": {"error": 0.5, **predicted}, "metrics": {"error": error, "test_error": 0.9}}


# ---------------------------------------------------------------------------------------------------------------- the plan
def test_the_first_training_has_a_quarter_of_the_time_and_the_next_the_rest() -> None:
    plan = target.trainings([200.0], 8000.0)
    seconds = [200 * n + final.EXPORT_SECONDS for _, n in plan]
    assert [k for k, _ in plan] == [0, 0]
    assert seconds == pytest.approx([2000, 6000])


def test_a_network_is_trained_when_its_time_is_enough() -> None:
    plan = target.trainings([500.0, 10.0], 7000.0)
    assert plan[0] == (1, final.MAX_EPOCHS), "a quarter of the time is 3.5 epochs of the first"
    assert len(plan) == 2
    assert plan[1][0] == 0
    assert plan[1][1] == pytest.approx((7000 - 604 - final.EXPORT_SECONDS) / 500)


def test_what_has_learned_enough_gives_way_to_the_next() -> None:
    assert target.trainings([1.0, 2.0, 3.0], 7000.0) == [(k, final.MAX_EPOCHS) for k in range(3)]


def test_a_network_that_cannot_have_five_epochs_may_have_two() -> None:
    """Only with all the time that is left; one that can have five in all does not begin with two."""
    assert target.trainings([120.0], 340.0) == [(0, pytest.approx(336 / 120))]
    assert [k for k, _ in target.trainings([120.0, 10.0], 340.0)] == [1, 0]
    assert [k for k, _ in target.trainings([50.0, 10.0], 340.0)] == [1, 0]
    ((k, _),) = target.trainings([200.0, 60.0], 340.0)
    assert k == 1


def test_with_too_little_time_the_cheapest_is_trained() -> None:
    ((k, epochs),) = target.trainings([100.0, 50.0], 120.0)
    assert k == 1
    assert epochs == pytest.approx((120 - final.EXPORT_SECONDS) / 50)


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_keeps_within_the_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    epoch, seconds = rng.lognormal(2, 1.5, 6).tolist(), float(rng.uniform(500, 5000))
    plan = target.trainings(epoch, seconds)
    assert sum(epoch[k] * n + final.EXPORT_SECONDS for k, n in plan) <= seconds + 1e-6
    lengths = [[n for k, n in plan if k == which] for which in range(6)]
    least = [final.LEAST_EPOCHS if 5 * e <= seconds - final.EXPORT_SECONDS else final.FEWEST_EPOCHS for e in epoch]
    assert all(b >= 2 * a for ns in lengths for a, b in pairwise(ns))
    assert all(few <= n <= final.MAX_EPOCHS for few, ns in zip(least, lengths, strict=True) for n in ns)


def test_the_error_to_expect_falls_as_a_broken_power_of_the_epochs() -> None:
    assert target.expected(0.3, 2.0, 2.0) == 0.3
    epochs = target.BREAK * 2.0 ** np.arange(-4, 5)
    steps = np.diff(np.log2([target.expected(0.3, 0.7, e) for e in epochs]))
    assert steps == pytest.approx([-target.EARLY] * 4 + [-target.LATE] * 4)
    assert [target.inverse(target.curve(e)) for e in epochs] == pytest.approx(epochs)
    assert target.inverse(0.0) == np.inf


def test_a_network_that_learns_faster_is_expected_to_learn_longer() -> None:
    """The better one after as many epochs takes four times as long for each."""
    answers = {0: {"error": 0.20, "seconds": 4.0}, 1: {"error": 0.24, "seconds": 1.0}, 2: {"seconds": 9.0}}
    estimate = target.Expecting(lambda ask: answers[ask.number], lambda ask, metrics: (1.0, 100 / metrics["seconds"]))
    found = [dict(estimate(Ask(k, {}))) for k in answers]
    assert found[0][EXPECTED] == pytest.approx(0.20 * target.curve(25))
    assert found[1][EXPECTED] == pytest.approx(0.24 * target.curve(100))
    assert found[2] == {"seconds": 9.0}, "refused before it was trained"
    trials = [trial(k, **metrics) for k, metrics in enumerate(found[:2])]
    assert [t.ask.number for t in target.ordered(trials, [ERROR])] == [1, 0]


@pytest.mark.parametrize(("gain", "seconds", "epochs", "stops"), [
    (0.1, 1000.0, 20.0, False), (0.001, 1000.0, 20.0, True),  # 10 of the 900 s that are left are worth .2 %
    (0.1, 110.0, 20.0, True),  # 10 of the last 10 s
    (0.001, 1000.0, final.MAX_EPOCHS, False),  # no training is longer
])
def test_a_search_ends_when_a_longer_training_is_worth_more(gain: float, seconds: float, epochs: float, stops: bool,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "expected_gain", lambda problem, trials, more, seed: gain)
    rule = target.Dearer(replace(PROBLEM, objectives=Config("x", target=(ERROR,)).searched), seconds)
    trials = [Trial(Ask(k, {"a": k}), {EXPECTED: 0.1 + k, target.EPOCHS: 1.0 if k else epochs}, 10.0) for k in range(10)]
    said = rule(trials)
    assert bool(said) == stops and rule(trials[:9]) == ""
    if stops:
        longer = min(final.MAX_EPOCHS, epochs * (seconds - 100) / max(seconds - 110, 1e-9))
        assert f"and their 10 s in the final training by {1 - target.curve(longer) / target.curve(epochs):.2%}" in said


def test_a_search_for_a_target_aims_at_what_it_bounds_alone() -> None:
    assert Config("x", target=(ERROR, PARAMS)).searched == (Objective(EXPECTED), Objective("params"))
    assert Config("x", target=(ERROR,)).searched == (Objective(EXPECTED),)
    for plain in (Config("x"), Config("x", target=(ERROR,), strategy="preference")):
        assert plain.searched == plain.objectives, "a front for all preferences is searched for all objectives"


def test_the_epochs_that_a_target_needs() -> None:
    """An error 2 ** LATE times the bound needs twice the epochs."""
    assert target.needed(0.06 * 2 ** target.LATE, 20.0, [ERROR]) == pytest.approx(40)
    assert target.needed(0.06 * 2 ** -target.LATE, 20.0, [ERROR, PARAMS]) == pytest.approx(10)
    assert target.needed(0.06 * 4 ** -target.EARLY, target.BREAK, [ERROR]) == pytest.approx(target.BREAK / 4)
    assert target.needed(0.5, 20.0, [PARAMS]) == 0
    assert target.needed(0.0, 20.0, [ERROR]) < 1e-9
    assert target.needed(0.5, 20.0, [Constraint("error", 0.0)]) == np.inf


@pytest.mark.parametrize(("share", "seconds"), [(0.0, [1000, 3000]), (0.3, [1200, 2800]), (0.34, [4000]), (np.inf, [4000])])
def test_the_first_training_has_what_the_target_is_expected_to_need(share: float, seconds: list[float]) -> None:
    """More than a third of the time is all of it: what would be left could not help."""
    plan = target.trainings([100.0], 4000.0, share)
    assert [100 * n + final.EXPORT_SECONDS for _, n in plan] == pytest.approx(seconds)


def test_networks_within_the_costs_come_first() -> None:
    trials = [trial(0, error=0.1, params=2000.0), trial(1, error=0.3, params=900.0), trial(2, error=0.2, params=1000.0)]
    assert [t.ask.number for t in target.ordered(trials, [ERROR, PARAMS])] == [2, 1, 0]
    assert [t.ask.number for t in target.ordered(trials, [ERROR])] == [0, 2, 1]


# --------------------------------------------------------------------------------------------------------------- the search
@pytest.mark.parametrize(("metrics", "stops"), [
    ({"error": 0.06, "params": 1000.0, "latency_ms": 1.0}, True),
    ({"error": 0.07, "params": 1000.0, "latency_ms": 1.0}, False),
    ({"error": 0.06, "params": 1001.0, "latency_ms": 1.0}, False),
    ({"error": 0.06, "params": 1000.0, "latency_ms": 3.0}, False),
    ({"error": 0.06, "latency_ms": 1.0}, False),
])
def test_a_search_ends_when_a_trial_meets_the_target(metrics: dict[str, float], stops: bool) -> None:
    rule = Reached(PROBLEM, (ERROR, PARAMS))
    study = search(PROBLEM, RandomSearch(PROBLEM), lambda ask: metrics, budget=Budget(trials=4), stop=rule)
    assert (len(study.trials) == 1) == stops
    assert ("network 1 of the search meets error <= 0.06 and params <= 1000 already" in study.stopped) == stops


def test_what_was_not_measured_does_not_meet_a_bound() -> None:
    assert ERROR.met({"error": 0.06}) and not ERROR.met({"error": 0.061})
    assert not ERROR.met({}) and not ERROR.met({"error": float("nan")})


def test_the_first_training_follows_from_the_epochs_behind_the_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    """6 % are expected after 20 epochs: 5 % need 2.49 times as many, half of the 100 that the time allows."""
    asked = list[float]()
    monkeypatch.setattr(final, "epoch_of", lambda setup, arch: 10.0)
    monkeypatch.setattr(target, "trainings", lambda epoch, seconds, share: asked.append(share) or [(0, 1.0)])
    config = Config("x", target=(Constraint("error", 0.05),))
    finals = Finals(SimpleNamespace(config=config), None, None, None)  # type: ignore[arg-type]
    finals._for_target([trial(0, **{EXPECTED: 0.06, target.EPOCHS: 20.0, "error": 0.4})], 1000.0)
    assert asked == [pytest.approx(20 * 1.2 ** (1 / target.LATE) / 100)]


def test_timing_the_networks_is_paid_for_and_trainings_have_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 s of 1000 for two networks; of the 800 s that are left, half were planned to be needed."""
    now = [0.0]

    def epoch_of(setup: object, arch: object) -> float:
        now[0] += 100.0
        return 10.0

    monkeypatch.setattr(finals_module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(final, "epoch_of", epoch_of)
    monkeypatch.setattr(target, "trainings", lambda epoch, seconds, share: [(1, seconds / 2 / epoch[1])])
    finals = Finals(SimpleNamespace(config=Config("x", target=(PARAMS,), networks=5)), None, None, None)  # type: ignore[arg-type]
    found = [trial(k, **{EXPECTED: 0.06, target.EPOCHS: 20.0, "params": 1.0, "error": 0.4})
             for k in range(2)]
    plan = finals._for_target(found, 1000.0)
    assert (plan["epochs"], plan["seconds"]) == ([40.0], [400.0])
    assert finals._for_target(found, 300.0)["seconds"] == [75.0], "half of what there is, however long that took"


# --------------------------------------------------------------------------------------------------------------- the verdict
def test_the_verdict() -> None:
    first, good = record("aa", 0.081, params=900.0, latency_ms=1.0), record("bb", 0.055, params=900.0, latency_ms=1.0)
    met = target.verdict([ERROR, PARAMS], PROBLEM, [first, good], 1)
    assert met["met"] and met["network"] == "bb"
    assert met["sentence"] == ("The target error <= 6.00 % and params <= 1 K was met by bb: validation error 5.50 % and "
                               "parameters 900; 1 more training was skipped.")
    missed = target.verdict([ERROR], PROBLEM, [record("cc", 0.2, params=1.0, latency_ms=1.0), first], 0)
    assert not missed["met"]
    assert missed["sentence"] == ("The target error <= 6.00 % was missed: the nearest network, aa, has validation error 8.10 %, "
                                  "2.10 points above.")
    slow = target.verdict([ERROR], PROBLEM, [record("dd", 0.05, params=1.0, latency_ms=3.0)], 0)
    assert not slow["met"] and slow["sentence"].endswith("latency (PyTorch, one input) 3 ms, 1 ms above.")
    sure = {**good, "intervals": {"error": [0.0489, 0.0617]}}
    assert "validation error 5.50 % [4.89, 6.17] and" in target.verdict([ERROR, PARAMS], PROBLEM, [sure], 0)["sentence"]
    failed = target.verdict([ERROR], PROBLEM, [{"id": "ee", "predicted": {"error": 0.0}, "failed": "NaN"}], 0)
    assert not failed["met"] and "no training succeeded" in failed["sentence"]


# ------------------------------------------------------------------------------------------------------------------- a run
def run_with(data: Path, out: Path, *bounds: str, **options: Any) -> job.Run:
    return nasopt.search(data, net=own(), budget=16.0, trials=6, networks=2, log=lambda line: None, out=out, target=bounds,
                         **options)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ONNX files, which take seconds."""
    for module in (final, job, setup):
        monkeypatch.setattr(module, "has_onnx", lambda: False)


@pytest.mark.usefixtures("quick")
def test_a_run_ends_when_the_target_is_met(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learned from the training part alone, judged by the validation part, and the test part is looked at once."""
    learned, tested = list[int](), list[str]()
    fit, mistakes, times = final.train.fit, final.Delivery.mistakes, list[Any]()
    monkeypatch.setattr(final.train, "fit", lambda net, images, *rest, **more: learned.append(len(images))
                        or times.append(more.get("within")) or fit(net, images, *rest, **more))
    monkeypatch.setattr(final.Delivery, "mistakes", lambda self, folder, files: tested.append(folder.name)
                        or mistakes(self, folder, files))
    monkeypatch.setattr(target, "trainings", lambda epoch, seconds, share: [(0, 6.0), (0, 12.0)])
    found = run_with(data, tmp_path / "run", "error<=66%", "params<=1M")
    results = found.results
    (net,) = found.front()
    assert results["target"]["met"] and results["target"]["network"] == net.id and net.metrics["error"] <= 0.66
    assert tested == [net.id] and learned[-1] == results["data"]["train"]
    assert times[0] is None and times[-1][0] > 0 and times[-1][1] == final.MAX_EPOCHS, "only what is delivered has a time"
    assert set(results["search"]["curves"]) == {"hybrid"} and results["designed"] == []
    assert "1 more training was skipped" in results["target"]["sentence"]
    assert "of the search meets" in results["search"]["stopped"] and len(results["search"]["trials"]) < 6
    assert results["search"]["objectives"] == ["expected_error", "params"]
    assert all(("error" in t["metrics"]) == ("expected_error" in t["metrics"]) for t in results["search"]["trials"])
    assert [o["name"] for o in results["objectives"]] == ["error", "latency_ms", "memory_mb"]
    assert results["target"]["sentence"].replace("<", "&lt;") in found.report.read_text()
    assert "--target" not in results["command"], "the call of a network of one's own"
    again = nasopt.resume(found.path, net=own(), log=lambda line: None)
    assert again.results["target"] == results["target"]
    assert json.loads((found.path / "front.json").read_text())[0]["id"] == net.id


@pytest.mark.usefixtures("quick")
def test_a_run_that_misses_its_target_ends_with_the_best_it_has(data: Path, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Here two trainings of one network, the second of which has a name of its own."""
    monkeypatch.setattr(target, "trainings", lambda epoch, seconds, share: [(0, 0.5), (0, 1.0)])
    found = run_with(data, tmp_path / "run", "params<=10", strategy="random")
    assert found.front() and not found.results["target"]["met"]
    assert "params <= 10 was missed: the nearest network" in found.results["target"]["sentence"]
    assert found.results["target"]["sentence"].endswith(" above.")
    trained = {r["id"]: r["epochs"] for r in found.results["front"] + found.results["dominated"]}
    short, long = sorted(trained)
    assert long == f"{short}-2" and trained == {short: 10 / 21, long: 1.0}, "epochs of 21 steps"
    assert job.export(found.path, short, "torch", tmp_path / "net.pt2").read_bytes() == (
        found.path / "models" / short / "model.pt2").read_bytes()


@pytest.mark.parametrize(("bound", "sentence"), [
    ("latncy<=2ms", "did you mean 'latency'"), ("test_error<=6%", "unknown metric"),
    ("error", "target 'error' is not an upper bound"), ("error<=600%", "target 'error<=600%' allows more"),
    ("latency<=2", "target 'latency<=2' has no unit"),
])
def test_bad_targets_are_refused(data: Path, tmp_path: Path, bound: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        run_with(data, tmp_path / "run", bound)
    assert not (tmp_path / "run").exists()


def test_a_foreign_bound_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown metric 'speed'"):
        nasopt.search(data, net=own(), out=tmp_path / "run", target=Constraint("speed", 1.0), log=lambda line: None)


@pytest.mark.usefixtures("quick")
def test_a_search_that_ended_before_any_full_training_has_a_report(data: Path, tmp_path: Path) -> None:
    """Successive halving with three trials: none of full fidelity, and no random search beside."""
    found = nasopt.search(data, net=own(), budget=16.0, trials=3, networks=1, log=lambda line: None, out=tmp_path / "run",
                          target="error<=1%", strategy="asha")
    assert found.front() and found.report.exists()
    assert max(found.results["search"]["curves"]["asha"]["hypervolume"]) > 0


def test_the_command_of_a_run_names_its_target() -> None:
    config = Config("digits", target=(parse_constraint("error<=6%"),))
    assert "--target 'error<=0.06'" in job.command(config, Path("out"))
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    old = config.to_json()
    del old["target"]
    assert Config.from_json(old).target == ()
