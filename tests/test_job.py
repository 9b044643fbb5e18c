"""The main job, from a small data set to files and report; and what it refuses."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import nasopt
from nasopt import goals, job
from nasopt.cost.lookup import Lookup
from nasopt.errors import ExportError, InputError
from nasopt.nets.choices import BatchNorm2d, Conv2d, OneOf, Width, space_of
from nasopt.pipeline import final, phases, relaxed
from nasopt.pipeline.finals import Finals
from nasopt.pipeline.setup import Config, Sampled, Setup, prepare, survey
from nasopt.run.storage import Memory, Sqlite
from nasopt.spaces.darts import darts
from nasopt.strategies.preference import Preference
from nasopt.tasks.data import load
from nasopt.trial import Ask, Constraint, Objective, Problem, Study, Trial


class Own(nn.Module):
    """A user's network."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        width = Width([4, 8])
        self.width = width
        self.stem = OneOf({"three": Conv2d(1, width, 3, padding=1), "five": Conv2d(1, width, 5, padding=2)})
        self.norm = BatchNorm2d(width)
        self.last = Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(torch.relu(self.norm(self.stem(x)))).amax((2, 3))
        return y


def own(classes: int = 3) -> Own:
    torch.manual_seed(0)
    return Own(classes)


def search(data: Path, out: Path, **options: object) -> job.Run:
    options = {"net": own(), "budget": 16.0, "trials": 6, "networks": 3, "log": lambda line: None} | options
    return nasopt.search(data, out=out, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> job.Run:
    """Random search has so much time that it ends with the space, however slow the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "SHARES", {**phases.SHARES, "random search": 0.5})
        return search(data, tmp_path_factory.mktemp("runs") / "bars")


def test_a_run_folder_holds_what_is_promised(run: job.Run) -> None:
    assert {p.name for p in run.path.iterdir()} >= {"study.db", "random.db", "front.json", "split.npz", "report.html",
                                                    "results.json", "models"}
    front = json.loads((run.path / "front.json").read_text())
    assert front
    for entry in front:
        assert set(entry) == {"id", "architecture", "metrics", "files"}
        assert {"test_error", "latency_ms", "memory_mb", "params", "flops"} <= set(entry["metrics"])
        assert all((run.path / name).is_file() for name in entry["files"].values())
    assert [n.id for n in run.front()] == [e["id"] for e in front]
    split = np.load(run.path / "split.npz")
    assert sorted(np.concatenate([split[k] for k in ("train", "val", "test")])) == list(range(180))


def test_the_front_is_not_dominated_by_anything_trained(run: job.Run) -> None:
    keys = ("test_error", "latency_ms", "memory_mb")
    everything = [r["metrics"] for group in ("front", "dominated") for r in run.results[group]]
    for found in run.front():
        assert not any(all(m[k] <= found.metrics[k] for k in keys) and any(m[k] < found.metrics[k] for k in keys)
                       for m in everything)


def test_the_exported_files_give_the_stated_error_without_nasopt(run: job.Run, data: Path) -> None:
    script = """
import json, sys
sys.modules["nasopt"] = None
import numpy as np, onnxruntime, torch
folder, data = sys.argv[1:]
raw, test = np.load(data), np.load(folder + "/split.npz")["test"]
out = []
for net in json.load(open(folder + "/front.json")):
    session = onnxruntime.InferenceSession(folder + "/" + net["files"]["onnx"])
    onnx = session.run(None, {session.get_inputs()[0].name: raw["x"][test]})[0]
    plain = torch.export.load(folder + "/" + net["files"]["torch"]).module()(torch.from_numpy(raw["x"][test])).detach().numpy()
    out.append([float((a.argmax(1) != raw["y"][test]).mean()) for a in (onnx, plain)] + [net["metrics"]["test_error"]])
print(json.dumps(out))
"""
    done = subprocess.run([sys.executable, "-c", script, str(run.path), str(data)], capture_output=True, text=True, check=True)
    for onnx, plain, stated in json.loads(done.stdout):
        assert onnx == stated
        assert plain == pytest.approx(stated, abs=1 / 36)


def test_baselines_and_trust_are_in_the_record(run: job.Run) -> None:
    results = run.results
    assert {r["name"] for r in results["designed"]} == {"small ResNet", "small MobileNetV2-like"}
    assert set(results["search"]["curves"]) == {"hybrid", "random"}
    assert len(results["search"]["curves"]["random"]["hypervolume"]) == 4  # the whole space
    assert 0 <= results["search"]["front_hypervolume"]["found"] <= 1
    low, high = results["trust"]["interval"]
    assert -1 <= low <= results["trust"]["value"] <= high <= 1
    assert results["trust"]["fallback"] == (results["trust"]["value"] < results["trust"]["threshold"])
    assert set(results["provenance"]["phases"]) == set(phases.PHASES)


def test_resuming_a_finished_run_changes_nothing(run: job.Run, data: Path) -> None:
    before = (run.path / "front.json").read_bytes()
    again = nasopt.resume(run.path, net=own(), log=lambda line: None)
    assert (run.path / "front.json").read_bytes() == before
    assert [n.id for n in again.front()] == [n.id for n in run.front()]


@pytest.mark.parametrize("name", ["gdas", "hybrid-gradient"])
def test_a_gradient_strategy_runs_as_the_others_do(data: Path, tmp_path: Path, name: str) -> None:
    run = search(data, tmp_path / "run", strategy=name, budget=30.0)
    assert run.front() and set(run.results["search"]["curves"]) == {name, "random"}
    assert (run.results["provenance"]["phases"]["warm start"] == 0) == (name == "gdas")
    told = run.results["search"]["estimator"]
    assert told == ("stand-alone, from the weights of the relaxed network" if run.results["trust"]["fallback"] else "one-shot")


def test_a_search_for_all_preferences_pays_for_its_tables_and_tells_how_well_they_predict(
        data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(setup: Setup, seconds: float, sampled: Sampled) -> relaxed.Plan:
        return relaxed.Plan(20, 0.01, 0, 0, [t.to_json() for t in relaxed.cost_tables(setup, sampled)], 0.13 * 8 - 0.01)

    lines = list[str]()
    monkeypatch.setattr(relaxed, "plan_of_preferences", plan)
    monkeypatch.setattr("nasopt.pipeline.setup._check_output", lambda setup: None)
    for user in ("nasopt.job", "nasopt.pipeline.final"):
        monkeypatch.setattr(f"{user}.has_onnx", lambda: False)
    run = search(data, tmp_path / "run", strategy="preference", budget=8.0, networks=1, log=lines.append)
    phase, curve = run.results["provenance"]["phases"], run.results["search"]["curves"]["preference"]
    assert run.front() and phase["warm start"] == 0 and phase["search"] > 1.03
    assert len(curve["seconds"]) == 1, "0.01 s were left for the search"
    assert curve["seconds"][0] > 1.03
    told, = (line for line in lines if "sums over choices, against 4 measured networks: latency_ms off by" in line)
    assert told == run.results["trust"]["costs"] and told in run.report.read_text()
    assert "gradient search" not in run.report.read_text()
    with closing(Sqlite(run.path / "study.db", readonly=True)) as log:
        assert log.get("preference.weights") is not None


def test_tables_of_costs_leave_out_what_is_the_same_everywhere(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two networks with as many parameters."""
    torch.manual_seed(0)
    net = nn.Sequential(Conv2d(1, 3, 3), OneOf({"relu": nn.ReLU(), "pool": nn.MaxPool2d(2)}), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten())
    aims = tuple(Objective(name) for name in ("error", "params", "latency_ms"))
    monkeypatch.setattr("nasopt.pipeline.setup._check_output", lambda setup: None)
    setup = prepare(Config("bars", "own", aims, strategy="preference"), load(str(data)), net)
    sampled = survey(setup)
    plan = relaxed.plan_of_preferences(setup, 1000.0, sampled)
    assert plan.steps > 20 and plan.measured > 0 and [t["name"] for t in plan.tables] == ["latency_ms"]
    table, = relaxed.cost_tables(setup, sampled)
    assert table.name == "latency_ms" and table.fit is not None and table.fit.n == len(sampled.archs) == 2
    made = relaxed.strategy(setup, "preference", relaxed.network(setup, "preference", None), plan, 2, Memory()).gradient
    assert isinstance(made, Preference) and made.stride == 2 * relaxed.LEARNING and made.search.steps == plan.steps
    again = Lookup.from_json(json.loads(json.dumps(table.to_json())))
    assert again.costs(sampled.archs).tolist() == table.costs(sampled.archs).tolist()
    with pytest.raises(InputError, match="no sum over the edges of a cell of node pairs"):
        relaxed.cost_tables(replace(setup, net=darts(3, 4, 3)), sampled)
    monkeypatch.setattr(relaxed, "cost_tables", lambda *given: time.sleep(0.2) or [table])
    with pytest.raises(InputError, match="'preference' relaxes are 0 steps, where 20 are needed at least: give a budget of"):
        relaxed.plan_of_preferences(setup, 0.2, sampled)  # as long as the tables took


def test_the_hybrid_with_gradients_has_them_as_a_member(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked, every member hears of it, nothing is asked twice, and what the best choose draws alpha."""
    monkeypatch.setattr(phases.relaxed, "plan", lambda setup, name, seconds: phases.relaxed.Plan(40, 0.5, 20, 64))
    monkeypatch.setattr(phases.relaxed, "stride", lambda seconds, evaluation, trials: 2)
    monkeypatch.setattr(phases.Phases, "inherits", False)
    made, build = list[Any](), phases.relaxed.strategy
    monkeypatch.setattr(phases.relaxed, "strategy", lambda *given: made.append(build(*given)) or made[-1])
    monkeypatch.setattr(Finals, "finalists", lambda self, study, spent: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        search(data, tmp_path / "run", strategy="hybrid-gradient", budget=300.0, trials=4)
    portfolio, member = made[0].strategy, made[0].gradient
    assert set(portfolio.members) == {"gp", "gp-lcb", "local", "nsga2", "nasopt"} and portfolio.members["nasopt"] is member
    assert member.pull > 0 and len(member._told) == 4 and member.training
    assert portfolio._overheads["nasopt"]() == 2 * 40 / 20 * 0.5
    member.blobs = None
    member.finish()
    assert portfolio._overheads["nasopt"]() == 0
    assert all(m._unseen is member._seen for name, m in portfolio.members.items() if name in ("gp", "local"))


@pytest.mark.parametrize("name", ["gdas", "preference"])
def test_a_gradient_search_that_was_interrupted_comes_to_the_same_weights(data: Path, tmp_path: Path, name: str,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """What depends on the time is fixed: how many steps fit, costs, and no shared weights to begin with. The tables of the
    costs are those of the run's beginning."""
    table = Lookup("latency_ms", space_of(own()), 1.0, {"width": (0.0, 0.1), "stem": (0.3, 0.0)})
    tables = iter([[table.to_json()]] * 2)
    monkeypatch.setattr(phases.relaxed, "plan_of_preferences",
                        lambda setup, seconds, sampled: phases.relaxed.Plan(40, 0.1, 0, 0, next(tables)))
    monkeypatch.setattr("nasopt.pipeline.setup._check_output", lambda setup: None)
    monkeypatch.setattr(phases.Phases, "_train_supernet", lambda self: {"error": "not now"})
    monkeypatch.setattr(phases.StandAlone, "__call__", lambda self, ask: {"error": 1 / (3 + ask.number)})
    monkeypatch.setattr(phases.relaxed, "plan", lambda setup, name, seconds: phases.relaxed.Plan(40, 0.1, 20, 64))
    monkeypatch.setattr(phases.relaxed, "stride", lambda seconds, evaluation, trials: 3)
    narrate, seen = phases.Phases._narrate, list[object]()

    def stopping(self: phases.Phases, watch: Any, title: str) -> Any:
        tell = narrate(self, watch, title)

        def told(progress: Any) -> None:
            tell(progress)
            seen.append(progress)
            if len(seen) == interrupt:
                raise KeyboardInterrupt

        return told

    def stop(self: Finals, study: object, spent: float) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(phases.Phases, "_narrate", stopping)
    monkeypatch.setattr(Finals, "finalists", stop)
    logs = []
    for interrupt in (0, 2):
        out, _ = tmp_path / str(interrupt), seen.clear()
        with pytest.raises(KeyboardInterrupt):
            search(data, out, strategy=name, budget=500.0, trials=4)
        if interrupt:
            with pytest.raises(KeyboardInterrupt):
                nasopt.resume(out, net=own(), log=lambda line: None)
        logs.append(Sqlite(out / "study.db", readonly=True))
    whole, cut = ([body["asks"] for kind, body in log.events() if kind == "ask"] for log in logs)
    weights = [log.get(f"{name}.weights") for log in logs]
    for log in logs:
        log.close()
    assert whole == cut and len(whole) == 4
    assert weights[0] is not None and weights[0] == weights[1]


def test_too_little_time_for_a_gradient_strategy_is_told_first(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="where 20 are needed at least: give a budget of"):
        search(data, tmp_path / "run", strategy="darts2", budget=0.05)
    assert not (tmp_path / "run").exists(), "a larger budget may have the folder"


def test_an_interrupted_run_resumes_where_it_was(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, out = Finals.finalists, tmp_path / "run"

    def stop(self: Finals, study: object, spent: float) -> dict[str, object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Finals, "finalists", stop)
    with pytest.raises(KeyboardInterrupt):
        search(data, out)
    log = Sqlite(out / "study.db", readonly=True)
    before = list(log.events())
    log.close()
    assert not (out / "front.json").exists()
    monkeypatch.setattr(Finals, "finalists", real)
    resumed = nasopt.resume(out, net=own(), log=lambda line: None)
    log = Sqlite(out / "study.db", readonly=True)
    assert list(log.events()) == before
    log.close()
    assert resumed.front()


@pytest.mark.parametrize("complete", [True, False])
def test_a_run_says_when_it_went_on_elsewhere(complete: bool, data: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """What is complete is only written again."""
    here = job.machine()

    def stop(folder: Path) -> None:
        raise KeyboardInterrupt

    if not complete:
        monkeypatch.setattr(Finals, "finalists", lambda *given: stop(tmp_path))
    monkeypatch.setattr(job, "report", stop)
    with pytest.raises(KeyboardInterrupt):
        search(data, tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(job, "machine", lambda: {"cpu": "another", "cores": 1})
    again = nasopt.resume(tmp_path / "run", net=own(), log=lambda line: None).results["provenance"]
    assert again["machine"] == here and again["device"] == "cpu" and again["threads"] == torch.get_num_threads()
    assert any("continued on another machine" in w for w in again["warnings"]) != complete


def test_images_of_a_folder_are_resized_as_the_run_was_told(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with np.load(data) as bars:
        for k, (x, y) in enumerate(zip(bars["x"], bars["y"], strict=True)):
            (tmp_path / f"bars/{y}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(x).resize((8 + k % 3, 8)).save(tmp_path / f"bars/{y}/{k}.png")
    with pytest.raises(InputError, match=r"images differ in size .* on the command line --image-size"):
        search(tmp_path / "bars", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Finals, "finalists", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "bars", tmp_path / "run", image_size=(8, 6), trials=3, networks=1)
    resumed = nasopt.resume(tmp_path / "run", net=own(), log=lambda line: None).results
    assert resumed["data"]["input_shape"] == [1, 8, 6]
    assert "image_size=(8, 6)" in resumed["command"]
    with pytest.raises(InputError, match="this data set is loaded already: leave image_size out"):
        search(load(data), tmp_path / "other", image_size=(8, 6))  # type: ignore[arg-type]


def test_what_had_less_training_counts_where_nothing_had_all() -> None:
    problem = Problem(space_of(own()), (Objective("error"), Objective("params")))

    def study(*trials: tuple[float, float]) -> Study:
        return Study(problem, tuple(Trial(Ask(k, {}, fidelity=f), {"error": e, "params": 10.0}, 1.0)
                                    for k, (f, e) in enumerate(trials)), "")

    brief, full = study((1 / 9, 0.5), (1 / 3, 0.2)), study((1.0, 0.4))
    curves = [job.progress_of({"asha": brief, **more}, {"asha": [1.0, 2.0], "random": [1.0]})["curves"]
              for more in ({}, {"random": full})]
    assert [v > 0 for v in curves[0]["asha"]["hypervolume"]] == [False, True], "the most training that there was"
    assert not any(curves[1]["asha"]["hypervolume"]) and curves[1]["random"]["hypervolume"][0] > 0


def test_data_from_python_is_asked_for_when_a_run_is_resumed(data: Path, tmp_path: Path) -> None:
    given = load(str(data))
    first = nasopt.search(given, net=own(), budget=16.0, trials=3, networks=1, log=lambda line: None, out=tmp_path / "run")
    assert first.results["command"].startswith("nasopt.search(..., net=..., objectives='error,latency_ms,memory_mb', ")
    with pytest.raises(InputError, match=r"was given its data from Python: give it again, as in nasopt.resume\(path, data"):
        nasopt.resume(first.path, net=own())
    assert nasopt.resume(first.path, data=given, net=own(), log=lambda line: None).front()


def test_all_time_counts(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But that of writing the report."""
    now, clock = [0.0], time.perf_counter

    def slow(path: object, *given: object) -> object:
        now[0] += 1000.0
        return load(path)  # type: ignore[arg-type]

    monkeypatch.setattr(job, "load", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + now[0])
    began = clock()
    origin = search(data, tmp_path / "run", trials=3, networks=1).results["provenance"]
    assert origin["phases"]["preparation"] > 1000
    assert 1000 < origin["total_seconds"] <= 1000 + clock() - began
    assert origin["total_seconds"] == pytest.approx(sum(origin["phases"].values()))


def test_the_command_repeats_the_run() -> None:
    """Every option, read back as the command line reads it."""
    bars = (Constraint("params", 1234567.0), Constraint("latency_ms", 2.0, "ms"))
    config = Config("digits", "fast", constraints=bars, seconds=5400.0, trials=7, strategy="gp", seed=3, networks=2,
                    min_gain=0.01, target=(Constraint("error", 0.055),), device="cuda:1", mirror=True)
    words = shlex.split(job.command(config, Path("out")))
    options = words[2:]
    assert words[:2] == ["nasopt", "search"]
    assert options.count("--mirror") == 1 and options[options.index("--device") + 1] == "cuda:1"
    pairs = [(w, options[k + 1]) for k, w in enumerate(options[:-1]) if w.startswith("--") and w != "--mirror"]
    assert tuple(goals.parse_constraint(v) for name, v in pairs if name == "--constraint") == bars
    assert tuple(goals.parse_constraint(v) for name, v in pairs if name == "--target") == config.target
    read = dict(pairs)
    assert goals.parse_duration(read["--budget"]) == 5400 and goals.parse_objectives(read["--objectives"]) == config.objectives
    assert (read["--data"], read["--space"], read["--trials"], read["--strategy"], read["--seed"], read["--networks"],
            float(read["--min-gain"]), read["--out"]) == ("digits", "fast", "7", "gp", "3", "2", 0.01, "out")
    own_net = job.command(replace(config, space="own"), Path("out"))
    assert own_net.startswith("nasopt.search('digits', net=..., ") and "target=['error<=0.055']" in own_net
    assert "constraints=['params<=1234567.0', 'latency_ms<=2.0ms']" in own_net and "mirror=True" in own_net
    sized = replace(config, image_size=(48, 64), constraints=(Constraint("latency_ms", np.float64(2.5), "ms"),))
    assert {"48x64", "latency_ms<=2.5ms"} <= set(shlex.split(job.command(sized, Path("out"))))


def test_a_name_that_fits_several_networks_is_told(run: job.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = {"front": [{"id": "3fa9"}, {"id": "3fb0"}], "dominated": [], "designed": []}
    monkeypatch.setattr(job.Folder, "read_json", lambda self, name: twice)
    with pytest.raises(InputError, match="the name '3f' fits several networks, 3fa9, 3fb0: give all of one"):
        job.export(run.path, "3f", "onnx", tmp_path / "c.onnx")


def test_export_copies_one_network_and_overwrites_nothing(run: job.Run, tmp_path: Path) -> None:
    first = run.front()[0]
    assert all(path.is_absolute() and path.is_file() for path in first.files.values())
    relative = replace(run, path=Path(os.path.relpath(run.path)))
    assert relative.front()[0].files == first.files
    to = job.export(run.path, first.id[:4], "onnx", tmp_path / "net.onnx")
    assert to.read_bytes() == first.files["onnx"].read_bytes()
    with pytest.raises(InputError, match="exists already"):
        job.export(run.path, first.id, "onnx", to)
    with pytest.raises(InputError, match="unknown network"):
        job.export(run.path, "nonsense", "onnx", tmp_path / "b.onnx")
    with pytest.raises(InputError, match="unknown format"):
        job.export(run.path, first.id, "onyx", tmp_path / "b.onnx")
    with pytest.raises(InputError, match="cannot be written"):
        job.export(run.path, first.id, "onnx", tmp_path / ("x" * 300) / "b.onnx")
    with pytest.raises(InputError, match="holds no run"):
        job.export(tmp_path / ("x" * 300), first.id, "onnx", tmp_path / "b.onnx")


@pytest.mark.parametrize(("options", "sentence"), [
    ({"constraints": ["latency<=1us"]}, r"no architecture meets latency_ms <= 0.001 ms: the best of \d+.* times the bound"),
    ({"constraints": ["latncy<=1ms"]}, "did you mean 'latency'"),
    ({"objectives": "error,latncy"}, "did you mean 'latency'"),
    ({"objectives": "latency,memory"}, "must include 'error'"),
    ({"budget": 0.0}, "budget must be positive"),
    ({"budget": "-3m"}, "-3m"),
    ({"trials": 0}, "at least 1"),
    ({"networks": 0}, "at least 1"),
    ({"net": None, "space": "cell"}, "did you mean 'cells'"),
    ({"strategy": "nsga22"}, "did you mean 'nsga2'"),
    ({"strategy": "optuna-cmaes"}, "optuna-cmaes optimises one objective, but there are 3"),
    ({"strategy": "preference", "objectives": "error"}, "add one, such as --objectives error,latency, or choose another"),
    ({"net": own(4)}, "3 classes"),
    ({"net": nn.Conv2d(1, 3, 3)}, "choice"),
    ({"seed": -1}, "seed"),
    ({"budget": float("inf")}, "positive and finite"),
    ({"constraints": [Constraint("latncy_ms", 1.0)]}, "unknown metric 'latncy_ms'"),
    ({"constraints": [Constraint("latency", 2.0)]}, "'latency' has the key 'latency_ms' in an Objective or a Constraint"),
    ({"objectives": [Objective("error"), Objective("memory")]}, "'memory' has the key 'memory_mb'"),
    ({"target": Constraint("size", 2.0)}, "'size' has the key 'size_mb'"),
    ({"net": nn.Linear}, "net is a type, not a module"),
    ({"space": "fast"}, "net has its own space, so that space='fast' says nothing"),
    ({"net": None, "space": "own"}, "space='own' is that of a network of your own"),
    ({"objectives": (Objective("error"), Objective("params", minimise=False))}, "every objective is minimised"),
])
def test_bad_input_is_refused_before_anything_is_written(data: Path, tmp_path: Path, options: dict[str, object],
                                                         sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as refused:
        search(data, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
    assert "\n" not in str(refused.value)


def test_an_existing_run_is_never_overwritten(run: job.Run, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nasopt resume"):
        search(data, run.path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        search(data, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_resume_needs_a_run_and_its_network(run: job.Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        nasopt.resume(tmp_path)
    with pytest.raises(InputError, match="network of your own"):
        nasopt.resume(run.path)


def test_resume_refuses_other_data_and_another_network(run: job.Run) -> None:
    from nasopt.tasks.data import load

    with pytest.raises(InputError, match="is not what it was"):
        nasopt.resume(run.path, data=load("digits"), net=own())
    wider = own()
    wider.last = Conv2d(wider.width, 3, 3, padding=1)
    with pytest.raises(InputError, match="not the one that this run began with"):
        nasopt.resume(run.path, net=wider)


def test_networks_that_break_a_constraint_after_training_are_kept_off_the_front(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nasopt.pipeline.final.Delivery.mistakes", lambda self, folder, files: (30, 36))
    found = search(data, tmp_path / "run", constraints=["error<=80%"])
    assert found.front() == []
    assert any("broke a constraint after training: kept off the front" in w for w in found.results["provenance"]["warnings"])
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_training_that_fails_does_not_end_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = job.phase.final.train.fit

    def sometimes(net: nn.Module, *rest: object, **named: object) -> object:
        if len(rest) > 4 and rest[4] == 0:  # the first of the final trainings
            raise FloatingPointError("the training loss became nan")
        return real(net, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("nasopt.pipeline.final.train.fit", sometimes)
    found = search(data, tmp_path / "run")
    assert any("failed: FloatingPointError: the training loss became nan" in w for w in found.results["provenance"]["warnings"])
    assert len(found.results["designed"]) == 2  # the trainings after it went on


def test_a_network_that_no_file_can_hold_does_not_end_the_run(data: Path, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    real, tried = final.Delivery.export, list[str]()

    def sometimes(self: final.Delivery, net: nn.Module, folder: Path) -> dict[str, str]:
        tried.append(folder.name)
        if len(tried) == 1:
            raise ExportError("the network cannot be exported to ONNX: no such operation")
        return real(self, net, folder)

    monkeypatch.setattr(final.Delivery, "export", sometimes)
    found = search(data, tmp_path / "run")
    assert any(f"The training of {tried[0]} failed: ExportError: the network cannot be" in w
               for w in found.results["provenance"]["warnings"])
    assert tried[0] not in {n.id for n in found.front()} and len(found.results["designed"]) == 2


def test_two_processes_cannot_work_on_one_run(run: job.Run) -> None:
    held = Sqlite(run.path / "study.db")
    try:
        with pytest.raises(InputError, match="another process"):
            nasopt.resume(run.path, net=own())
    finally:
        held.close()


def test_distrust_falls_back_to_trainings_of_their_own(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nasopt.job.Config", lambda *a, **more: phases.Config(*a, **more, trust=2.0))
    found = search(data, tmp_path / "run", trials=3, networks=1)
    assert found.results["trust"]["fallback"]
    assert found.results["search"]["estimator"] == "stand-alone"
    assert all("training_seconds" in t["metrics"] for t in found.results["search"]["trials"])
