"""What is watched of a gradient search: that it changes nothing, that its numbers are right, and its alarms."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from nasopt.analysis.convergence import Extremes, certificate
from nasopt.errors import InputError
from nasopt.nets import choices, relaxed
from nasopt.nets.differentiable import DifferentiableSearch, Method
from nasopt.nets.graphs import pairs_below
from nasopt.nets.hypergradient import Neumann
from nasopt.nets.train import Augment, Images
from nasopt.run.storage import Memory
from nasopt.seed import integer
from nasopt.space import everything
from nasopt.spaces.darts import darts
from nasopt.strategies import watch as watching
from nasopt.strategies.gradient import DARTS, RECIPES, Blobs, Gradient, history_of
from nasopt.strategies.watch import (
    DEEP,
    IMAGES,
    WINDOW,
    History,
    Outline,
    Slice,
    Watched,
    agreement,
    alarms,
    recording,
    sample,
    skip_limit,
    watch,
)
from nasopt.trial import Ask, Objective, Problem, Trial


class Net(nn.Module):
    """Of few weights, so that its Hessian is a small matrix; it draws noise of its own and keeps running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = choices.Conv2d(1, 2, 3)
        self.norm = choices.BatchNorm2d(2)
        self.act = choices.OneOf({"tanh": nn.Tanh(), "softplus": nn.Softplus(), "none": nn.Identity()})
        self.drop = nn.Dropout(0.1)
        self.other = choices.OneOf({"tanh": nn.Tanh(), "none": nn.Identity()})
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.drop(self.act(self.norm(self.stem(x))))).mean((2, 3)))  # type: ignore[no-any-return]


