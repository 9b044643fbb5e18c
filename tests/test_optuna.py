"""Optuna's samplers as strategies: the seam's promises, what the samplers are told, and that they learn from it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
import pytest

from nasopt.errors import InputError
from nasopt.protocols import Strategy
from nasopt.run.search import Budget, search
from nasopt.space import Choice, Graph, Product, Repeat, canonical, check, everything, key, sample
from nasopt.strategies import catalogue
from nasopt.strategies.optuna import METHODS, PENALTY, TRIES, Method, OptunaSearch
from nasopt.testing import strategy as kit
from nasopt.trial import Ask, Constraint, Objective, Problem, Trial

ONE, TWO = (Objective("error"),), (Objective("error"), Objective("cost"))
FLAT = Product("", [Choice(f"c{k}", "abcd") for k in range(6)])
BRANCHES = Product("", [Choice("head", {"linear": None, "mlp": Choice("width", ("32", "64"))}),
                        Repeat("s", Choice("k", "35"), (1, 2)), Choice("a", "wxyz"), Choice("b", "wxyz")])


def of(name: str) -> Callable[[Problem, int], OptunaSearch]:
    return lambda problem, seed: OptunaSearch(problem, seed, METHODS[name], name=f"optuna-{name}")


def wrong(ask: Ask) -> float:
    """How many choices are not the last option."""
    return float(sum(v != 3 for v in ask.arch.values()))


def drive(strategy: Strategy, count: int, metrics: Callable[[Ask], dict[str, float]], batch: int = 1) -> list[Ask]:
    asks: list[Ask] = []
    while len(asks) < count and (new := strategy.ask(batch, len(asks))):
        strategy.tell([Trial(a, metrics(a), 0.0) for a in new])
        asks += new
    return asks


def told(strategy: OptunaSearch) -> Sequence[optuna.trial.FrozenTrial]:
    return strategy._study.trials


# ---------------------------------------------------------------------------------------------------------- the seam
@pytest.mark.parametrize("name", ["cmaes", "gp", "nsga2", "nsga3", "tpe"])
def test_conformance(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All checks that bear on it, in a smaller number of asks: these think for milliseconds, Gaussian processes for longer."""
    monkeypatch.setattr(kit, "STEPS", (3, 9, 4))
    monkeypatch.setattr(kit._Driver.run, "__defaults__", ((3, 9, 4),))
    problem = Problem(BRANCHES, ONE if METHODS[name].plain else TWO, (Constraint("mb", 0.8),))
    checks = [kit.check_numbering, kit.check_determinism, kit.check_any_order, kit.check_strangers, kit.check_failures]
    for promise in checks if name == "gp" else [*checks, kit.check_replay]:
        promise(of(name), problem)


def test_conformance_where_the_space_ends() -> None:
    small = Problem(Product("", [Choice("a", "xyz"), Choice("b", "wxyz"), Choice("c", "uv")]), TWO)
    kit.check_empty_answer(of("nsga2"), small)
    kit.check_end(of("nsga2"))


@pytest.mark.parametrize("name", ["cmaes", "gp", "nsga3", "tpe"])
def test_every_network_is_asked_exactly_once(name: str) -> None:
    space = Product("", [Choice("a", "xyz"), Choice("b", {"p": None, "q": Choice("c", "uv")})])
    asks = drive(of(name)(Problem(space, ONE), 1), 100, lambda a: {"error": float(a.arch["a"])}, batch=2)
    assert sorted(key(a.arch) for a in asks) == sorted(key(a) for a in everything(space))
    only = Problem(Choice("only", "xyz"), ONE)
    assert len(drive(of(name)(only, 0), 10, lambda a: {"error": float(a.arch["only"])})) == 3


@pytest.mark.parametrize("name", ["cmaes", "gp", "nsga2", "tpe"])
def test_graphs_that_are_not_valid_are_never_asked(name: str) -> None:
    graph = Graph("g", 4, ("a", "b"), 4)  # samplers choose among 256 strings, of which fewer are graphs from input to output
    asks = drive(of(name)(Problem(graph, ONE), 0), 15, lambda a: {"error": float(sum(a.arch.values()))})
    for ask in asks:
        check(graph, ask.arch)
    assert len({key(canonical(graph, a.arch)) for a in asks}) == len(asks) == 15


def test_the_asks_do_not_depend_on_the_process() -> None:
    """Sets are ordered differently in every process unless the hashes' seed is fixed."""
    code = """
from nasopt.strategies.optuna import METHODS
from test_optuna import FLAT, TWO, drive, of
from nasopt.trial import Problem
for name in ("tpe", "nsga2"):
    asks = drive(of(name)(Problem(FLAT, TWO), 3), 60, lambda a: {"error": a.arch["c0"] - a.arch["c1"], "cost": a.arch["c2"]}, 4)
    print([list(a.arch.values()) for a in asks])
"""
    outs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={
        **os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([*sys.path, os.path.dirname(__file__)]),
    }).stdout for seed in ("1", "2")}
    assert len(outs) == 1 and len(outs.pop()) > 1000


