"""What is decided between search and delivery: where a search starts, which networks are trained, for how long."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nasopt import machine, space
from nasopt.cost.count import flops
from nasopt.errors import ExportError, InputError
from nasopt.estimators.images import Costs
from nasopt.machine import CLEAR
from nasopt.nets import choices, train
from nasopt.nets.export import torch_logits
from nasopt.pipeline import final, phases, relaxed, target, warm
from nasopt.pipeline import setup as parts
from nasopt.pipeline.finals import Finals
from nasopt.pipeline.folder import Folder
from nasopt.pipeline.kept import Kept
from nasopt.pipeline.ledger import Ledger
from nasopt.pipeline.progress import Display, Watch
from nasopt.pipeline.setup import EXPECTED, Config, Setup, prepare, survey
from nasopt.run.storage import Memory, Sqlite
from nasopt.spaces import fast
from nasopt.tasks.data import Dataset
from nasopt.trial import Ask, Constraint, Objective, Trial

AIMS = (Objective("error"), Objective("params"), Objective("memory_mb", "MB"))


@pytest.fixture(scope="module")
def setup() -> Setup:
    return prepared(AIMS)


@pytest.fixture(scope="module")
def small() -> Setup:
    """Nine architectures whose training takes no time."""
    torch.manual_seed(0)
    width = choices.Width((2, 4, 8))
    kernels = choices.OneOf({str(k): choices.Conv2d(1, width, k, padding=k // 2) for k in (1, 3, 5)})
    net = torch.nn.Sequential(kernels, choices.BatchNorm2d(width), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                              torch.nn.Flatten(), choices.Linear(width, 3))
    return prepared(AIMS, own=net, space="own")


def prepared(aims: tuple[Objective, ...], bars: tuple[Constraint, ...] = (), own: torch.nn.Module | None = None,
             **more: Any) -> Setup:
    x = np.random.default_rng(0).integers(0, 255, (60, 8, 8)).astype(np.uint8)
    data = Dataset(x, np.arange(60) % 3, ("a", "b", "c"), "NHW", "noise", {})
    return prepare(Config("noise", objectives=aims, constraints=bars, **more), data, own)


def coloured(**more: Any) -> Setup:
    x = np.random.default_rng(0).integers(0, 255, (60, 16, 16, 3)).astype(np.uint8)
    data = Dataset(x, np.arange(60) % 3, ("a", "b", "c"), "NHWC", "noise", {})
    return prepare(Config("noise", objectives=(Objective("error"), Objective("flops")), **more), data)


def start(setup: Setup, timed: float = 0.0, epoch: float = 100.0, trials: int = 30) -> list[space.Arch]:
    return warm.start(setup, 60.0, epoch, warm.rate_of(setup), lambda arch: timed, lambda spent: None, trials)


def costs(setup: Setup, arch: space.Arch) -> dict[str, float]:
    net = choices.extract(setup.net, arch).eval()
    return warm.capacity(net, setup.example) | {k: v for m in setup.cost_models() for k, v in m(net, setup.example).items()}


def params(layer: torch.nn.Module, *inputs: object, **named: object) -> float:
    return float(sum(p.numel() for p in layer.parameters()))


def test_a_search_starts_with_networks_of_more_capacity_than_random_ones(setup: Setup) -> None:
    found = [costs(setup, arch) for arch in start(setup, trials=100)]
    rng = np.random.default_rng(1)
    others = [costs(setup, space.sample(setup.problem.space, rng)) for _ in range(20)]
    assert min(f["error"] for f in found) <= min(o["error"] for o in others)


def test_a_search_starts_below_the_costs_of_every_designed_network(setup: Setup) -> None:
    found = [costs(setup, arch) for arch in start(setup)]
    for net in final.designed(setup).values():
        bar = {k: v for m in setup.cost_models() for k, v in m(net.eval(), setup.example).items()}
        assert any(all(f[o.name] <= bar[o.name] for o in AIMS[1:]) for f in found)


def test_a_search_starts_with_networks_that_differ(setup: Setup) -> None:
    found = start(setup)
    assert len({space.key(arch) for arch in found}) == len(found) > warm.SMALL


def test_a_search_starts_with_networks_that_can_be_trained_in_time(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "step_ms", params)  # as if each parameter took a millisecond
    monkeypatch.setattr(final, "epoch_seconds", lambda *given: 1.0)
    bar = params(final.designed(setup)["small ResNet"])

    def sizes(*given: float) -> list[float]:
        return [params(choices.extract(setup.net, arch)) for arch in start(setup, *given)]

    assert bar < max(sizes(1.0, 3.0)) <= 3 * bar
    assert 0 < max(sizes(6.0, 3.0)) < 0.8 * max(sizes(1.0, 3.0)), "the time is off by at least 2 for the largest"
    assert sizes(1.0, 1e-6) == []


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("strategy", ["random", "asha", "hybrid", "gdas"])
def test_what_is_too_dear_to_train_in_the_end_is_not_trained_in_the_search(strategy: str, setup: Setup, tmp_path: Path,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each parameter took a millisecond, and an epoch of the small ResNet so long that 5 of a network of a third fit."""
    trained = list[float]()

    def fit(net: torch.nn.Module, *rest: object, **named: object) -> final.train.Fitted:
        trained.append(params(net))
        return final.train.Fitted(0.0, 1, 0.0)

    monkeypatch.setattr(warm, "step_ms", params)
    config = replace(setup.config, strategy=strategy, trials=12, seconds=300.0)
    run = phases.Phases(replace(setup, config=config), Memory(), Folder(tmp_path), Display(lambda line: None, False))
    run.ledger.store("trust", {"fallback": True})
    run.ledger.store("supernet", {"error": "no time"})
    run.ledger.store("plan", {"steps": 20, "step": 0.01, "watch": 20, "tried": 0})
    run.ledger.store("low fidelity", {"epochs": 1.0, "seconds": 1.0})
    left = config.seconds - sum(run.seconds(p) for p in ("warm start", "search", "random search"))
    monkeypatch.setattr(final, "epoch_seconds", lambda *given: 3 * final.dearest(left, 5))
    run.problem  # noqa: B018  whose bound takes a training step's time
    monkeypatch.setattr("nasopt.estimators.images.train.fit", fit)
    study = run.search(strategy, run.storage)
    bound = params(final.designed(setup)["small ResNet"]) / 3
    refused = [t for t in study.trials if "error" not in t.metrics]
    assert all(t.error is None and t.metrics["step_ms"] > bound for t in refused)
    assert trained and max(trained) <= bound and study.front()
    assert refused or strategy not in ("random", "asha")


