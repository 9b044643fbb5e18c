"""Gradient strategies: the conformance kit, every recipe on every kind of space, resuming, and what is watched."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasopt.errors import InputError
from nasopt.nets import choices, relaxed
from nasopt.nets.differentiable import DifferentiableSearch, Method
from nasopt.nets.train import Augment, Images
from nasopt.run.storage import Memory
from nasopt.space import check, key, labels, layout
from nasopt.spaces.cells import cells
from nasopt.spaces.darts import darts
from nasopt.spaces.fast import fast
from nasopt.spaces.nb201 import nb201
from nasopt.strategies import catalogue
from nasopt.strategies.gradient import DARTS, RECIPES, Blobs, Gradient
from nasopt.strategies.watch import WINDOW, Slice, curvature, evenness, skip_share
from nasopt.testing.strategy import check_strategy
from nasopt.trial import Ask, Objective, Problem, Trial


class Own(nn.Module):
    """Somebody's network with one choice of every kind that changes no shape."""

    def __init__(self) -> None:
        super().__init__()
        width = choices.Width((4, 8))
        self.stem = choices.Conv2d(3, width, choices.KernelSize((1, 3)), bias=False)
        self.norm = choices.BatchNorm2d(width)
        self.act = choices.OneOf({"relu": nn.ReLU(), "tanh": nn.Tanh(), "none": nn.Identity()})
        self.blocks = choices.Depth([choices.Conv2d(width, width, 3, padding=1) for _ in range(2)], (0, 1, 2))
        self.head = choices.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.act(self.norm(self.stem(x)))).mean((2, 3)))  # type: ignore[no-any-return]


NETS = {"cells": lambda: cells((3, 8, 8), 4, stages=2, widths=((4, 8), (8, 16)), operations=("none", "skip", "conv_3x3")),
        "nb201": lambda: nb201(4, 4, 1, affine=False), "darts": lambda: darts(4, 4, 3), "own": Own,
        "fast": lambda: fast((3, 8, 8), 4, widths=(8, 8))}