def images(n: int = 90) -> Images:
    """Three classes, in their order: bright at the top, in the middle, at the bottom."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) * 3 // n
    x = torch.randn(n, 1, 6, 6, generator=generator)
    for image, k in zip(x, y.tolist(), strict=True):
        image[:, 2 * k:2 * k + 2] += 1.0
    return Images.all(x, y, torch.zeros(1), torch.ones(1))


def search_of(method: Method = DARTS, steps: int = 12) -> DifferentiableSearch:
    torch.manual_seed(0)
    data, method = images(), replace(method, recipe=replace(method.recipe, batch=8))
    even = torch.arange(0, 90, 2)
    return DifferentiableSearch(Net(), data.part(even), data.part(even + 1), method, steps, 0, Augment())


def strategy(method: Method = DARTS, slices: int = 12, blobs: Blobs | None = None, look: int = 0,
             guard: bool = False) -> Gradient:
    search = search_of(method, slices)
    problem = Problem(choices.space_of(search.net), (Objective("error"),))
    return Gradient(problem, 0, search, "darts1", None, slices, blobs, watch=look, guard=guard)


# ------------------------------------------------------------------------------------------------- it changes nothing
@pytest.mark.parametrize("name", ["darts1", "idarts", "drnas", "gdas", "pcdarts"])
def test_a_search_that_is_watched_is_the_same_bit_for_bit(name: str) -> None:
    plain, seen = (strategy(RECIPES[name].method, 4, look=look) for look in (0, 2))
    for found in (plain, seen):
        torch.manual_seed(5)
        found.finish()
    states = plain.search.state(), seen.search.state()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items()), "weights, α, optimisers and running statistics"
    assert plain.history[-1].watched is None and plain.history[-1].architecture == seen.history[-1].architecture
    looks = [s.watched for s in seen.history]
    assert [w is not None and w.deep is not None for w in looks] == [False, True, False, True]
    assert [w is not None and w.extremes is not None for w in looks] == [False, name != "drnas"] * 2


def test_what_was_watched_is_kept_and_resumed_bit_for_bit() -> None:
    kept, whole = Memory(), strategy(slices=6, look=2)
    torch.manual_seed(5)
    whole.finish()
    first = strategy(slices=6, look=2, blobs=kept)
    torch.manual_seed(5)
    first.ask(4, 0)
    state = torch.get_rng_state()
    again = strategy(slices=6, look=2, blobs=kept)
    torch.set_rng_state(state)
    again.finish()
    assert len(history_of(kept.get("darts1.weights") or b"").slices) == 6
    assert again.record.to_text() == whole.record.to_text() == history_of(kept.get("darts1.weights") or b"").to_text()
    assert History.from_text(whole.record.to_text()).groups == (
        Outline("act", ("act",), ("tanh", "softplus", "none"), None), Outline("other", ("other",), ("tanh", "none"), None))


# ------------------------------------------------------------------------------------------------ its numbers are right
def flat(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def test_the_numbers_are_those_of_the_whole_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nasopt.nets.train.bf16_pays", lambda: False)
    search = search_of(replace(DARTS, hypergradient=Neumann(2, 0.1), start=0.5))
    search.net.drop.p = 0.0  # type: ignore[union-attr]
    search.run(4)
    found = watch(search, 0, 1, True)
    assert found is not None and found.deep is not None and found.extremes is not None
    names, parameters = zip(*search.net.named_parameters(), strict=True)
    sizes, counts = [p.numel() for p in parameters], [a.numel() for a in search.alphas]

    def loss(images: Images) -> Callable[[Tensor, Tensor], Tensor]:
        batch = sample(images, IMAGES)

        def value(w: Tensor, a: Tensor) -> Tensor:
            weights = {n: x.view_as(p) for n, x, p in zip(names, w.split(sizes), parameters, strict=True)}
            return search.loss(batch, [*(x.view_as(p) for x, p in zip(a.split(counts), search.alphas, strict=True)),
                                       *search.betas], weights)
        return value

    at = flat([p.detach() for p in parameters]), flat([a.detach() for a in search.alphas])
    outer, inner = loss(search.validation), loss(search.training)
    (v, direct), (slope, _) = torch.autograd.functional.jacobian(outer, at), torch.autograd.functional.jacobian(inner, at)
    (hessian, _), (mixed, _) = torch.autograd.functional.hessian(inner, at)
    (_, _), (_, second) = torch.autograd.functional.hessian(outer, at)
    assert found.residual == pytest.approx(float(slope.norm()), rel=1e-4)

    def response(terms: int, rate: float) -> Tensor:
        matrix = sum(torch.linalg.matrix_power(torch.eye(len(v)) - rate * hessian, j) for j in range(terms))
        return direct - rate * mixed @ (matrix @ v)

    assert found.gradient == pytest.approx(response(2, 0.1).numpy(), rel=1e-3, abs=1e-6)
    top = float(torch.linalg.eigvalsh(hessian).abs().max())
    generator = torch.Generator().manual_seed(integer(0, 1, "watch"))
    w = [p.detach().requires_grad_() for p in parameters]
    graph = torch.autograd.grad(watching._loss(search, sample(search.training, IMAGES))(w, search.alphas), w, create_graph=True)
    estimate = watching._largest(graph, w, generator)
    assert 0.5 * top < estimate <= top * (1 + 1e-4)
    assert found.deep == pytest.approx(response(DEEP, 1 / estimate).numpy(), rel=1e-3, abs=1e-5)
    basis = watching.mean_zero([3, 2])
    values = np.linalg.eigvalsh(basis @ second.double().numpy() @ basis.T)
    assert (found.extremes.low, found.extremes.high) == pytest.approx((values[0], values[-1]), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("name", "rows"), [("darts1", 3), ("fair_darts", 5)])
def test_the_coordinates_are_those_in_which_the_relaxation_changes(name: str, rows: int) -> None:
    search = search_of(replace(RECIPES[name].method, start=0.5))
    basis = watching._coordinates(search)
    assert basis.shape == (rows, 5) and np.allclose(basis @ basis.T, np.eye(rows))
    means = np.array([[1, 1, 1, 0, 0], [0, 0, 0, 1, 1.0]])
    assert np.allclose(basis @ means.T, 0) == (name == "darts1")
    search.allowed[0][0, 1] = False
    fewer = watching._coordinates(search)
    assert fewer.shape == (rows - 1, 5) and not fewer[:, 1].any()
    assert np.allclose(fewer @ np.array([[1, 1, 1, 0, 0.0]]).T, 0) == (name == "darts1")


def test_a_sample_sees_all_classes_of_images_in_their_order() -> None:
    x, y = sample(images(), 6)
    assert x.shape == (6, 1, 6, 6) and y.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(sample(images(), 1000)[1]) == 90


def test_a_search_that_is_infinite_is_not_watched() -> None:
    search = search_of()
    with torch.no_grad():
        search.net.head.weight.fill_(torch.nan)  # type: ignore[union-attr]
    assert watch(search, 0, 1, True) is None


def test_the_shares_of_all_architectures_add_up_and_are_those_of_the_draws() -> None:
    net, scores = Net(), [torch.tensor([[0.5, -1.0, 0.2]]), torch.tensor([[1.0, -torch.inf]])]
    shares = {tuple(a.values()): math.exp(relaxed.log_share(net, scores, a)) for a in everything(choices.space_of(net))}
    assert sum(shares.values()) == pytest.approx(1)
    p = np.exp([0.5, -1, 0.2]) / np.exp([0.5, -1, 0.2]).sum()
    assert shares == {(k, j): pytest.approx(p[k] * (j == 0)) for k, j in product(range(3), range(2))}


def test_the_share_of_a_cell_of_pairs_is_that_of_its_edges() -> None:
    net = darts(4, 2, 3)
    generator = torch.Generator().manual_seed(1)
    scores = [torch.randn(g.shape, generator=generator) for g in relaxed.groups(net)]
    arch = relaxed.draw(net, scores, generator)
    wanted = 0.0
    for group, weights in zip(relaxed.groups(net), scores, strict=True):
        for j in sorted({int(name.split("→")[1]) for name in group.names}):
            pair = pairs_below(j)[arch[f"{group.path}/{j}-inputs"]]
            for i, part in zip(pair, ("first", "second"), strict=True):
                row = group.names.index(f"{i}→{j}")
                wanted += float(weights[row].log_softmax(0)[arch[f"{group.path}/{j}-{part}"] + 1])
    assert relaxed.log_share(net, scores, arch) == pytest.approx(wanted)


def test_ranks_agree_where_large_shares_have_small_errors() -> None:
    search = search_of()
    scores = [torch.tensor([[0.5, -1.0, 0.2]]), torch.tensor([[1.0, 0.3]])]
    archs = list(everything(choices.space_of(search.net)))
    shares = [relaxed.log_share(search.net, scores, a) for a in archs]
    assert agreement(search, scores, [(a, -s) for a, s in zip(archs, shares, strict=True)]) == pytest.approx(1)
    assert agreement(search, scores, [(a, s) for a, s in zip(archs, shares, strict=True)]) == pytest.approx(-1)
    assert math.isnan(agreement(search, scores, [(a, s) for a, s in zip(archs, shares, strict=True)][:5]))
    assert math.isnan(agreement(search, scores, [(a, 0.5) for a in archs]))


def test_ranks_are_taken_of_what_was_measured_before_the_slice() -> None:
    found = strategy(slices=8)
    for number in range(8):
        (ask,) = found.ask(1, number) or [Ask(number, found.architecture)]
        found.tell([Trial(replace(ask, number=number), {"error": number / 10}, 1.0),
                    Trial(replace(ask, fidelity=0.5), {"error": 0.1}, 1.0),
                    Trial(ask, {"error": 0.2}, 1.0, "out of memory"), Trial(ask, {}, 1.0)])
    assert [s.measured for s in found.history] == list(range(8))
    assert [math.isfinite(s.ranks) for s in found.history] == [False] * 6 + [True] * 2


# --------------------------------------------------------------------------------------------------------------- alarms
def slices(skips: list[float], tops: list[float] | None = None, ranks: float = math.nan) -> list[Slice]:
    tops = tops or [math.nan] * len(skips)
    return [Slice({}, (), 1.0, s, 0.5, t, ranks) for s, t in zip(skips, tops, strict=True)]


def cell(edges: int, options: int, skip: int | None = 1) -> Outline:
    return Outline("cell", tuple(map(str, range(edges))), tuple(map(str, range(options))), skip)


@pytest.mark.parametrize(("groups", "least"), [
    ([cell(6, 5)], 5 / 6), ([cell(14, 8), cell(14, 8)], 15 / 28), ([cell(3, 3)], math.inf), ([cell(6, 5, None)], math.inf),
    ([cell(3, 5), cell(9, 7, None)], 1.0), ([], math.inf)])
def test_skips_alarm_in_more_than_half_of_the_rows_and_where_chance_seldom_puts_them(groups: list[Outline], least: float) -> None:
    assert skip_limit(groups) == pytest.approx(least)
    rows, p = sum(len(g.rows) for g in groups if g.skip is not None), 1 / len(groups[0].labels) if groups else 0
    if math.isfinite(least):
        tail = [sum(math.comb(rows, j) * p**j * (1 - p) ** (rows - j) for j in range(k, rows + 1)) for k in range(rows + 1)]
        k = round(least * rows)
        assert tail[k] <= 0.01 and (tail[k - 1] > 0.01 or k - 1 <= rows / 2)


def test_skips_send_a_guarded_search_back_to_the_last_calm_slice() -> None:
    early = [0.9] * 6 + [0.1, 0.2] + [0.9] * 8
    (alarm,) = alarms(slices(early), 0.8, None, True)
    assert (alarm.name, alarm.slice, alarm.value, alarm.threshold, alarm.back) == ("skips", 2 * WINDOW, 0.9, 0.8, 8)
    assert "lead in 90% of the rows" in alarm.text() and "went back to slice 8" in alarm.text()
    (only,) = alarms(slices(early), 0.8, None, False)
    assert only.back is None and "nothing was done" in only.text()
    (nowhere,) = alarms(slices([0.9] * 12), 0.8, None, True)
    assert nowhere.back is None, "there is no calm slice"
    assert alarms(slices(early[:9]), 0.8, None, True) == (), "too early to tell"
    assert alarms(slices([0.1] * 12 + [math.nan]), 0.8, None, True) == ()


def test_sharpness_and_ranks() -> None:
    tops = [1.0] * 7 + [3.0] * 8
    first = next(k for k in range(10, 16) if np.mean(tops[k - 10:k - 5]) / np.mean(tops[k - 5:k]) < 0.75)
    (seen,), (acted,) = (alarms(slices([0.0] * 15, tops), 1.0, flat, True) for flat in (None, 0.75))
    assert (seen.name, seen.slice, seen.threshold, seen.back) == ("sharpness", first, 0.75, None)
    assert acted == replace(seen, back=first - WINDOW)
    assert alarms(slices([0.0] * 15, tops), 1.0, 0.1, True) == ()
    some = [top if k % 2 else math.nan for k, top in enumerate(tops)]
    (rarely,) = alarms(slices([0.0] * 15, some), 1.0, None, True)
    assert rarely.name == "sharpness" and math.isfinite(rarely.value), "of a search that is not always watched closely"
    assert alarms(slices([0.0] * 15, [math.nan] * 10 + tops[10:]), 1.0, None, True) == ()
    for same in (-1.0, 1.0):
        assert alarms(slices([0.0] * 15, [same] * 15), 1.0, None, True) == ()
    (ranks,) = alarms(slices([0.0], ranks=-0.25), 1.0, None, True)
    assert (ranks.name, ranks.value, ranks.threshold) == ("ranks", -0.25, 0.0) and "is -0.25" in ranks.text()
    assert alarms(slices([0.0], ranks=0.25), 1.0, None, True) == ()


def test_a_guarded_search_ends_and_asks_for_what_it_went_back_to(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, found = Memory(), strategy(slices=14, guard=True)
    found.blobs = kept
    shares = iter([0.1] * 3 + [0.9] * 20)
    monkeypatch.setattr("nasopt.strategies.gradient.skip_share", lambda *given: next(shares))
    monkeypatch.setattr("nasopt.strategies.watch.skip_limit", lambda groups: 0.6)
    found.finish()
    assert len(found.history) == 2 * WINDOW + 1 and found.history[-1] is found.history[2]
    assert found.search.done == 2 * WINDOW and [a.back for a in found.alarms] == [3]
    found.ask(1, 0)
    assert len(found.history) == 2 * WINDOW + 1 and len(found.record.slices) == 2 * WINDOW
    again = strategy(slices=14, guard=True, blobs=kept)
    again.finish()
    assert again.search.done == 2 * WINDOW and again.architecture == found.architecture == found.history[2].architecture
    assert history_of(kept.get("darts1.weights") or b"").alarms == found.alarms


# ---------------------------------------------------------------------------------------------------------- certificate
def seen(gradient: list[float], deep: list[float] | None = None, ends: Extremes | None = None) -> Watched:
    return Watched(np.array(gradient), 0.5, None if deep is None else np.array(deep), ends)


def test_a_recording_holds_the_points_and_what_was_watched() -> None:
    ends = Extremes(-1.0, 2.0, 0.1, 0.2, 4)
    rows = [torch.tensor([[1.0, 2.0]]), torch.tensor([[1.5, -torch.inf]])]
    looks = [seen([3.0, 4.0], [3.0, 4.5], ends), seen([1.0, 0.0])]
    found = recording([replace(s, scores=(r,), watched=w)
                       for s, r, w in zip(slices([0.0] * 2), rows, looks, strict=True)])
    assert found.alphas.tolist() == [[1.0, 2.0], [1.5, 2.0]] and found.alphas.dtype == np.float32
    assert found.squared.tolist() == [25.0, 1.0] and found.residuals.tolist() == [0.5, 0.5]
    assert found.shallow.tolist() == [[3.0, 4.0]] and found.deep.tolist() == [[3.0, 4.5]] and found.extremes is None
    for broken in (slices([0.0] * 2), [replace(slices([0.0])[0], scores=(rows[0],), watched=seen([1.0, 1.0]))]):
        with pytest.raises(InputError, match=r"slices of the gradient search \d were watched, 0 closely"):
            recording(broken)


@pytest.mark.parametrize("name", ["darts1", "drnas"])
def test_the_certificate_of_a_search_claims_nothing_of_a_solution(name: str) -> None:
    found = strategy(RECIPES[name].method, look=4)
    found.finish()
    one = recording(found.history)
    said = certificate([one], None)
    text = said.text()
    assert said.regime == "stationarity only" and said.contraction is None and said.interval is None
    assert "α*" not in text and "onverge" not in text
    assert "1 seed, 12 slices" in text and "No interval of the rate: 1 of 1" in text
    assert [c.name for c in said.constants] == ["‖b‖"], "∇²_α L_val at fixed weights is not ∇²F"
    met = {c.text.split(":")[0]: c.met for c in said.conditions}
    assert not any(met[k] for k in met if "η" in k) and not met["the inner problem is solved exactly"]
    bias = [np.linalg.norm(s.watched.gradient - s.watched.deep) for s in found.history[3::4] if s.watched]
    assert said.floor == pytest.approx(np.mean(np.square(bias))) and said.floor > 0
    squares = [np.sum(s.watched.gradient**2) for s in found.history if s.watched]
    assert len(squares) == 12 and said.mean_squared_gradient == pytest.approx(np.mean(squares))
    course = np.exp(-0.3 * np.arange(12)[:, None] * np.ones(5))
    shrinking = [replace(one, alphas=np.float32(1 + course**s)) for s in (1.0, 1.1)]
    several = certificate(shrinking, None)
    slopes = np.array(several.slopes)
    half = stats.t.ppf(0.975, 1) * slopes.std(ddof=1) / math.sqrt(2)
    assert several.interval == pytest.approx((slopes.mean() - half, slopes.mean() + half))
    assert "moves from slice to slice shrink by a factor" in several.text() and several.contraction is None
    assert several.regime == "stationarity only" and "α*" not in several.text()


def test_bad_input() -> None:
    with pytest.raises(InputError, match="watched every -1 slices"):
        strategy(look=-1)
