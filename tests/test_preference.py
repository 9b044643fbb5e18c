"""Preference-conditioned search: enumerable toys (monotone, hypervolume, the optimum of every preference), devices, the plumbing
of a real network, and resuming."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasopt.analysis.hypervolume import bounds, hypervolume, normalise
from nasopt.cost.lookup import Lookup, here
from nasopt.errors import InputError
from nasopt.nets import choices, mgda, relax, train
from nasopt.nets.expected import Cost
from nasopt.nets.preference import METHOD, Device, Hypernetwork, PreferenceSearch, step
from nasopt.space import key, layout

# ---------------------------------------------------------------------------------------------------------- the toy
SHAPES = [(4, 5), (2, 3)]
"""5⁴ · 3² = 5,625 architectures; loss and cost are sums over the rows."""

Toy = list[list[Tensor]]
"""[loss, cost], of every group, (rows, options), both with a range of 1 over the architectures."""


def comparable(*parts: list[np.ndarray]) -> Toy:
    return [[torch.from_numpy(part / sum(np.ptp(p, axis=1).sum() for p in of)).float() for part in of] for of in parts]


def random_toy(seed: int) -> Toy:
    """Cheap options tend to be bad ones."""
    generator = np.random.default_rng(seed)
    cost = [generator.random(shape) for shape in SHAPES]
    return comparable([1 - c + 0.4 * generator.random(c.shape) for c in cost], cost)


def sizes(seed: int) -> Toy:
    """Every option is larger than the one before, and gains less, as widths and depths do."""
    draw = np.random.default_rng(seed).uniform
    powers = [(np.arange(options), draw(0.3, 1, (rows, 1)), draw(0.3, 1, (rows, 1)), draw(0.3, 0.8, (rows, 1)))
              for rows, options in SHAPES]
    return comparable([gain * rate**k for k, _, gain, rate in powers], [price * k for k, price, _, _ in powers])


def enumerated(toy: Toy) -> np.ndarray:
    """(architectures, 2)."""
    rows = [[part[row].numpy() for part in parts] for parts in zip(*toy, strict=True) for row in range(len(parts[0]))]
    total = np.zeros((1, 2))
    for row in rows:
        total = (total[:, None] + np.stack(row, axis=1)[None]).reshape(-1, 2)
    return total


def slopes_of(toy: Toy, r: Tensor) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    """∇_α Σ_i r_i E[f_i] at softmax(α)."""
    def slopes(alphas: Sequence[Tensor]) -> Sequence[Tensor]:
        at = [a.requires_grad_() for a in alphas]
        value = sum(share * (a.softmax(1) * part).sum()
                    for share, parts in zip(r.tolist(), toy, strict=True) for a, part in zip(at, parts, strict=True))
        return torch.autograd.grad(value, at)  # type: ignore[arg-type]

    return slopes


def picked(toy: Toy, alphas: Sequence[Tensor]) -> list[float]:
    """[loss, cost] of the architecture of the largest α."""
    return [float(sum(part.gather(1, a.argmax(1, keepdim=True)).sum() for part, a in zip(parts, alphas, strict=True)))
            for parts in toy]


GRID = np.linspace(0, 1, 41)


def trained(toys: Sequence[Toy], features: Sequence[Tensor | None], entropy: float = 0.1, steps: int = 300) -> Hypernetwork:
    first = features[0]
    hyper = Hypernetwork(2, SHAPES, 0 if first is None else len(first))
    adam, generator = torch.optim.Adam(hyper.parameters(), 0.03), np.random.default_rng(0)
    for _ in range(steps):
        r = torch.from_numpy(generator.dirichlet([1.0, 1.0]))
        step(hyper, adam, r, [(f, slopes_of(toy, r)) for f, toy in zip(features, toys, strict=True)], entropy)
    return hyper


@torch.no_grad()
def response(hyper: Hypernetwork, toy: Toy, features: Tensor | None = None) -> np.ndarray:
    """(preferences, 2) for shares of the cost from 0 to 1."""
    return np.array([picked(toy, hyper(torch.tensor([1 - c, c]), features)) for c in GRID])


def share_of_front(found: np.ndarray, toy: Toy) -> float:
    """Hypervolume of the enumerated front that was found."""
    true, reference = enumerated(toy), [1.1, 1.1]
    frame = bounds(true)
    return hypervolume(normalise(found, *frame), reference) / hypervolume(normalise(true, *frame), reference)


def regret(found: np.ndarray, toy: Toy) -> float:
    """The most by which a preference's architecture misses the best one of all, in shares of the objectives' ranges."""
    weighed = np.stack([1 - GRID, GRID], axis=1)
    return float(((weighed * found).sum(1) - (weighed @ enumerated(toy).T).min(1)).max())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_response_is_monotone_and_its_hypervolume_that_of_the_front(seed: int) -> None:
    toy = sizes(seed)
    found = response(trained([toy], [None]), toy)
    assert (np.diff(found[:, 1]) <= 1e-6).all() and (np.diff(found[:, 0]) >= -1e-6).all()
    assert share_of_front(found, toy) >= 0.95 > share_of_front(response(Hypernetwork(2, SHAPES), toy), toy)
    assert regret(found, toy) < 0.02


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_a_weighted_sum_misses_the_front_draws_find_it(seed: int) -> None:
    toy, generator = random_toy(seed), torch.Generator().manual_seed(0)
    hyper = trained([toy], [None])
    found = response(hyper, toy)
    true, weighed = enumerated(toy), np.stack([1 - GRID, GRID], axis=1)
    assert share_of_front(true[(weighed @ true.T).argmin(1)], toy) < 0.95  # what the best of every preference can reach
    assert regret(found, toy) < 0.03
    with torch.no_grad():
        drawn = [picked(toy, [relax.gumbel(a, 1.0, generator) for a in hyper(torch.tensor([1 - c, c]))])
                 for c in GRID for _ in range(10)]
    assert share_of_front(np.array(drawn), toy) >= 0.95


def test_with_entropy_the_probabilities_are_those_of_the_closed_form() -> None:
    toy = random_toy(2)
    hyper = trained([toy], [None], entropy=0.5, steps=600)
    for c in (0.1, 0.5, 0.9):
        with torch.no_grad():
            found = hyper(torch.tensor([1 - c, c]))
        for alpha, loss, cost in zip(found, *toy, strict=True):
            assert float((alpha.softmax(1) - (-6 * ((1 - c) * loss + c * cost) / 0.5).softmax(1)).abs().max()) < 0.05  # eq. 2


def test_devices_are_told_apart_by_their_features() -> None:
    toys = [sizes(0), [[part.flip(1) for part in parts] for parts in sizes(1)]]  # on the second the last option is the cheapest
    features = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    hyper = trained(toys, features, steps=600)
    for k in range(2):
        assert share_of_front(response(hyper, toys[k], features[k]), toys[k]) >= 0.95
        assert share_of_front(response(hyper, toys[k], features[1 - k]), toys[k]) < 0.95


def test_a_step_of_several_devices_is_along_the_shortest_common_direction() -> None:
    toys, r = [random_toy(0), random_toy(5)], torch.tensor([0.3, 0.7])
    features = [torch.tensor([1.0]), torch.tensor([-1.0])]

    def gradient(which: Sequence[int]) -> Tensor:
        hyper = Hypernetwork(2, SHAPES, 1, start=0.5)
        step(hyper, torch.optim.SGD(hyper.parameters(), 0.0), r, [(features[k], slopes_of(toys[k], r)) for k in which], 0.2)
        return torch.cat([p.grad.flatten() for p in hyper.parameters() if p.grad is not None])

    rows = torch.stack([gradient([0]), gradient([1])])
    both = gradient([0, 1])
    assert torch.allclose(both, mgda.min_norm(rows) @ rows, atol=1e-7)
    assert float((rows @ both).min()) >= float(both @ both) - 1e-6 and not torch.allclose(both, rows.mean(0), atol=1e-3)


def test_the_gradient_of_a_step_is_that_of_the_whole_objective() -> None:
    toy, r = random_toy(3), torch.tensor([0.4, 0.6])
    hyper = Hypernetwork(2, SHAPES, start=0.5)
    step(hyper, torch.optim.SGD(hyper.parameters(), 0.0), r, [(None, slopes_of(toy, r))], 0.2)
    found = [p.grad.clone() for p in hyper.parameters() if p.grad is not None]
    total = sum(share * (a.softmax(1) * part).sum() for share, parts in zip(r, toy, strict=True)
                for a, part in zip(hyper(r), parts, strict=True))
    total -= 0.2 * torch.special.entr(torch.cat([a.softmax(1).flatten() for a in hyper(r)])).sum() / 6
    direct = torch.autograd.grad(total, list(hyper.parameters()))  # type: ignore[arg-type]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, direct, strict=True))


# ------------------------------------------------------------------------------------------------------ a real network
class Net(nn.Module):
    """A choice between seeing the image well, badly and not at all, and one that makes no difference."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.see = choices.OneOf({"nothing": Dark(), "half": nn.MaxPool2d(3, 1, 1), "all": nn.Identity()})
        self.act = choices.OneOf({"tanh": nn.Tanh(), "none": nn.Identity()})
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.see(x)))  # type: ignore[no-any-return]