def images(n: int = 96, size: int = 8) -> Images:
    """Four classes that differ in the brightness of the corners."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 4
    x = 0.3 * torch.randn(n, 3, size, size, generator=generator)
    for image, k in zip(x, y.tolist(), strict=True):
        image[:, (k // 2) * size // 2:, (k % 2) * size // 2:] += 1.0
    return Images.all(x, y, torch.zeros(3), torch.ones(3))


def problem_of(net: nn.Module) -> Problem:
    return Problem(choices.space_of(net), (Objective("error"),))


def strategy(kind: str = "nb201", method: Method = DARTS, seed: int = 0, steps: int = 6, slices: int = 3,
             flat: float | None = None, blobs: Blobs | None = None) -> Gradient:
    torch.manual_seed(0)
    net = NETS[kind]()
    method = replace(method, recipe=replace(method.recipe, batch=8))
    return Gradient(problem_of(net), seed, search_of(net, method, steps, seed), "darts1", flat, slices, blobs)


def search_of(net: nn.Module, method: Method, steps: int, seed: int = 0) -> DifferentiableSearch:
    data = images()
    return DifferentiableSearch(net, data.part(torch.arange(48)), data.part(torch.arange(48, 96)), method, steps, seed, Augment())


def test_the_conformance_kit() -> None:
    check_strategy(lambda problem, seed: strategy(seed=seed, steps=2, slices=2), problem_of(NETS["nb201"]()))


@pytest.mark.parametrize(("name", "kind"), [*((name, kind) for name in RECIPES for kind in ("cells", "nb201", "own")),
                                            *((name, "darts") for name in ("darts1", "gdas", "pcdarts", "pdarts", "drnas",
                                                                           "darts_pt")),
                                            *((name, "fast") for name in ("darts1", "gdas", "fair_darts", "drnas", "nasopt"))])
def test_every_recipe_searches_every_space(name: str, kind: str) -> None:
    recipe = RECIPES[name]
    found = strategy(kind, recipe.method, steps=4, slices=2, flat=recipe.flat)
    found.watch = 2
    before = [a.detach().clone() for a in found.search.alphas]
    arch = found.finish()
    check(found.problem.space, arch)
    assert len(found.history) == 2 and all(np.isfinite(s.loss) for s in found.history)
    assert any(not torch.equal(a, b) for a, b in zip(before, found.search.alphas, strict=True))
    assert all(s.watched is not None and np.isfinite(s.watched.residual) for s in found.history)
    assert choices.extract(NETS[kind](), arch)(torch.randn(2, 3, 8, 8)).shape == (2, 4)


def test_the_names_are_those_of_the_catalogue() -> None:
    assert sorted(RECIPES) == list(catalogue.GRADIENT)
    with pytest.raises(InputError, match="darts1 trains a network"):
        catalogue.make("darts1", problem_of(NETS["nb201"]()), 0)
    with pytest.raises(InputError, match="'darts1'"):
        catalogue.make("dart1", problem_of(NETS["nb201"]()), 0)


def test_a_search_that_is_resumed_equals_one_that_was_not_interrupted() -> None:
    kept, whole = Memory(), strategy(slices=4, steps=8)
    asked = [whole.ask(1, k)[0] for k in range(6)]
    first = strategy(slices=4, steps=8, blobs=kept)
    assert [first.ask(1, k)[0] for k in range(2)] == asked[:2]
    again = strategy(slices=4, steps=8, blobs=kept)
    assert again.search.done == 4  # nothing is trained again
    assert [again.ask(1, k)[0] for k in range(6)] == asked
    for a, b in zip(whole.search.alphas, again.search.alphas, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(*(torch.cat([p.flatten() for p in s.search.net.parameters()]) for s in (whole, again)))


def test_slices_that_were_trained_ahead_are_asked_for_as_if_they_were_not() -> None:
    along, ahead = strategy(slices=4, steps=8), strategy(slices=4, steps=8)
    ahead.finish()
    asked = [along.ask(1, k)[0] for k in range(6)]
    assert [ahead.ask(1, k)[0] for k in range(6)] == asked
    assert len({key(s.architecture) for s in along.history}) > 1


@pytest.mark.parametrize("name", ["darts1", "pcdarts"])
def test_what_it_has_come_to_is_what_its_search_says_where_edges_compete(name: str) -> None:
    kept, found = Memory(), strategy("darts", RECIPES[name].method, steps=4, slices=1)
    generator = torch.Generator().manual_seed(3)
    found.search.run = lambda steps: []  # type: ignore[method-assign]
    for tensor in (*found.search.alphas, *found.search.betas):
        tensor.data = 3 * torch.randn(tensor.shape, generator=generator)
    found.blobs = kept
    arch = found.finish()
    assert arch == found.search.architecture() != relaxed.nearest(found.search.net, found.history[-1].scores)
    again = strategy("darts", RECIPES[name].method, steps=4, slices=1, blobs=kept)
    assert again.finish() == arch


def test_pdarts_drops_options_in_stages_and_keeps_two_skip_connections() -> None:
    method = RECIPES["pdarts"].method
    for kind, before, middle, last, every in (("nb201", 5, 3, 2, 6), ("darts", 8, 5, 3, 8)):
        found = strategy(kind, method, steps=6)
        left = []
        for found.search.done in range(6):
            found.search._prune()
            (share,) = {int(k) for a in found.search.allowed for k in a.sum(1)}
            left.append(share)
        assert left == [before] * 2 + [middle] * 2 + [last] * 2
        for a, g in zip(found.search.alphas, found.search.groups, strict=True):
            a.data[:, g.skip] = 9.0
        for k, g in zip(found.search.allowed, found.search.groups, strict=True):
            k[:, g.skip] = True
        plain = replace(method, skips=None)
        for chosen, most in ((method, 2), (plain, every)):
            found.search.method = chosen
            words = labels(found.problem.space, found.search.architecture())
            skips = Counter(path.partition("/")[0] for path, word in words.items() if word == "skip_connect")
            assert set(skips.values()) == {most}


def test_it_first_asks_for_the_largest_alpha_and_then_for_draws_that_nobody_asked_for() -> None:
    found = strategy(slices=1)
    asks = found.ask(30, 0)
    assert dict(asks[0].arch) == layout(found.problem.space).archs(
        layout(found.problem.space).canonical(layout(found.problem.space).rows([found.architecture])))[0]
    assert len({key(a.arch) for a in asks}) == 30 and all(a.by == "darts1" for a in asks)
    other = strategy(slices=1)
    other.tell([Trial(Ask(90, asks[0].arch), {"error": 0.5}, 1.0)])
    assert other.ask(1, 0)[0].arch != asks[0].arch


def test_a_sharp_minimum_stops_the_search_and_gives_what_was_found_before() -> None:
    found = strategy(slices=3 * WINDOW, steps=3 * WINDOW, flat=0.75)
    tops = [1.0] * WINDOW + [3.0] * 2 * WINDOW
    scores = [tuple(torch.full(g.shape, 0.0).index_fill(1, torch.tensor(k % 5), 1.0) for g in found.search.groups)
              for k in range(len(tops))]
    made = iter([Slice(relaxed.nearest(found.search.net, s), s, 1.0, 0.0, 1.0, t) for s, t in zip(scores, tops, strict=True)])
    found._train = lambda: next(made)  # type: ignore[method-assign]
    found.finish()
    trained = len(found.history) - 1
    means = [np.mean(tops[k - WINDOW:k]) for k in range(WINDOW, len(tops) + 1)]
    assert trained == WINDOW + next(k for k in range(WINDOW, len(means)) if means[k - WINDOW] / means[k] < 0.75)
    assert found.history[-1] is found.history[trained - 1 - WINDOW]
    done = len(found.history)
    found.ask(3, 0)
    assert len(found.history) == done


def test_the_curvature_is_that_of_the_whole_hessian() -> None:
    found = strategy(method=replace(DARTS, start=0.5))
    search = found.search
    extremes = curvature(search, 48, np.random.default_rng(0), products=24)
    batch = search.validation.normalised(slice(0, 48)), search.validation.y[:48]
    hessian = torch.autograd.functional.hessian(lambda a: search.loss(batch, [a, *search.betas]), search.alphas[0].detach())
    size = search.alphas[0].numel()
    values = np.linalg.eigvalsh(hessian.reshape(size, size).double().numpy())
    assert extremes.high == pytest.approx(values[-1], rel=1e-2) and extremes.low == pytest.approx(values[0], rel=1e-2)


def test_what_is_watched_counts_skips_and_evenness() -> None:
    found = strategy()
    scores = [torch.zeros(6, 5)]
    scores[0][:3, 1] = 9.0
    assert skip_share(found.search, scores) == 0.5
    assert evenness([torch.zeros(2, 4)]) == pytest.approx(1) and evenness([torch.tensor([[50.0, 0.0]])]) < 1e-6
    assert evenness([torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]])]) == pytest.approx(0.5)


def test_a_method_whose_steps_prefer_an_operation_finds_it() -> None:
    """A choice between seeing the input and seeing noise."""
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.see = choices.OneOf({"nothing": Noise(), "all": nn.Identity()})
            self.head = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.see(x))  # type: ignore[no-any-return]

    for name in ("darts1", "darts2", "gdas", "drnas", "darts_pt"):
        net = Net()
        method = replace(RECIPES[name].method, lr=0.05, recipe=replace(DARTS.recipe, batch=16))
        assert Gradient(problem_of(net), 0, search_of(net, method, 60), name, slices=2).finish() == {"see": 1}, name


def test_after_a_trial_it_asks_for_what_was_chosen_and_then_for_draws_of_what_was_learned() -> None:
    method = replace(RECIPES["darts_pt"].method, lr=0.3)
    plain, found = strategy(method=replace(method, trial=False), steps=9, slices=1), strategy(method=method, steps=9, slices=1)
    plain.finish()
    chosen = found.finish()
    assert found.search.done > 9 and chosen == found.search.architecture()
    last = found.history[-1]
    assert all(torch.equal(a, b) for a, b in zip(last.scores, plain.history[-1].scores, strict=True))
    assert repr(replace(last, architecture={}, scores=())) == repr(replace(plain.history[-1], architecture={}, scores=()))
    asked = [a.arch for a in found.ask(20, 0)]
    assert key(asked[0]) == key(layout(found.problem.space).archs(layout(found.problem.space).canonical(
        layout(found.problem.space).rows([chosen])))[0])
    # what draws prefer is what α prefers: of every edge, the best option is drawn more often than the worst
    likely = last.scores[0].argmax(1).tolist()
    rarely = last.scores[0].argmin(1).tolist()
    rows = layout(found.problem.space).rows(asked[1:])
    assert (rows == np.array(likely)).mean() > (rows == np.array(rarely)).mean()


def test_a_network_that_becomes_infinite_ends_the_search_but_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, found, whole = Memory(), strategy(slices=4, steps=8), strategy(slices=4, steps=8)
    found.blobs = kept
    step = DifferentiableSearch.step_weights

    def failing(search: DifferentiableSearch, train: tuple[Tensor, Tensor]) -> float:
        if search.done >= 5:
            raise FloatingPointError("the training loss became nan at step 6 of 8.")
        return step(search, train)

    asked = [whole.ask(1, k)[0] for k in range(2)]
    monkeypatch.setattr(DifferentiableSearch, "step_weights", failing)
    assert [found.ask(1, k)[0] for k in range(2)] == asked
    later = [found.ask(1, k)[0] for k in range(2, 6)]
    assert len({key(a.arch) for a in (*asked, *later)}) == 6 and len(found.history) == 2 and not found.training
    assert found.remarks == ["The search ended after slice 2, since the next one failed: the training loss became nan at step 6 "
                             "of 8."]
    after = strategy(slices=4, steps=8)
    after._train_on(2)
    assert all(torch.equal(v, found.search.state()[k]) for k, v in after.search.state().items()), "as after the last good slice"
    again = strategy(slices=4, steps=8, blobs=kept)
    training = list[bool]()
    for k, ask in enumerate((*asked, *later)):
        training.append(again.training)
        assert again.ask(1, k) == [ask]
    assert again.remarks == found.remarks
    assert training == [True, True, True, False, False, False], "until the slice that failed is reached, as it was at first"
    monkeypatch.setattr(DifferentiableSearch, "step_weights", lambda *given: failing(replace_done(given[0]), given[1]))
    with pytest.raises(InputError, match=r"'darts1' relaxes became infinite at once .*choose another strategy"):
        strategy().ask(1, 0)


def test_a_curvature_that_is_infinite_ends_the_search_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*given: object) -> None:
        raise InputError("take the Hessian where the loss is finite.")

    found = strategy(slices=4, steps=8)
    found._train_on(1)
    found.flat = 0.5
    monkeypatch.setattr("nasopt.strategies.gradient.curvature", failing)
    found.ask(1, 0)
    assert not found.training and "take the Hessian where the loss is finite" in found.remarks[-1]


def replace_done(search: DifferentiableSearch) -> DifferentiableSearch:
    search.done = 5
    return search


# ------------------------------------------------------------------------------------------- what others found draws alpha
@pytest.mark.parametrize("kind", ["cells", "nb201", "darts", "own"])
def test_frequencies_are_those_of_drawn_architectures(kind: str) -> None:
    """Draws from known probabilities have them as their frequencies; what no architecture chooses has none."""
    net = NETS[kind]()
    groups = relaxed.groups(net)
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(g.shape, generator=generator) for g in groups]
    archs = [relaxed.draw(net, scores, generator) for _ in range(300)]
    found = relaxed.frequencies(net, archs)
    for share, score, group in zip(found, scores, groups, strict=True):
        some = ~share.isnan().any(1)
        torch.testing.assert_close(share[some].sum(1), torch.ones(int(some.sum())))
        if kind != "darts":
            assert some.all() and float((share - score.softmax(1)).abs().max()) < 0.15
        else:
            assert bool((share[some][:, group.none] == 0).all())
    nothing = relaxed.frequencies(net, [])
    assert all(bool(share.isnan().all()) for share in nothing)


def test_alpha_is_drawn_towards_what_the_best_choose() -> None:
    """With trials whose best all have one operation everywhere, that operation gains; without enough of them, or with a pull
    of 0, nothing changes, bit for bit."""
    lay = layout(strategy().problem.space)
    archs = [dict.fromkeys([gene.path for gene in lay.genes], k % 5) for k in range(16)]
    trials = [Trial(Ask(100 + k, arch, 1.0), {"error": 0.1 + 0.2 * (k % 5)}, 1.0) for k, arch in enumerate(archs)]

    def scores(pull: float, told: int) -> Tensor:
        found = strategy(steps=12, slices=2)
        found.pull = pull
        found.tell(trials[:told])
        found.finish()
        return found.search.alphas[0].detach().softmax(1)

    plain = scores(0.0, 0)
    assert torch.equal(scores(0.0, 16), plain) and torch.equal(scores(5.0, 7), plain)
    drawn = scores(5.0, 16)
    assert bool((drawn[:, 0] > plain[:, 0]).all()) and torch.equal(drawn.argmax(1), torch.zeros(6, dtype=torch.int64))
    found = strategy()
    found.pull = 1.0
    found.tell(trials)
    guide = found._guide()
    assert guide is not None and torch.equal(guide[1][0][:, 0], torch.ones(6))
    broken = strategy()
    broken.pull = 1.0
    broken.tell([replace(t, metrics={}, error="out of memory") for t in trials])
    assert broken._guide() is None, "what failed draws nothing"


def test_the_pull_is_the_slope_of_the_divergence() -> None:
    """What Adam gets is the gradient without it plus that of KL(frequencies, softmax(alpha))."""
    found = strategy(steps=2).search
    wanted = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0]).expand(6, 5).clone()
    wanted[2] = torch.nan
    slopes = []
    for guide in (None, (0.7, [wanted])):
        found.guide = guide
        found._adam.step = lambda: None  # type: ignore[method-assign]
        batch = found.training.normalised(slice(0, 8)), found.training.y[:8]
        found._step_alphas(batch, batch)
        slopes.append(found.alphas[0].grad)
    alpha = found.alphas[0].detach().requires_grad_()
    rows = torch.tensor([0, 1, 3, 4, 5])
    divergence = (torch.special.xlogy(wanted, wanted)[rows] - wanted[rows] * alpha[rows].log_softmax(1)).sum()
    expected = 0.7 * torch.autograd.grad(divergence, alpha)[0]
    torch.testing.assert_close(slopes[1] - slopes[0], expected, atol=1e-6, rtol=1e-4)
    assert bool((expected[2] == 0).all())


def test_bad_input() -> None:
    net = NETS["own"]()
    with pytest.raises(InputError, match="must have the problem's space"):
        Gradient(problem_of(net), 0, strategy().search, "darts1")
    with pytest.raises(InputError, match="at least 1 slice, and 1 before every ask, got 0"):
        strategy(slices=0)
    with pytest.raises(InputError, match=r"coefficient of -1.0: give 0 or more"):
        Gradient(problem_of(NETS["nb201"]()), 0, strategy().search, "darts1", pull=-1.0)