# --------------------------------------------------------------------------------------------------------- learning
@pytest.mark.parametrize(("name", "count"), [("tpe", 50), ("gp", 20), ("cmaes", 120)])
def test_it_learns(name: str, count: int) -> None:
    """The last twenty proposals have fewer wrong choices than random ones (4.5 of 6 in the mean)."""
    strategy = of(name)(Problem(FLAT, ONE), 0)
    drive(strategy, count, lambda a: {"error": wrong(a)})
    assert np.mean([t.value for t in told(strategy)[-20:]]) < 3.3


@pytest.mark.parametrize(("name", "count"), [("tpe", 20), ("gp", 3), ("nsga2", 20), ("nsga3", 20)])
def test_it_learns_from_others(name: str, count: int) -> None:
    """Eighty trials of a stranger, half of them around the optimum but not at it: what is asked next lies near it."""
    rng = np.random.default_rng(0)
    near = np.where(rng.random((80, 6)) < 0.7, 3, rng.integers(4, size=(80, 6)))
    near = near[(near != 3).sum(axis=1) > 1][:40]
    archs = [{f"c{i}": v for i, v in enumerate(row)} for row in near.tolist()] + [sample(FLAT, rng) for _ in range(40)]
    strangers = [Trial(a, {"error": wrong(a)}, 0.0) for a in (Ask(1000 + k, arch) for k, arch in enumerate(archs))]
    strategy = of(name)(Problem(FLAT, ONE), 0)
    strategy.tell(strangers)
    asks = strategy.ask(count, 0)
    assert np.mean([wrong(a) for a in asks]) < 3.5  # random: 4.5
    assert not {key(a) for a in archs} & {key(a.arch) for a in asks}
    cheap = of(name)(Problem(FLAT, ONE), 0)
    cheap.tell([Trial(Ask(t.ask.number, t.ask.arch, 0.5), t.metrics, 0.0) for t in strangers])
    assert cheap.ask(5, 0) == of(name)(Problem(FLAT, ONE), 0).ask(5, 0)


def test_architecture_and_hyper_parameters_are_one_space() -> None:
    """A product of both is searched like any other space; the best learning rate depends on the depth."""
    joint = Product("", [BRANCHES, Product("training", [Choice("lr", ("0.01", "0.03", "0.1")), Choice("wd", ("0", "1e-4"))])])

    def estimate(ask: Ask) -> dict[str, float]:
        lr, depth = ask.arch["training/lr"], 1 + ask.arch["s"]
        return {"error": 0.1 * abs(lr - (2 - depth)) + 0.05 * (ask.arch["training/wd"] == 0) + 0.02 * ask.arch["a"]}

    problem = Problem(joint, ONE)
    study = search(problem, catalogue.make("optuna-tpe", problem, 0), estimate, budget=Budget(trials=60))
    best = min(study.trials, key=lambda t: t.metrics["error"])
    assert best.metrics["error"] == 0 and best.ask.arch["training/wd"] == 1
    assert {"head", "a", "training/lr"} <= set(best.ask.arch)


# -------------------------------------------------------------------------------------------------- what it is told
class Stubborn(optuna.samplers.BaseSampler):
    """Always proposes the first option of everything."""

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        return 0


def test_a_proposal_that_is_known_is_told_its_result_and_never_asked_again() -> None:
    strategy = OptunaSearch(Problem(FLAT, ONE), 0, Method(lambda seed: Stubborn()))
    (first,) = strategy.ask(1, 0)
    (second,) = strategy.ask(1, 1)  # while the first is pending
    assert set(first.arch.values()) == {0} and second.arch != first.arch
    strategy.tell([Trial(first, {"error": 0.25}, 0.0)])
    assert [t.value for t in told(strategy)] == [0.25] * (1 + TRIES) + [None], "the last is the second, which is pending"
    (third,) = strategy.ask(1, 2)
    assert third.arch not in (first.arch, second.arch)
    assert [t.value for t in told(strategy)] == [0.25] * (1 + TRIES) + [None] + [0.25] * TRIES + [None]
    strategy.tell([Trial(second, {"error": 0.5}, 0.0), Trial(second, {"error": 0.9}, 0.0)])
    assert told(strategy)[1 + TRIES].value == 0.5 and told(strategy)[1 + TRIES].params == second.arch