class Dark(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def price(net: nn.Module, device: str = "") -> Cost:
    parts = {g.path: tuple(2.0 * k for k in range(len(g.labels))) for g in layout(choices.space_of(net)).genes}
    return Cost(net, [Lookup("latency_ms", choices.space_of(net), 1.0, parts, device)], here())


def search(steps: int = 200, devices: Callable[[nn.Module], list[Device]] | None = None, **changes: Any) -> PreferenceSearch:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(240) % 2
    x = 0.5 * torch.randn(240, 1, 6, 6, generator=generator)
    x[torch.arange(240), 0, 2, 2 * y] += 1.5
    data = train.Images.all(x, y, torch.zeros(1), torch.ones(1))
    net = Net()
    method = replace(METHOD, recipe=train.Recipe(batch=16, kernel_lr=None, lr=0.05, momentum=0.9, smoothing=0.0),
                     **{"lr": 0.02, **changes})
    return PreferenceSearch(net, data.part(torch.arange(120)), data.part(torch.arange(120, 240)),
                            [Device([price(net)])] if devices is None else devices(net), steps, 0, train.Augment(), method)


def test_a_network_is_searched_for_all_preferences_at_once() -> None:
    found = search()
    losses = found.run(200)
    assert len(losses) == 200 and np.isfinite(losses).all() and found.done == 200 and not found.run(5)
    fast, good = found.architecture([0.0, 1.0]), found.architecture([0.95, 0.05])
    assert fast == {"see": 0, "act": 0} and good["see"] == 2
    grid = [[1 - c, c] for c in np.linspace(0, 1, 21)]
    front = found.front(grid)
    assert {key(a) for a in front} == {key(found.architecture(r)) for r in grid} and 2 <= len(front) <= 6
    assert len({key(a) for a in front}) == len(front)
    drawn = [found.sample([0.0, 1.0], torch.Generator().manual_seed(k))["see"] for k in range(100)]
    probability = float(found.scores([0.0, 1.0])[0].softmax(1)[0, 0])
    assert abs(drawn.count(0) - 100 * probability) < 20
    cost = [found.architecture(r)["see"] for r in grid]
    assert cost == sorted(cost, reverse=True)


def test_the_loss_counts_in_shares_of_the_range_of_the_options_effects() -> None:
    found = search(40)
    batch = found.validation.normalised(slice(0, 64)), found.validation.y[:64]
    r, at = torch.tensor([0.25, 0.75]), [torch.randn(g.shape) for g in found.inner.groups]
    p = [a.softmax(1) for a in at]
    for seen, share in ((0, 1.0), (1, 0.5), (200, 0.02)):
        found.seen, before = seen, [torch.randn_like(a) for a in at]
        found.effects = [f.clone() for f in before]
        mine = found._slopes(found.devices[0], r, batch, batch)(at)
        loss, cost = found.inner.slopes(batch, batch), found.inner.cost_slopes(found.devices[0].costs)[0]
        means = [f + share * (s / q - f) for f, s, q in zip(before, loss, p, strict=False)]
        spread = sum(float(f.max() - f.min()) for f in means)
        assert found.spread == pytest.approx(spread)
        loss = [q * (f - (q * f).sum()) / spread for q, f in zip(p, means, strict=True)]
        assert all(torch.allclose(m, 0.25 * s + 0.75 * c, atol=1e-6) for m, s, c in zip(mine, loss, cost, strict=False))
        assert max(float(s.abs().max()) for s in loss) > 1e-3


def test_effects_do_not_depend_on_the_temperature_where_the_mixture_does_not() -> None:
    """At α = 0 every temperature gives the same even mixture."""
    found = []
    for temperature in (1.0, 10.0):
        made = search(12, temperature=relax.constant(temperature))
        batch = made.validation.normalised(slice(0, 64)), made.validation.y[:64]
        made._slopes(made.devices[0], torch.tensor([0.5, 0.5]), batch, batch)([torch.zeros(g.shape) for g in made.inner.groups])
        found.append(made.effects)
    assert max(float(f.abs().max()) for f in found[0]) > 1e-3
    assert all(torch.allclose(a, b, rtol=0.02, atol=1e-4) for a, b in zip(*found, strict=True))
    for relaxation in (relax.sigmoid, relax.sparsemax, relax.dirichlet):
        with pytest.raises(InputError, match=r"reads off the slopes what an option gains: give .* relaxation softmax, pair,"):
            search(12, relaxation=relaxation)


def test_weights_are_trained_before_preferences_count_and_every_part_has_an_effect() -> None:
    resting = search(12, still=1.0)
    before = [p.detach().clone() for p in resting.hyper.parameters()]
    weights = resting.net.head[1].weight.detach().clone()
    resting.run(12)
    assert all(torch.equal(a, b) for a, b in zip(before, resting.hyper.parameters(), strict=True)) and resting.seen == 0
    assert not torch.equal(weights, resting.net.head[1].weight)
    plain = search(12)
    plain.run(12)
    for other in (replace_of(plain, concentration=0.2), replace_of(plain, entropy=0.5), replace_of(plain, hidden=8),
                   search(12, start=0.5), search(12, lr=0.1),
                  search(12, relaxation=relax.gumbel), search(12, temperature=relax.constant(0.5)),
                  search(12, betas=(0.9, 0.9)), search(12, decay=0.1)):
        other.run(12)
        assert not torch.equal(other.hyper.linear.weight, plain.hyper.linear.weight)


def test_the_hypernetwork_moves_in_one_of_so_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    moved, found = list[int](), search(8, every=3, still=0.0)
    monkeypatch.setattr("nasopt.nets.preference.step", lambda *given: moved.append(found.done))
    found.run(8)
    assert moved == [0, 3, 6]


def replace_of(found: PreferenceSearch, concentration: float = 1.0, entropy: float = 0.1, hidden: int = 64) -> PreferenceSearch:
    fresh = search(found.steps)
    return PreferenceSearch(fresh.net, fresh.training, fresh.validation, fresh.devices, fresh.steps, 0, fresh.augment,
                            fresh.method, concentration, entropy, hidden)


@pytest.mark.parametrize("several", [False, True])
def test_a_search_that_is_resumed_equals_one_that_was_not_interrupted(several: bool) -> None:
    def two(net: nn.Module) -> list[Device]:
        return [Device([price(net)], torch.tensor([1.0])), Device([price(net)], torch.tensor([0.0]))]

    whole, first, again = (search(48, two if several else None) for _ in range(3))
    for _ in range(2):
        whole.run(15)
    first.run(15)
    again.load(first.state())
    again.run(15)
    a, b = whole.state(), again.state()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) and whole.seen > 0
    with pytest.raises(InputError, match="belongs to another"):
        again.load({k: v for k, v in a.items() if not k.startswith("hyper")})


def test_bad_input() -> None:
    for devices in (lambda net: [], lambda net: [Device([])], lambda net: [Device([price(net)])] * 2,
                    lambda net: [Device([price(net)], torch.ones(1)), Device([price(net)] * 2, torch.ones(1))]):
        with pytest.raises(InputError, match="equally many costs, at least 1"):
            search(devices=devices)
    for changes in ({"edges": True}, {"trial": True}, {"prune": ((0.5, 1),)}, {"skips": 2},
                    {"regularisers": ((relax.entropy, relax.constant(1)),)}):
        with pytest.raises(InputError, match="another α for every preference"):
            search(**changes)
    with pytest.raises(InputError, match="concentration of preferences is 0"):
        replace_of(search(4), concentration=0)
    with pytest.raises(InputError, match="weight of the entropy -1"):
        replace_of(search(4), entropy=-1)
    for preference in ([0.5, 0.6], [1.5, -0.5], [1.0]):
        with pytest.raises(InputError, match="not 2 shares of at least 0 with the sum 1"):
            search(4).scores(preference)
    with pytest.raises(InputError, match="another device"):
        price(Net(), "raspi4")