def distrustful(setup: Setup, strategy: str, storage: Memory, tmp_path: Path, **trust: Any) -> phases.Phases:
    """The phases of a run in which candidates are trained alone; what depends on the time is fixed."""
    config = replace(setup.config, strategy=strategy, trials=5, seconds=10_000.0)
    run = phases.Phases(replace(setup, config=config), storage, Folder(tmp_path), Display(lambda line: None, False))
    for name, result in {"trust": {"fallback": True, **trust}, "supernet": {"error": "no time"},
                         "plan": {"steps": 20, "step": 0.01, "watch": 20, "tried": 8}, "stride": {"slices": 6},
                         "low fidelity": {"epochs": 0.1, "seconds": 1.0}, "trainable": {"ms": 1e9, "witnesses": [0]}}.items():
        run.ledger.store(name, result)
    return run


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(("strategy", "recipe"), [("gdas", "gdas"), ("hybrid-gradient", "nasopt"), ("nsga2", "")])
def test_all_candidates_start_with_the_weights_that_the_relaxed_network_has_in_the_end(
    strategy: str, recipe: str, small: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of random search, too, whether it follows at once or in a resumed run."""
    starts, real = list[dict[str, torch.Tensor]](), phases.train.fit

    def fit(net: torch.nn.Module, *rest: Any, **named: Any) -> Any:
        starts.append({k: v.clone() for k, v in net.state_dict().items()})
        return real(net, *rest, **named)

    monkeypatch.setattr("nasopt.estimators.images.train.fit", fit)
    storage = Memory()
    run = distrustful(small, strategy, storage, tmp_path)
    studies = [run.search(strategy, storage), run.search("random", Memory(), "random search")]
    storage.put("stopped random search", b"null")
    studies.append(distrustful(small, strategy, storage, tmp_path).search("random", Memory(), "random search"))
    source, blob = small.net, storage.get(f"{recipe}.weights")
    if blob is not None:
        source = phases.copy.deepcopy(small.net)
        source.load_state_dict(phases.weights_of(blob))
    assert (blob is not None) == bool(recipe)
    trials = [t for study in studies for t in study.trials if "error" in t.metrics]
    assert len(trials) == len(starts) == 15
    for trial, start in zip(trials, starts, strict=True):
        wanted = choices.extract(source, trial.ask.arch).state_dict()
        assert start.keys() == wanted.keys() and all(torch.equal(start[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize("place", ["nasopt.estimators.images.train.fit", "nasopt.nets.differentiable.DifferentiableSearch.run"])
def test_a_search_from_relaxed_weights_that_was_interrupted_gives_the_same_trials(
    place: str, small: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between an ask and its answer, and between two slices."""
    def trials(storage: Memory) -> list[tuple[Ask, float, str | None]]:
        study = distrustful(small, "gdas", storage, tmp_path).search("gdas", storage)
        return [(t.ask, t.metrics["error"], t.error) for t in study.trials]

    whole, calls, cut = trials(Memory()), list[int](), Memory()
    with monkeypatch.context() as patch:
        owner, name = place.rsplit(".", 1)
        real = getattr(phases.train if name == "fit" else phases.relaxed.DifferentiableSearch, name)

        def once(*given: Any, **named: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return real(*given, **named)

        patch.setattr(f"{owner}.{name}", once)
        with pytest.raises(KeyboardInterrupt):
            trials(cut)
    assert len(list(cut.events())) == (6 if name == "fit" else 1)
    assert trials(cut) == whole and len(whole) == 5


@pytest.mark.parametrize("strategy", ["nsga2", "gdas"])
def test_what_witnesses_gave_counts_if_they_began_as_the_candidates_do(strategy: str, small: Setup, tmp_path: Path) -> None:
    storage = Memory()
    run = distrustful(small, strategy, storage, tmp_path, value=0.1)
    run.ledger.store("witness 0", {"alone": 0.123, "own error": 0.123, "own training_seconds": 1.0})
    first = run.search("random", Memory(), "random search").trials[0]
    assert (first.ask.arch == run.witnesses()[0]) == (first.metrics["error"] == 0.123) == (strategy == "nsga2")


def test_a_network_with_partial_channels_has_other_layers(setup: Setup) -> None:
    nb201 = replace(setup, config=replace(setup.config, space="nb201"))
    assert not relaxed.whole(nb201, "pcdarts")
    assert relaxed.whole(nb201, "darts1") and relaxed.whole(setup, "pcdarts")


def test_with_too_little_time_the_cheapest_of_the_witnesses_can_be_trained(setup: Setup, tmp_path: Path,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "step_ms", params)
    monkeypatch.setattr(final, "epoch_seconds", lambda *given: 1e9)
    run = phases.Phases(setup, Memory(), Folder(tmp_path), Display(lambda line: None, False))
    bound, cheap = run.trainable()
    sizes = [params(choices.extract(setup.net, arch)) for arch in run.witnesses()]
    assert bound.upper == phases.SLACK * min(sizes)
    assert [params(choices.extract(setup.net, arch)) for arch in cheap] == [s for s in sizes if s <= bound.upper]
    assert 0 < len(cheap) < len(sizes)


def test_a_search_whose_beginnings_are_all_too_dear_begins_with_the_cheapest_witness_too(
    small: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it began with is what it begins with when it is resumed, though layers are timed anew then."""
    monkeypatch.setattr(warm, "step_ms", params)
    storage = Memory()
    run = distrustful(small, "random", storage, tmp_path)
    sizes = {space.key(arch): params(choices.extract(small.net, arch)) for arch in run.witnesses()}
    cheapest, dearest = sorted(run.witnesses(), key=lambda arch: sizes[space.key(arch)])[::len(sizes) - 1]
    bound = (sizes[space.key(cheapest)] + sizes[space.key(dearest)]) / 2
    run.ledger.store("trainable", {"ms": bound, "witnesses": [k for k, size in enumerate(sizes.values()) if size <= bound]})
    found = run.search("random", storage, initial=[dearest])
    assert [t.ask.arch for t in found.trials[:2]] == [dearest, cheapest]
    assert "error" not in found.trials[0].metrics and found.feasible()[0].ask.arch == cheapest

    monkeypatch.setattr(warm, "step_ms", lambda *given, **named: 0.0)
    again = distrustful(small, "random", storage, tmp_path)
    again.ledger.store("stopped search", None)
    assert again.search("random", Memory(), initial=[dearest]).trials[1].ask.arch == cheapest
    free = distrustful(small, "random", Memory(), tmp_path)
    free.search("random", free.storage, initial=[dearest])
    assert free.ledger.recall("first of search") == {"archs": [dearest]}


@pytest.mark.parametrize(("target", "times", "whole"), [(True, 1.01, True), (True, 0.99, False), (False, 1.01, False)])
def test_with_a_target_what_was_designed_by_hand_may_be_dearer(
    target: bool, times: float, whole: bool, setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As long as there is the time for two epochs."""
    monkeypatch.setattr(warm, "step_ms", params)
    config = replace(setup.config, target=(Constraint("error", 0.1),) if target else ())
    run = phases.Phases(replace(setup, config=config), Memory(), Folder(tmp_path), Display(lambda line: None, False))
    sizes = [params(choices.extract(setup.net, arch)) for arch in run.witnesses()]
    dearest = run.witnesses()[int(np.argmax(sizes))]
    monkeypatch.setattr(warm, "members", lambda setup: [dearest])
    monkeypatch.setattr(final, "epoch_of", lambda setup, arch: params(choices.extract(setup.net, arch)))
    run.ledger.store("dearest", {"seconds": times * final.FEWEST_EPOCHS * max(sizes), "epoch": 1.0, "rate": 1.0})
    assert (run.trainable()[0].upper == max(sizes)) == whole
    assert (dearest in run.trainable()[1]) == whole
    monkeypatch.setattr(warm, "step_ms", lambda *given, **named: 1e9)
    again = phases.Phases(run.setup, run.storage, Folder(tmp_path), Display(lambda line: None, False))
    assert again._step(dearest) == max(sizes), "a resumed run does not time again what the bound was made for"


def test_images_may_be_a_view_from_behind(setup: Setup) -> None:
    mirrored = replace(setup.dataset, x=setup.dataset.x[..., ::-1])
    assert torch.equal(prepare(setup.config, mirrored).training.x.flip(-1), setup.training.x)


def test_images_are_where_networks_are_to_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nasopt.pipeline.setup.device_of", lambda name: torch.device(name))
    monkeypatch.setattr("nasopt.pipeline.setup._check_output", lambda setup: None)
    there = prepared(AIMS, device="meta")
    assert {part.device.type for part in (there.training, there.validation, there.rest)} == {"meta"}


def test_a_device_that_does_not_serve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown device 'tpu': give cpu, cuda"):
        prepared(AIMS, device="tpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="'gdas' runs on the CPU, not on 'cuda': choose another strategy or the device cpu"):
        prepared(AIMS, device="cuda", strategy="gdas")


def test_nothing_to_trade_capacity_against() -> None:
    assert start(prepared((Objective("error"),))) == []


def test_the_start_keeps_the_constraints() -> None:
    setup = prepared(AIMS, (Constraint("params", 10_000.0),))
    found = start(setup)
    assert found
    for arch in found:
        assert sum(p.numel() for p in choices.extract(setup.net, arch).parameters()) <= 10_000


def test_equal_epochs_but_for_the_dearest() -> None:
    left = 2000 - 5 * final.EXPORT_SECONDS
    n, epochs = final.plan([40.0, 30.0, 20.0], [100.0, 5.0], 2000)
    assert n == 3
    assert epochs[3] == pytest.approx(final.DESIGNED_SHARE * left / 100)
    same = (1 - final.DESIGNED_SHARE) * left / 95
    assert [epochs[k] for k in (0, 1, 2, 4)] == pytest.approx([same] * 4)


@pytest.mark.parametrize("seed", range(20))
def test_the_plan_uses_the_time_and_no_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, designed = rng.uniform(5, 80, rng.integers(3, 10)).tolist(), rng.uniform(5, 80, 2).tolist()
    n, epochs = final.plan(found, designed, 2000)
    costs = np.array(found[:n] + designed)
    left = 2000 - final.EXPORT_SECONDS * len(costs)
    shares = np.array([final.LARGEST_SHARE] * n + [final.DESIGNED_SHARE] * 2)
    spent = np.array(epochs) * costs
    assert n >= final.MIN_NETWORKS
    assert (spent <= shares * left + 1e-6).all()
    assert spent.sum() == pytest.approx(left) or max(epochs) == final.MAX_EPOCHS
    equal = spent < shares * left - 1e-6
    assert np.ptp(np.array(epochs)[equal]) < 1e-9
    assert max(epochs) >= final.MIN_EPOCHS or n == final.MIN_NETWORKS


def trial(number: int, error: float, params: float, memory: float) -> Trial:
    return Trial(Ask(number, {}), {"error": error, "params": params, "memory_mb": memory}, 0.0)


def test_a_network_below_every_designed_one_is_chosen_once() -> None:
    front = [trial(0, 0.1, 100, 10), trial(1, 0.2, 50, 5), trial(2, 0.3, 20, 2), trial(3, 0.9, 1, 0.1)]
    bars = [{"params": 60.0, "memory_mb": 6.0}, {"params": 70.0, "memory_mb": 7.0}]
    assert [t.ask.number for t in final.choose(front, AIMS, bars, 2)] == [0, 1]
    assert len(final.choose(front, AIMS, bars, 3)) == 3
    tight = [{"params": 30.0, "memory_mb": 3.0}, *bars]
    assert [t.ask.number for t in final.choose(front, AIMS, tight, 2)] == [0, 2]


def test_timing_an_epoch_trains_a_few_steps(setup: Setup) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    assert final.epoch_seconds(net, setup.training, final.train.Recipe(), setup.augment) > 0


def test_a_final_training_that_was_interrupted_goes_on_from_its_checkpoint(setup: Setup, tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    found, steps = dict[str, torch.Tensor](), list[int]()

    def export(self: final.Delivery, net: torch.nn.Module, folder: Path) -> dict[str, str]:
        found[folder.name] = torch.cat([v.flatten() for v in net.state_dict().values()])
        return {}

    def deliver(storage: Memory, stop: int) -> dict[str, torch.Tensor]:
        """The weights of both hand-designed networks, or an interruption after so many steps."""
        def watch(done: float, total: float, note: str = "") -> None:
            steps.append(1)
            if len(steps) == stop:
                raise KeyboardInterrupt

        class Quiet(Display):
            @contextmanager
            def phase(self, title: str) -> Iterator[Watch]:
                yield watch

        found.clear()
        steps.clear()
        Finals(setup, storage, Folder(tmp_path), Quiet(print)).deliver([], {"epochs": [2.0, 0.5]})
        return dict(found)

    monkeypatch.setattr("nasopt.pipeline.kept.EVERY", 0.0)
    monkeypatch.setattr(final.Delivery, "export", export)
    monkeypatch.setattr(final.Delivery, "mistakes", lambda self, folder, files: (1, 12))
    monkeypatch.setattr(final.Delivery, "latencies", lambda self, nets, folders: [{"latency_ms": 1.0, "latency_iqr_ms": 0.1}] * 2)
    whole, epoch = deliver(Memory(), 0), final.train.steps_of(setup.rest, final.train.Recipe(epochs=1))
    assert len(steps) == 2.5 * epoch
    storage = Memory()
    with pytest.raises(KeyboardInterrupt):
        deliver(storage, epoch + 5)
    assert storage.get("checkpoint small-resnet")
    again = deliver(storage, 0)
    assert len(steps) == 1.5 * epoch
    assert all(torch.equal(whole[name], again[name]) for name in ("small-resnet", "small-mobilenetv2-like"))
    assert storage.get("checkpoint small-resnet") == b""


def test_with_a_target_final_networks_learn_from_all_images_that_do_not_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "VALIDATION", 4)
    plain, aimed = coloured(), coloured(target=(Constraint("error", 0.1),))
    rest, judges = set(aimed.rest.index.tolist()), set(aimed.validation.index.tolist())
    assert len(judges) == 4 < len(aimed.split.val)
    assert set(aimed.lessons.index.tolist()) == rest - judges
    assert set(plain.lessons.index.tolist()) == rest


def test_a_search_begins_with_the_designs_of_its_space_in_sizes_that_can_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "step_ms", params)  # as if each parameter took a millisecond
    there = coloured(space="fast")
    own = fast.airbench94(there.net)
    work = flops(choices.extract(there.net, own).eval(), there.example)
    bound = sum(p.numel() for p in choices.extract(there.net, own).parameters()) / 4
    found = warm.designs(there, bound)
    spent = [flops(choices.extract(there.net, arch).eval(), there.example) for arch in found]
    assert len(found) == 2, "images of 16 pixels are too small for the designs of four stages"
    assert work / 16 < spent[1] <= work / 8 < spent[0] <= work / 4
    assert all(arch["first/enter"] == own["first/enter"] and arch["head/pool"] == own["head/pool"] for arch in found)
    assert warm.designs(there, 4 * bound)[0] == own, "as it is, where it can be trained"
    assert warm.designs(there, 1e-6) == [] == warm.designs(coloured(), bound)
    table = warm.step_table(there)
    assert table(choices.extract(there.net, own).eval(), there.example)[warm.STEP] > 0
    table.known.update({key: 1e6 * ms for key, ms in table.known.items()})
    assert warm.designs(there, 4 * bound, table=table) == [], "as the table says by which the bound was found"


def test_with_a_target_the_search_has_the_time_of_random_search() -> None:
    plain, aimed = (Config("x", seconds=100.0, target=target) for target in ((), (Constraint("error", 0.1),)))
    assert phases.seconds_of(aimed, "random search") == 0
    for config in (plain, aimed):
        parts = [phases.seconds_of(config, phase) for phase in ("warm start", "search", "random search")]
        assert sum(parts) == pytest.approx(26)


@pytest.mark.parametrize("target", [(), (Constraint("error", 0.1),)])
def test_random_search_has_as_much_time_as_it_has_beside_another_strategy(target: tuple[Constraint, ...]) -> None:
    alone, beside = (Config("x", seconds=100.0, target=target, strategy=name) for name in ("random", "hybrid"))
    assert phases.seconds_of(alone, "warm start") == phases.seconds_of(alone, "random search") == 0
    assert phases.seconds_of(alone, "search") == pytest.approx(
        26.0 if target else phases.seconds_of(beside, "random search"))


@pytest.mark.parametrize(("bounds", "seconds"), [((), 7.0), ((Constraint("error", 0.1),), 24.0)])
def test_with_a_target_the_search_has_what_the_warm_start_leaves(bounds: tuple[Constraint, ...], seconds: float, setup: Setup,
                                                                 tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "rate_of", lambda setup: 1.0)
    config = replace(setup.config, seconds=100.0, target=bounds)
    run = phases.Phases(replace(setup, config=config), Memory(), Folder(tmp_path), Display(lambda line: None, False))
    run.ledger.charge("warm start", 2.0)
    assert run.seconds("search") == pytest.approx(seconds)
    assert run._dearest()["seconds"] == pytest.approx(100 - 2 - 26)
    run.ledger.charge("warm start", 9.0)
    assert run.seconds("search") == pytest.approx(20.0 if bounds else 7.0)
    late = phases.Phases(replace(setup, config=config), Memory(), Folder(tmp_path), Display(lambda line: None, False))
    late.ledger.charge("preparation", 90.0)
    assert late._dearest()["seconds"] == pytest.approx(20), "what is left for final trainings in any case"


def test_a_bound_on_the_error_counts_when_a_search_for_other_targets_ends(setup: Setup, tmp_path: Path) -> None:
    config = replace(setup.config, target=(Constraint("params", 1e3),), constraints=(Constraint("error", 0.05),))
    run = phases.Phases(replace(setup, config=config), Memory(), Folder(tmp_path), Display(lambda line: None, False))
    run.ledger.store("trust", {"fallback": False})
    trials = [Trial(Ask(0, run.witnesses()[0]), {"error": e, EXPECTED: e, target.EPOCHS: 1.0, "params": 1e3}, 1.0)
              for e in (0.06, 0.05)]
    assert run._stop(trials[:1]) == ""
    assert "meets params <= 1000 and error <= 0.05 already" in run._stop(trials[1:])


def test_a_layer_whose_step_does_not_fit_into_memory_is_timed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = list[int]()

    def timed(layer: torch.nn.Module, inputs: object, named: object, device: object, rows: int) -> float:
        tried.append(rows)
        if rows > 16:
            raise torch.OutOfMemoryError("no more")
        return 1.5

    monkeypatch.setattr(warm, "_timed", timed)
    assert warm.step_ms(torch.nn.Linear(2, 2), (torch.ones(1, 2),), {}) == 4 * 1.5
    assert tried == [64, 32, 16]
    monkeypatch.setattr(warm, "_timed", lambda *given: timed(*given[:4], 99))
    with pytest.raises(torch.OutOfMemoryError):
        warm.step_ms(torch.nn.Linear(2, 2), (torch.ones(1, 2),), {})


class Adding(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(1.0)


@pytest.mark.parametrize("layer", [torch.nn.ReLU(inplace=True), torch.nn.Dropout(0.5, inplace=True), Adding()])
def test_a_layer_that_works_in_place_is_timed(layer: torch.nn.Module) -> None:
    assert warm.step_ms(layer, (torch.ones(1, 4, 8, 8),), {}) > 0


def test_a_run_that_others_begin_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(folder: Folder) -> None:
        with folder.created():
            (folder.path / "split.npz").write_bytes(b"")
            raise RuntimeError("locked")

    mine = Folder(tmp_path / "mine")
    with pytest.raises(RuntimeError, match="locked"):
        failing(mine)
    assert not mine.path.exists()
    theirs = Folder(tmp_path / "theirs")
    (theirs.path / "models").mkdir(parents=True)
    theirs.study.write_bytes(b"theirs")
    with pytest.raises(InputError, match="already holds a run"):
        failing(theirs)
    monkeypatch.setattr(Folder, "refuse_existing", lambda self: None)  # they begin between the look and the writing
    with pytest.raises(RuntimeError, match="locked"):
        failing(theirs)
    assert sorted(p.name for p in theirs.path.iterdir()) == ["models", "study.db"] and theirs.study.read_bytes() == b"theirs"


def test_a_folder_that_becomes_full_is_told_without_a_remedy_that_is_gone(tmp_path: Path) -> None:
    def fill(path: Path) -> None:
        with closing(Sqlite(path)) as storage:
            storage._db.execute("PRAGMA max_page_count = 12")
            storage.put("initial.weights", bytes(100_000))

    folder = Folder(tmp_path / "run")
    with pytest.raises(InputError, match=r"No space left on device.*then begin anew"), folder.created():
        raise OSError(28, "No space left on device")
    assert not folder.path.exists()
    with pytest.raises(InputError, match=r"disk is full\): free some space, then begin anew"), folder.created():
        fill(folder.study)
    assert not folder.path.exists()


def test_the_seconds_of_a_brief_training_are_no_prediction(setup: Setup, tmp_path: Path) -> None:
    finals = Finals(setup, Memory(), Folder(tmp_path), Display(lambda line: None, False))
    arch = space.sample(setup.problem.space, np.random.default_rng(0))
    order = finals._found(Trial(Ask(0, arch), {"error": 0.1, "training_seconds": 1.0}, 1.0), 0)
    assert order.about["predicted"] == {"error": 0.1}


def test_a_file_that_cannot_be_run_costs_one_network(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*given: object, **named: object) -> None:
        raise RuntimeError("no kernel for this operation")

    for name in ("onnx_logits", "torch_logits"):
        monkeypatch.setattr(final, name, failing)
    with pytest.raises(ExportError, match=r"model.* cannot be run: RuntimeError: no kernel"):
        final.Delivery(setup, final.train.Recipe()).mistakes(tmp_path, {"torch": "models/x/model.pt2"})


def test_capacity_of_a_network_that_keeps_what_it_made(setup: Setup) -> None:
    class Keeps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.grid = torch.nn.Conv2d(1, 2, 3), torch.zeros(0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.grid = self.grid if len(self.grid) else torch.linspace(0, 1, 6)
            return self.conv(x) * self.grid

    net = Keeps().eval().requires_grad_(False)
    assert 0 < warm.capacity(net, torch.rand(1, 1, 8, 8))["error"] < 1


def test_nothing_delivered_has_no_latencies(setup: Setup) -> None:
    assert final.Delivery(setup, final.train.Recipe()).latencies([], []) == []


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("fallback", [True, False])
def test_with_a_target_the_search_expects_what_its_time_allows(fallback: bool, setup: Setup, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """A brief training of half an epoch took 1.5 s, where an epoch of the last training takes twice as long, or a rough step
    60 ms of the 10 that are a second of an epoch: the last training of 300 s has 50 epochs, whether weights of 8 passes or half
    an epoch are behind the error."""
    monkeypatch.setattr(phases.Phases, "one_shot", lambda self: lambda ask: {"error": 0.4})
    monkeypatch.setattr(phases.Phases, "alone", lambda self, net: lambda ask: {"error": 0.4, "training_seconds": 1.5})
    config = replace(setup.config, seconds=1e4, target=(Constraint("error", 0.1),), strategy="random")
    run = phases.Phases(replace(setup, config=config), Memory(), Folder(tmp_path), Display(lambda line: None, False))
    for name, result in {"trust": {"fallback": fallback}, "supernet": {"passes": 8.0}, "trainable": {"ms": 1e9, "witnesses": [0]},
                         "low fidelity": {"epochs": 0.5, "seconds": 1.0, "final": 2.0},
                         "dearest": {"seconds": 300.0, "epoch": 1.0, "rate": 10.0}}.items():
        run.ledger.store(name, result)
    monkeypatch.setattr(phases.Layers, "__call__", lambda *given: {"step_ms": 60.0})
    found = run.estimator()(Ask(0, run.witnesses()[0]))
    assert not {"latency_ms", "memory_mb"} & found.keys(), "nobody asked for them"
    assert found[EXPECTED] == pytest.approx(0.4 * target.curve(50) / target.curve(0.5 if fallback else 8))
    assert [o.name for o in run.problem.objectives] == [EXPECTED]


@pytest.mark.usefixtures("brief")
def test_a_bound_on_the_error_is_for_trained_networks_alone(setup: Setup, tmp_path: Path) -> None:
    """After a brief training no network would meet it."""
    bars = (Constraint("error", 0.05), Constraint("params", 1e9))
    there = replace(setup, problem=replace(setup.problem, constraints=bars))
    run = phases.Phases(there, Memory(), Folder(tmp_path), Display(lambda line: None, False))
    run.ledger.store("trust", {"fallback": False})
    assert run.problem.constraints == bars[1:]
    assert there.problem.violation({"error": 0.1, "params": 1.0}) > 0, "as trained networks are judged"


@pytest.mark.parametrize("longer", [1.0, 3.0])
def test_brief_trainings_are_planned_by_their_own_steps(longer: float, setup: Setup, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of a brief training is smaller: an epoch of it takes 0.5 s, one of a final training that many times as long."""
    def seconds(net: torch.nn.Module, data: train.Images, recipe: train.Recipe, augment: train.Augment) -> float:
        return 0.5 if recipe.batch == phases.SMALL_BATCH else 0.5 * longer

    monkeypatch.setattr(final, "epoch_seconds", seconds)
    config = replace(setup.config, seconds=1e5)
    plain = phases.Phases(replace(setup, config=config), Memory(), Folder(tmp_path), Display(lambda line: None, False))
    config = replace(config, target=(Constraint("error", 0.1),))
    run = phases.Phases(replace(setup, config=config), Memory(), Folder(tmp_path), Display(lambda line: None, False))
    for each in (plain, run):
        each.ledger.store("trainable", {"ms": 1e9, "witnesses": [0, 1]})
    assert plain.low_fidelity().epochs > 0 and "final" not in plain.ledger.recall("low fidelity"), "which only a target asks for"
    recipe = run.low_fidelity()
    assert recipe.epochs == pytest.approx(min(final.MAX_EPOCHS / 4, run.seconds("search") / phases.CANDIDATES / 0.5))
    assert run.ledger.recall("low fidelity") == {"epochs": recipe.epochs, "seconds": recipe.epochs * 0.5, "final": longer}


def test_the_largest_network_is_tried_before_a_search_as_well() -> None:
    """Also where the smallest can be exported, which takes a while and is done once."""
    torch.manual_seed(0)
    width = choices.Width((2, 4))
    net = torch.nn.Sequential(choices.Conv2d(1, width, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                              Even(), choices.Linear(width, 3))
    with pytest.raises(InputError, match=r"the network fails on images of shape \(1, 8, 8\) with: RuntimeError: too wide"):
        prepared(AIMS, own=net, space="own")


class Even(torch.nn.Module):
    """Fails on what is wide."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] > 2:
            raise RuntimeError("too wide")
        return x


def test_a_strategy_is_checked_for_what_it_searches() -> None:
    """With a target on the error that is one objective, whatever the front is of."""
    pytest.importorskip("optuna")
    plain, error = Config("x", strategy="optuna-cmaes"), Constraint("error", 0.1)
    parts.check_config(replace(plain, target=(error,)))
    for config in (plain, replace(plain, target=(error, Constraint("params", 1e6)))):
        with pytest.raises(InputError, match="optuna-cmaes"):
            parts.check_config(config)


# ---------------------------------------------------------------------------------------------------------- mirrored networks
def test_mirrored_networks_are_delivered_and_their_costs_searched_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(final, "has_onnx", lambda: False)
    folder = tmp_path / "models" / "net"
    folder.mkdir(parents=True)
    plain, mirrored = coloured(), coloured(mirror=True, target=(Constraint("error", 0.1),))
    arch = space.sample(mirrored.problem.space, np.random.default_rng(0))
    once, twice = [Costs(s.net, s.of_delivered(s.cost_models()), s.example)(Ask(0, arch))["flops"] for s in (plain, mirrored)]
    assert twice == 2 * once
    assert survey(mirrored, 2).metrics[0]["flops"] == 2 * survey(plain, 2).metrics[0]["flops"]
    net, kept = choices.extract(mirrored.net, arch), Kept(Memory(), "checkpoint")
    found = final.Delivery(mirrored, train.Recipe())(net, 0, 0.5, folder, lambda done, total: None, kept)
    assert found["metrics"]["flops"] == twice
    assert found["metrics"]["error"] == train.error(train.Mirrored(net), mirrored.validation)
    x = mirrored.dataset.x[:4]
    np.testing.assert_allclose(torch_logits(folder / "model.pt2", x), torch_logits(folder / "model.pt2", x[:, :, ::-1].copy()),
                               rtol=1e-4, atol=1e-5)


def test_candidates_are_judged_as_they_would_be_delivered(tmp_path: Path) -> None:
    setup = coloured(mirror=True, strategy="random", seconds=1e4)
    run = phases.Phases(setup, Memory(), Folder(tmp_path), Display(lambda line: None, False))
    run.ledger.store("low fidelity", {"epochs": 0.5, "seconds": 1.0, "final": 1.0})
    run.storage.put("supernet.weights", phases.weights_to_bytes(setup.net))
    ask = Ask(0, space.sample(setup.problem.space, np.random.default_rng(0)))
    judged = list[torch.nn.Module]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "error", lambda net, *rest, **more: judged.append(net) or 0.5)
        assert run.alone(setup.net)(ask)["error"] == run.one_shot()(ask)["error"] == 0.5
    assert [type(net) for net in judged] == [train.Mirrored] * 2 and not any(net.training for net in judged)


def test_images_that_are_not_mirrored_in_training_are_refused() -> None:
    with pytest.raises(InputError, match=r"not mirrored in training, .* leave out --mirror"):
        prepared(AIMS, mirror=True)


# ---------------------------------------------------------------------------------------------------------- peaks of memory
def test_where_the_system_tells_no_peak_of_its_own_that_of_the_process_counts(tmp_path: Path,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "status").write_text("Name: python\n")
    monkeypatch.setattr(machine, "STATUS", tmp_path / "status")
    monkeypatch.setattr(machine, "CLEAR", tmp_path)
    machine.forget_peak_memory()
    assert machine.peak_memory_mb() > 50


def test_a_phase_that_was_killed_is_remembered() -> None:
    """An interruption is not one: its seconds are counted."""
    ledger = Ledger(Memory())
    with pytest.raises(KeyboardInterrupt), ledger.timed("search"):
        raise KeyboardInterrupt
    with ledger.timed("search"):
        assert not ledger.killed("search")
    with ledger.timed("search"):
        pass
    dead = ledger.timed("final training")
    dead.__enter__()  # and nothing more of this process
    assert not ledger.killed("final training")
    with ledger.timed("final training"):
        pass
    assert ledger.killed("final training") and not ledger.killed("search")


def test_the_peak_of_a_phase_is_its_own_and_is_kept() -> None:
    ledger = Ledger(Memory())
    with ledger.timed("large"), mmap.mmap(-1, 240_000_000) as block:  # which `malloc` cannot serve from what it still holds
        for k in range(0, len(block), mmap.PAGESIZE):
            block[k] = 1
    with ledger.timed("small"):
        pass
    large, small = ledger.peaks("large")["cpu"], ledger.peaks("small")["cpu"]
    assert large > 200
    if CLEAR.exists():  # elsewhere a peak is that of the whole process
        assert large - small > 200
    with ledger.timed("large"):
        pass
    assert ledger.peaks("large")["cpu"] == large
    assert ledger.peaks("never") == {}
