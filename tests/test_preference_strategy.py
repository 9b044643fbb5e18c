"""The preference-conditioned search as a strategy: the conformance kit, what it asks for, and resuming."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nasopt.cost.lookup import Lookup, here
from nasopt.errors import InputError
from nasopt.nets import choices
from nasopt.nets.differentiable import DifferentiableSearch
from nasopt.nets.expected import Cost
from nasopt.nets.preference import METHOD, Device, PreferenceSearch
from nasopt.nets.train import Augment, Images, Recipe
from nasopt.run.storage import Memory
from nasopt.space import key, layout
from nasopt.strategies.gradient import Blobs
from nasopt.strategies.preference import GRID, Preference
from nasopt.strategies.reference import directions
from nasopt.testing.strategy import check_strategy
from nasopt.trial import Ask, Objective, Problem, Trial


def network() -> nn.Module:
    torch.manual_seed(0)
    ops = (choices.OneOf({"tanh": nn.Tanh(), "pool": nn.AvgPool2d(3, 1, 1), "relu": nn.ReLU()}) for _ in range(8))
    return nn.Sequential(*ops, nn.Flatten(), nn.Linear(36, 2))


def strategy(steps: int = 6, slices: int = 3, seed: int = 0, blobs: Blobs | None = None, lr: float = 0.05,
             stride: int = 1) -> Preference:
    net = network()
    space = choices.space_of(net)
    problem = Problem(space, (Objective("error"), Objective("latency_ms")))
    parts = {g.path: (0.0, 1.0 + k, 0.3) for k, g in enumerate(layout(space).genes)}
    cost = Cost(net, [Lookup("latency_ms", space, 1.0, parts, here())], here())
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(96) % 2
    data = Images.all(torch.randn(96, 1, 6, 6, generator=generator) + y[:, None, None, None], y, torch.zeros(1), torch.ones(1))
    method = replace(METHOD, lr=lr, still=0.0, recipe=Recipe(batch=8, kernel_lr=None, lr=0.05, momentum=0.9, smoothing=0.0))
    search = PreferenceSearch(net, data.part(torch.arange(48)), data.part(torch.arange(48, 96)), [Device([cost])], steps, seed,
                              Augment(), method, entropy=0.1)
    return Preference(problem, seed, search, slices, blobs, stride=stride)


def test_the_conformance_kit() -> None:
    check_strategy(lambda problem, seed: strategy(2, 2, seed), strategy().problem)


def test_after_the_training_it_asks_for_the_front_and_then_for_draws() -> None:
    found = strategy(steps=40, slices=2)
    first = found.ask(1, 0)
    assert found.search.done == 20
    asks = [*first, *found.ask(25, 1)]
    assert found.search.done == 40 and len({key(a.arch) for a in asks}) == 26 and all(a.by == "preference" for a in asks)
    front = {key(a) for a in found.search.front(directions(2, GRID).tolist())}
    assert {key(a) for a in found.finish()} == front and len(front) >= 2
    assert front <= {key(a.arch) for a in asks[:3 + len(front)]}
    told = strategy(steps=40, slices=2)
    told.tell([Trial(Ask(90, a), {"error": 0.5, "latency_ms": 1.0}, 1.0) for a in found.finish()])
    assert not front & {key(a.arch) for a in told.ask(20, 0)}
    likely = strategy(steps=40, slices=1)
    options = np.array([list(a.arch.values()) for a in likely.ask(40, 0)])
    chances = np.mean([torch.cat(likely.search.scores(r)).softmax(1).mean(0).numpy() for r in directions(2, 21).tolist()], axis=0)
    asked = np.array([(options == k).mean() for k in range(3)])
    assert np.abs(asked - chances).max() < 0.1 < chances.max() - 1 / 3, "draws follow the probabilities"


def test_slices_before_every_ask_and_a_front_without_order() -> None:
    found, done = strategy(slices=5, steps=10, stride=2), list[int]()
    for number in range(4):
        found.ask(1, number)
        done.append(found.search.done)
    assert done == [4, 8, 10, 10]
    first = [r[0] for r in strategy()._grid]
    assert sorted(first) == directions(2, GRID)[:, 0].tolist() and np.ptp(first[:6]) > 0.5


def test_a_search_that_is_resumed_equals_one_that_was_not_interrupted() -> None:
    kept, whole = Memory(), strategy(slices=4, steps=8)
    asked = [whole.ask(1, k)[0] for k in range(7)]
    first = strategy(slices=4, steps=8, blobs=kept)
    assert [first.ask(1, k)[0] for k in range(2)] == asked[:2]
    again = strategy(slices=4, steps=8, blobs=kept)
    assert again.search.done == 4  # nothing is trained again
    assert [again.ask(1, k)[0] for k in range(7)] == asked
    a, b = whole.search.state(), again.search.state()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_bad_input() -> None:
    made = strategy()
    other = Problem(choices.space_of(nn.Sequential(choices.OneOf({"a": nn.Tanh(), "b": nn.ReLU()}))), made.problem.objectives)
    with pytest.raises(InputError, match="must have the problem's space"):
        Preference(other, 0, made.search)
    with pytest.raises(InputError, match="at least 1 slice, and 1 before every ask, got 0 and 1"):
        strategy(slices=0)
    with pytest.raises(InputError, match="got 3 and 0"):
        strategy(stride=0)


def test_a_network_that_becomes_infinite_ends_the_search_but_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found, good = strategy(steps=8, slices=4), strategy(steps=8, slices=4)
    step = DifferentiableSearch.step_weights

    def failing(search: DifferentiableSearch, train: tuple[torch.Tensor, torch.Tensor]) -> float:
        if search.done >= 5:
            raise FloatingPointError("the training loss became nan at step 6 of 8.")
        return step(search, train)

    good._train_on(2)
    monkeypatch.setattr(DifferentiableSearch, "step_weights", failing)
    asks = found.ask(12, 0)
    assert len({key(a.arch) for a in asks}) == 12 and not found.training
    assert all(torch.equal(v, found.search.hyper.state_dict()[k]) for k, v in good.search.hyper.state_dict().items())
    assert found.remarks == ["The search ended after slice 2, since the next one failed: the training loss became nan at step 6 "
                             "of 8."]
    monkeypatch.setattr(DifferentiableSearch, "step_weights", lambda *given: (_ for _ in ()).throw(FloatingPointError("nan")))
    with pytest.raises(InputError, match="'preference' relaxes became infinite at once"):
        strategy().ask(1, 0)