def test_failures_and_violations_are_told_as_such() -> None:
    problem = Problem(FLAT, TWO, (Constraint("mb", 2.0),))
    strategy = of("nsga2")(problem, 0)
    a, b, c, d, e = strategy.ask(5, 0)
    strategy.tell([Trial(a, {"error": 0.5, "cost": 7.0, "mb": 1.0}, 0.0), Trial(b, {"mb": 3.0, "cost": 1.0}, 0.0),
                   Trial(c, {"error": 0.1, "cost": 1.0, "mb": 1.0}, 0.0, "timeout"),
                   Trial(d, {"error": float("nan"), "cost": 1.0, "mb": 1.0}, 0.0), Trial(e, {"mb": float("nan")}, 0.0)])
    states = [t.state.name for t in told(strategy)]
    assert states == ["COMPLETE", "COMPLETE", "FAIL", "FAIL", "FAIL"]
    assert told(strategy)[0].values == [0.5, 7.0] and told(strategy)[0].constraints == {"violation": 0.0}
    assert told(strategy)[1].values == [0.5, 1.0] and told(strategy)[1].constraints == {"violation": 0.5}
    early = of("nsga2")(problem, 0)
    early.tell([Trial(ask, {"mb": 3.0, "cost": 1.0}, 0.0) for ask in early.ask(1, 0)])
    assert [t.state.name for t in told(early)] == ["FAIL"], "no error was seen that could stand for its own"


def test_a_sampler_without_constraints_sees_a_penalty() -> None:
    strategy = of("cmaes")(Problem(FLAT, ONE, (Constraint("mb", 2.0),)), 0)
    a, b = strategy.ask(2, 0)
    strategy.tell([Trial(a, {"error": 0.5, "mb": 1.0}, 0.0), Trial(b, {"error": 0.1, "mb": 3.0}, 0.0)])
    assert [t.value for t in told(strategy)] == [0.5, 1.5 * PENALTY]
    assert told(strategy)[1].constraints == {}
    assert all(isinstance(d, optuna.distributions.IntDistribution) for t in told(strategy) for d in t.distributions.values())


def test_what_is_to_be_maximised_is_told_with_the_other_sign() -> None:
    strategy = of("tpe")(Problem(FLAT, (Objective("score", minimise=False),)), 0)
    drive(strategy, 1, lambda a: {"score": 3.0})
    assert [t.value for t in told(strategy)] == [-3.0]


def test_inactive_choices_are_put_only_to_samplers_that_want_a_fixed_space() -> None:
    for name, every in (("tpe", False), ("gp", True)):
        strategy = of(name)(Problem(BRANCHES, ONE), 0)
        asks = drive(strategy, 9, lambda a: {"error": 0.0})
        assert any(len(a.arch) < 7 for a in asks)
        assert [len(t.params) == 7 for t in told(strategy)] == [every or len(a.arch) == 7 for a in asks]
        strategy.tell([Trial(Ask(99, {"head": 0, "s": 0, "s[0]/k": 1, "a": 1, "b": 1}), {"error": 0.5}, 0.0)])
        assert len(told(strategy)[-1].params) == (7 if every else 5)


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_initial_architectures_come_first(name: str) -> None:
    initial = [sample(FLAT, np.random.default_rng(k)) for k in range(3)]
    strategy = catalogue.make(f"optuna-{name}", Problem(FLAT, ONE), 0, [*initial, initial[0]])
    asks = drive(strategy, 6, lambda a: {"error": wrong(a)})
    assert [a.arch for a in asks[:3]] == initial and len({key(a.arch) for a in asks}) == 6
    assert asks[0].by == f"optuna-{name}"


@pytest.mark.parametrize("name", ["nsga2", "nsga3", "optuna-nsga2"])
def test_one_initial_architecture_is_enough(name: str) -> None:
    arch = sample(FLAT, np.random.default_rng(0))
    assert catalogue.make(name, Problem(FLAT, ONE), 0, [arch]).ask(1, 0)[0].arch == arch


# --------------------------------------------------------------------------------------------------------- manners
def test_the_verbosity_stays_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = optuna.logging.get_verbosity(), list[logging.LogRecord]()
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", seen.append)
    monkeypatch.setattr(logging.getLogger("optuna"), "handlers", [handler])
    drive(of("cmaes")(Problem(FLAT, ONE), 0), 8, lambda a: {"error": wrong(a)})
    assert optuna.logging.get_verbosity() == before
    assert seen == []
    optuna.create_study()
    assert len(seen) == 1, "the probe works"


def test_one_objective_for_those_that_know_no_more() -> None:
    with pytest.raises(InputError, match="optuna-cmaes optimises one objective, but there are 2: choose"):
        catalogue.make("optuna-cmaes", Problem(FLAT, TWO), 0)


def test_without_optuna_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "nasopt.strategies.optuna")
    with pytest.raises(InputError, match=r"pip install 'nasopt\[optuna\]'"):
        catalogue.make("optuna-tpe", Problem(FLAT, ONE), 0)
    assert catalogue.make("random", Problem(FLAT, ONE), 0).ask(1, 0)
