"""Differentiable search: the default against a plain loop, special cases bit for bit, hypergradients of networks against central
differences, and resuming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from nasopt.errors import InputError
from nasopt.nets import choices, relax, relaxed, train
from nasopt.nets.choices import (
    BatchNorm2d,
    Conv2d,
    Depth,
    Graph,
    KernelSize,
    Linear,
    OneOf,
    PairGraph,
    Pairs,
    Width,
    Wiring,
)
from nasopt.nets.differentiable import DifferentiableSearch, Method, _without, cosine
from nasopt.nets.hypergradient import ConjugateGradient, FiniteDifference, FirstOrder, Hypergradient, Neumann, Unrolled
from nasopt.space import Rule, labels, layout
from nasopt.spaces.cells import cells
from nasopt.spaces.nb201 import nb201

F64 = torch.float64
STEPS = 6
PLAIN = Method(lr=0.05, recipe=train.Recipe(batch=8, kernel_lr=None, lr=0.05, momentum=0.9, weight_decay=3e-4, smoothing=0.0,
                                              clip=0.4))
"""The default, with larger steps, and gradients that are clipped."""


@pytest.fixture(autouse=True)
def _fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "bf16_pays", lambda: False)


def images(n: int = 160, seed: int = 0) -> train.Images:
    """Two classes, told apart by which half is brighter."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.rand(n, 1, 6, 6, generator=generator)
    x[torch.arange(n), 0, :, 3 * y] += 1
    return train.Images.all(x, y, x.mean((0, 2, 3)), x.std((0, 2, 3)))


def halves(data: train.Images) -> tuple[train.Images, train.Images]:
    return data.part(torch.arange(0, len(data), 2)), data.part(torch.arange(1, len(data), 2))


def parts() -> tuple[train.Images, train.Images]:
    data = images()
    middle = len(data) // 2
    return data.part(torch.arange(middle)), data.part(torch.arange(middle, len(data)))


class Net(nn.Module):
    """Operations, a cell, a depth, a width and a kernel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width = Width([2, 4])
        self.stem = nn.Sequential(Conv2d(1, self.width, KernelSize([1, 3])), BatchNorm2d(self.width))
        wiring = Wiring(3, ("none", "skip", "conv"), none="none", skip="skip")
        self.cell = Graph(wiring, {"none": nn.Identity, "skip": nn.Identity, "conv": lambda: Conv2d(self.width, self.width, 1)},
                          nn.Tanh())
        self.blocks = Depth([nn.Sequential(OneOf({"tanh": nn.Tanh(), "conv": Conv2d(self.width, self.width, 3, padding=1),
                                                  "pool": nn.AvgPool2d(3, 1, 1)})) for _ in range(2)], [0, 1, 2])
        self.out = Linear(self.width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(self.cell(self.stem(x))).flatten(2)[..., ::5].mean(2))  # type: ignore[no-any-return]


def loud() -> Net:
    """With logits that tell α apart from the start."""
    net = Net()
    with torch.no_grad():
        net.out.largest.weight.mul_(30.0)
    return net


def search(method: Method, net: nn.Module | None = None, steps: int = STEPS, seed: int = 3) -> DifferentiableSearch:
    return DifferentiableSearch(Net() if net is None else net, *parts(), method, steps, seed, train.Augment(translate=1))


def trace(method: Method, net: nn.Module | None = None) -> dict[str, Tensor]:
    """Everything that a search of all steps leaves: losses, architecture parameters, weights."""
    s = search(method, net)
    losses = s.run(STEPS)
    return {"losses": torch.tensor(losses), **{f"alpha {k}": a.detach() for k, a in enumerate(s.alphas)},
            **{k: v.detach() for k, v in s.net.named_parameters()}}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -------------------------------------------------------------------------------------------------- the plain loop, DARTS
def three() -> list[nn.Module]:
    return [nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 3, padding=1), nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(1, 3, 1))]


def by_hand() -> dict[str, Tensor]:
    """DARTS of first order as one would write it for one choice of operations."""
    torch.manual_seed(0)
    ops, head = three(), nn.Linear(3, 2)
    net = nn.ModuleList([*ops, head]).to(memory_format=torch.channels_last)
    training, validation = parts()
    alpha = search(PLAIN, OneChoice()).alphas[0].detach().clone().requires_grad_()
    weights = list(net.parameters())  # the start and the batches are the search's, everything else is plain PyTorch
    matrices, vectors = [p for p in weights if p.ndim > 1], [p for p in weights if p.ndim == 1]
    sgd = torch.optim.SGD([{"params": matrices, "weight_decay": 3e-4}, {"params": vectors}], lr=0.05, momentum=0.9, nesterov=True)
    adam = torch.optim.Adam([alpha], lr=0.05, betas=(0.5, 0.999), weight_decay=1e-3)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        share = torch.softmax(alpha, -1)
        h = share[0, 0] * ops[0](x) + share[0, 1] * ops[1](x) + share[0, 2] * ops[2](x)
        return functional.cross_entropy(head(torch.tanh(h).amax((2, 3))), y)

    inner = train.batches(training, 4, train.Augment(translate=1), 3, 0)
    outer = train.batches(validation, 4, train.Augment(translate=1), 3, 1)
    losses, clipped = [], 0
    for step in range(STEPS):
        batch = next(inner)
        alpha.grad = torch.autograd.grad(loss(*next(outer)), alpha)[0]
        adam.step()
        sgd.zero_grad()
        now = loss(*batch)
        now.backward()
        alpha.grad = None
        clipped += float(nn.utils.clip_grad_norm_(weights, 0.4)) > 0.4
        for group in sgd.param_groups:
            group["lr"] = cosine(step / STEPS) * 0.05
        sgd.step()
        losses.append(now.item())
    assert 0 < clipped < STEPS
    return {"losses": torch.tensor(losses), "alpha 0": alpha.detach(),
            **{f"weight {k}": p.detach() for k, p in enumerate(weights)}}


class OneChoice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.op = OneOf(three())
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.op(x)).amax((2, 3)))  # type: ignore[no-any-return]


def test_the_default_is_the_plain_loop_of_darts_bit_for_bit() -> None:
    found, expected = trace(PLAIN, OneChoice()), by_hand()
    assert torch.equal(found.pop("losses"), expected.pop("losses"))
    assert all(torch.equal(a, b) for a, b in zip(found.values(), expected.values(), strict=True))
    start = search(PLAIN, OneChoice())
    assert (found["alpha 0"] - start.alphas[0]).abs().min().item() > 0.01
    assert not torch.equal(found["head.weight"], start.net.get_parameter("head.weight"))


# ----------------------------------------------------------------------------------------------- special cases, and effects
half = relax.constant(0.5)
PARTS: dict[str, tuple[Method, Method | None]] = {
    "random perturbation": (replace(PLAIN, perturbation="random"), replace(PLAIN, perturbation="random", radius=half)),
    "adversarial perturbation": (replace(PLAIN, perturbation="adversarial"),
                                 replace(PLAIN, perturbation="adversarial", radius=half)),
    "β decay": (replace(PLAIN, regularisers=((relax.beta_decay, relax.constant(0.0)),)),
                replace(PLAIN, regularisers=((relax.beta_decay, half),))),
    "two regularisers": (replace(PLAIN, regularisers=((relax.entropy, relax.constant(0.0)), (relax.anchor, relax.constant(0.0)))),
                         replace(PLAIN, regularisers=((relax.entropy, relax.constant(0.0)), (relax.anchor, half)))),
    "bypass": (replace(PLAIN, bypass=relax.constant(0.0)), replace(PLAIN, bypass=half)),
    "finite difference": (replace(PLAIN, hypergradient=FiniteDifference(0.0)),
                          replace(PLAIN, hypergradient=FiniteDifference(0.1))),
    "steps of no length": (replace(PLAIN, hypergradient=Unrolled(2, 0.0)), replace(PLAIN, hypergradient=Unrolled(2, 0.1))),
    "unrolled": (replace(PLAIN, hypergradient=Unrolled(0, 0.1)), replace(PLAIN, hypergradient=Unrolled(1, 0.1))),
    "neumann": (replace(PLAIN, hypergradient=Neumann(0, 0.1)), replace(PLAIN, hypergradient=Neumann(2, 0.1))),
    "conjugate gradients": (replace(PLAIN, hypergradient=ConjugateGradient(0)),
                            replace(PLAIN, hypergradient=ConjugateGradient(2, damping=1.0))),
    "temperature": (replace(PLAIN, temperature=relax.linear(1.0, 1.0)), replace(PLAIN, temperature=half)),
    "prune": (replace(PLAIN, prune=((0.0, 3), (0.5, 3))), replace(PLAIN, prune=((0.4, 2),))),
    "prune by shares": (replace(PLAIN, prune=((0.0, 0.99),)), replace(PLAIN, prune=((0.4, 0.6),))),
    "dropout": (replace(PLAIN, dropout=relax.constant(0.0)), replace(PLAIN, dropout=half)),
    "still": (replace(PLAIN, still=0.0), replace(PLAIN, still=0.4)),
    "every": (replace(PLAIN, every=1), replace(PLAIN, every=2)),
    "rates": (replace(PLAIN, rates=cosine), replace(PLAIN, rates=half)),
}


@pytest.mark.parametrize(("nothing", "something"), PARTS.values(), ids=PARTS)
def test_a_part_that_is_nothing_is_darts_bit_for_bit_and_one_that_is_something_is_not(nothing: Method, something: Method) -> None:
    plain = trace(PLAIN)
    assert equal(trace(nothing), plain)
    assert not equal(trace(something), plain)


@pytest.mark.parametrize("other", [
    replace(PLAIN, start=0.1), replace(PLAIN, lr=0.1), replace(PLAIN, betas=(0.9, 0.9)), replace(PLAIN, decay=0.1),
    replace(PLAIN, edges=True), replace(PLAIN, recipe=replace(PLAIN.recipe, smoothing=0.1)),
    *(replace(PLAIN, relaxation=r) for r in (relax.sparsemax, relax.sigmoid, relax.gumbel, relax.gumbel_hard, relax.dirichlet))])
def test_every_other_part_has_an_effect(other: Method) -> None:
    a, b = trace(other), trace(PLAIN)
    assert not torch.equal(a["alpha 0"], b["alpha 0"])
    assert not torch.equal(a["out.largest.weight"], b["out.largest.weight"])
    assert all(bool(v.isfinite().all()) for v in a.values())


def test_the_seed_decides_everything() -> None:
    runs = []
    for seed in (3, 3, 4):
        s = search(replace(PLAIN, relaxation=relax.gumbel, perturbation="random", radius=half), seed=seed)
        runs.append((s.run(STEPS), [a.tolist() for a in s.alphas], s.sample(0), s.sample(1)))
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[2][0]
    assert runs[0][1] != runs[2][1]


def test_a_draw_is_the_same_within_a_step_and_another_in_the_next() -> None:
    s = search(replace(PLAIN, relaxation=relax.dirichlet))

    def drawn() -> Tensor:
        return torch.cat([m.weights.detach().flatten() for m in s.mixes([*s.alphas, *s.betas])])

    first = drawn()
    assert torch.equal(first, drawn())
    s.done += 1
    later = drawn()
    assert float((later - first).abs().min()) > 0


def test_alpha_moves_in_one_of_so_many_steps() -> None:
    s, moved = search(replace(PLAIN, every=3)), list[bool]()
    for _ in range(STEPS):
        before = s.alphas[0].detach().clone()
        s.run(1)
        moved.append(not torch.equal(before, s.alphas[0]))
    assert moved == [k % 3 == 0 for k in range(STEPS)]


def test_alpha_rests_while_it_is_still() -> None:
    s = search(replace(PLAIN, still=0.5))
    before = [a.detach().clone() for a in s.alphas]
    s.run(3)
    assert all(torch.equal(a, b) for a, b in zip(s.alphas, before, strict=True))
    s.run(1)
    assert not any(torch.equal(a, b) for a, b in zip(s.alphas, before, strict=True))


# ---------------------------------------------------------------------------------------------------------- hypergradients
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", [FirstOrder(), Unrolled(1, 0.3)])
def test_the_hypergradient_of_a_network_against_central_differences(method: Hypergradient, training: bool) -> None:
    s = search(PLAIN, loud().double())
    s.net.train(training)
    train_, val = (next(train.batches(p, 6, train.Augment(), 0, 0)) for p in (s.training, s.validation))
    names, w = zip(*s.net.named_parameters(), strict=True)
    outer, inner = (s._loss((x.double(), y), names) for x, y in (val, train_))
    generator = torch.Generator().manual_seed(0)
    alphas = [torch.randn(a.shape, dtype=F64, generator=generator) for a in s.alphas]
    betas = list(s.betas)
    found = method(outer, inner, w, [*alphas, *betas])[:len(alphas)]

    def value(at: list[Tensor]) -> float:
        """The validation loss, after one inner step for `Unrolled`."""
        weights = [p.detach() for p in w]
        if isinstance(method, Unrolled):
            leaves = [p.requires_grad_() for p in weights]
            slopes = torch.autograd.grad(inner(leaves, [*at, *betas]), leaves)
            weights = [(p - method.rate * g).detach() for p, g in zip(leaves, slopes, strict=True)]
        with torch.no_grad():
            return outer(weights, [*at, *betas]).item()

    worst, response, h = 0.0, 0.0, 1e-5
    for k, alpha in enumerate(alphas):
        for place in range(alpha.numel()):
            up, down = (value([a + (s_ * h * functional.one_hot(torch.tensor(place), a.numel()).view_as(a) if j == k else 0)
                               for j, a in enumerate(alphas)]) for s_ in (1, -1))
            worst = max(worst, abs((up - down) / (2 * h) - float(found[k].flatten()[place])))
            response = max(response, abs(up - down) / (2 * h))
    assert response > 0.01
    assert worst <= 1e-8  # measured: 2e-10


# --------------------------------------------------------------------------------------------------------------- resuming
@pytest.mark.parametrize("method", [
    PLAIN, replace(PLAIN, recipe=replace(PLAIN.recipe, kernel_lr=0.1)),
    replace(PLAIN, relaxation=relax.dirichlet, edges=True, prune=((0.3, 2),), perturbation="adversarial", radius=half),
    replace(PLAIN, prune=((0.3, 0.6),), dropout=half)])
def test_a_resumed_search_is_the_uninterrupted_one_bit_for_bit(method: Method) -> None:
    whole = search(method)
    losses = whole.run(3)
    blob = tensors_to_bytes(whole.state())
    taken = {k: v.clone() for k, v in whole.state().items()}
    kept = whole.state()
    later = whole.run(3)
    assert equal(kept, taken)  # a state is a copy
    with torch.random.fork_rng():
        other = Net()
        for p in other.parameters():
            nn.init.normal_(p)
    resumed = search(method, other)
    resumed.load(tensors_from_bytes(blob))
    assert resumed.done == 3
    assert resumed.run(3) == later != losses
    assert equal(resumed.state(), whole.state())
    assert any("opt" in k for k in taken)


@pytest.mark.parametrize("spoil", [lambda d: d.pop("alpha 0"), lambda d: d.pop("done"), lambda d: d.pop("net out.largest.weight"),
                                   lambda d: d.update({"alpha 0": torch.zeros(9, 9)})])
def test_another_searchs_state_is_refused(spoil: Callable[[dict[str, Tensor]], object]) -> None:
    s = search(PLAIN)
    s.run(1)
    state = s.state()
    spoil(state)
    with pytest.raises(InputError, match="belongs to another network or method: start the search anew"):
        search(PLAIN).load(state)


# ---------------------------------------------------------------------------------------------------------- architectures
def test_pruning_keeps_the_options_of_the_largest_alpha() -> None:
    s = search(replace(PLAIN, prune=((0.0, 2), (0.5, 1)), still=1.0))
    values = [torch.randn(a.shape, generator=torch.Generator().manual_seed(k)) for k, a in enumerate(s.alphas)]
    with torch.no_grad():
        for a, v in zip(s.alphas, values, strict=True):
            a.copy_(v)
    s.run(1)
    for allowed, v in zip(s.allowed, values, strict=True):
        assert torch.equal(allowed, v >= v.sort(1, descending=True).values[:, [1]])
    mixes = s.mixes([*s.alphas, *s.betas])
    assert all(torch.equal(m.weights > 0, k) for m, k in zip(mixes, s.allowed, strict=True))
    torch.testing.assert_close(torch.cat([m.weights.sum(1) for m in mixes]), torch.ones(sum(g.rows for g in s.groups)))
    with torch.no_grad():
        for a, k in zip(s.alphas, s.allowed, strict=True):
            a.masked_fill_(~k, 100.0)  # what is gone does not come back, however large its α
    assert s.architecture() == relaxed.nearest(s.net, values) == search_space_sample(s)
    s.done = 3
    s.run(1)
    assert all(torch.equal(k, v == v.max(1, keepdim=True).values) for k, v in zip(s.allowed, values, strict=True))


def test_pruning_by_shares_keeps_two_options_at_least() -> None:
    s = search(replace(PLAIN, prune=((0.0, 5 / 8), (0.5, 3 / 8)), still=1.0))
    before = [g.shape[1] for g in s.groups]
    s.run(1)
    first = [k.sum(1).tolist() for k in s.allowed]
    s.done = 3
    s.run(1)
    assert set(before) == {2, 3}
    assert all(set(row) == {2} for row in first) and all(set(k.sum(1).tolist()) == {2} for k in s.allowed)
    many = search(replace(PLAIN, prune=((0.0, 5 / 8), (0.5, 3 / 8)), still=1.0),
                  nn.Sequential(OneOf([nn.Conv2d(1, 1, 1) for _ in range(8)]), nn.Flatten(), nn.Linear(36, 2)))
    many.run(1)
    five = many.allowed[0].clone()
    many.done = 3
    many.run(1)
    assert int(five.sum()) == 5 and int(many.allowed[0].sum()) == 3 and bool((five | ~many.allowed[0]).all())


def search_space_sample(s: DifferentiableSearch) -> dict[str, int]:
    """The most frequent of a few samples when all α of the best options are far above the others."""
    before = [a.detach().clone() for a in s.alphas]
    with torch.no_grad():
        for a, k in zip(s.alphas, s.allowed, strict=True):
            a.mul_(torch.where(k, 200.0, 1.0))
    found = s.sample(0)
    with torch.no_grad():
        for a, b in zip(s.alphas, before, strict=True):
            a.copy_(b)
    return found


def test_pruned_options_do_not_count_in_a_regulariser() -> None:
    s = search(PLAIN)
    penalised = search(replace(PLAIN, regularisers=((relax.beta_decay, relax.constant(2.0)),)))
    assert s.penalty(s.alphas).item() == 0
    everything = penalised.penalty(penalised.alphas).item()
    expected = 2 * sum(a.logsumexp(1).mean().item() for a in penalised.alphas)
    assert everything == pytest.approx(expected, abs=1e-5)
    for a, k in zip(penalised.alphas, penalised.allowed, strict=True):
        k[:, 1:] = False
        assert a.shape[1] > 1
    left = penalised.penalty(penalised.alphas).item()
    assert left == pytest.approx(2 * sum(a[:, 0].mean().item() for a in penalised.alphas), abs=1e-5)


def test_samples_follow_the_softmax_of_alpha() -> None:
    s, draws = search(PLAIN, OneChoice()), 3000
    with torch.no_grad():
        s.alphas[0].copy_(torch.tensor([[0.0, 1.0, -0.5]]))
    counts = torch.zeros(3)
    for number in range(draws):
        counts[next(iter(s.sample(number).values()))] += 1
    expected = draws * s.alphas[0].detach()[0].softmax(0)
    assert stats.chisquare(counts.numpy(), expected.numpy() * (draws / expected.numpy().sum())).pvalue > 0.01
    s.allowed[0][0, 1] = False
    assert {next(iter(s.sample(number).values())) for number in range(50)} == {0, 2}


class Constant(nn.Module):
    """Logits of its own that do not look at the input: ``sure`` of class 0."""

    def __init__(self, sure: float) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor([sure, 0.0]))
        self.idle = nn.Parameter(torch.ones(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.get_buffer("logits").expand(len(x), 2) + 0 * self.idle.sum()


def test_settling_picks_the_options_without_which_the_loss_is_largest() -> None:
    """All images are of class 0, so that the loss falls in the mixture's certainty; every α says otherwise."""
    data = images(80)
    data = replace(data, labels=torch.zeros_like(data.labels))

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = OneOf({"wrong": Constant(-2.0), "right": Constant(3.0), "blank": Constant(0.0)})
            self.b = OneOf({"right": Constant(2.0), "wrong": Constant(-1.0)})

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)  # type: ignore[no-any-return]

    training, validation = halves(data)
    s = DifferentiableSearch(Two(), training, validation, PLAIN, 4, 0, train.Augment())
    with torch.no_grad():
        s.alphas[0].copy_(torch.tensor([[0.0, -0.5, 1.0]]))
        s.alphas[1].copy_(torch.tensor([[0.0, 0.5]]))
    assert s.architecture() == {"a": 2, "b": 1}
    s.done = 4
    found = list(s.settle(tuning=2, limit=16))
    assert len(found) == 2
    assert found[0] in ({"a": 1, "b": 1}, {"a": 2, "b": 0})  # row by row
    assert found[1] == {"a": 1, "b": 0} == s.architecture()
    assert s.done == 4 + 2 * 2
    # by hand: without "right" of a, the other two at softmax(0, 1) and b at its softmax
    rest = torch.tensor([0.0, 1.0]).softmax(0)
    fresh = DifferentiableSearch(Two(), training, validation, PLAIN, 4, 0, train.Augment())
    with torch.no_grad():
        fresh.alphas[0].copy_(torch.tensor([[0.0, -0.5, 1.0]]))
        fresh.alphas[1].copy_(torch.tensor([[0.0, 0.5]]))
    kept = [a.detach().clone() for a in fresh.alphas]
    b = torch.tensor([0.0, 0.5]).softmax(0)
    margin = -2.0 * rest[0] + 2.0 * b[0] - b[1]
    found_loss = fresh._loss_at(0, 0, _without(fresh.alphas[0][0], 1), 16)
    assert found_loss == pytest.approx(float(functional.softplus(-margin)), abs=1e-5)
    assert all(torch.equal(x, y) for x, y in zip(fresh.alphas, kept, strict=True))


class Weighed(nn.Module):
    """A cell of three inputs whose channels are logits: how sure of class 0 they are, ``sure``."""

    def __init__(self, sure: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("sure", torch.tensor(sure))
        self.idle = nn.Parameter(torch.ones(1, 1))
        wiring = Pairs(len(sure), 2, ("skip", "blank"), none="none", skip="skip")
        self.cell = PairGraph(wiring, {"skip": lambda stride: nn.Identity(), "blank": lambda stride: Blank()}, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(len(x), 2, 1, 1)
        found = self.cell(*(s * logits for s in self.get_buffer("sure")))
        return found[:, :2, 0, 0] + found[:, 2:, 0, 0] + 0 * self.idle.sum()  # type: ignore[no-any-return]


class Blank(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


@pytest.mark.parametrize("sure", [(-1.0, 2.0, 3.0), (2.0, 3.0, -1.0), (3.0, -1.0, 2.0)])
def test_settling_keeps_the_edges_without_which_the_loss_is_largest(sure: tuple[float, ...]) -> None:
    """Of three inputs one is harmful, wherever it stands; all images are of class 0. The second node has the first as well."""
    data = images(80)
    training, validation = halves(replace(data, labels=torch.zeros_like(data.labels)))
    s = DifferentiableSearch(Weighed(sure), training, validation, PLAIN, 4, 0, train.Augment())
    s.done = 4
    found = list(s.settle(tuning=1, limit=16))
    assert s.decisions == len(found) == 3 + 4 + 2 and s.done == 4 + s.decisions
    words = {path.rpartition("/")[2]: word for path, word in labels(choices.space_of(s.net), found[-1]).items()}
    good = [k for k, value in enumerate(sure) if value > 0]
    assert words["3-inputs"] == f"{good[0]},{good[1]}" and words["3-first"] == words["3-second"] == "skip"
    assert sure.index(-1.0) not in map(int, words["4-inputs"].split(","))
    assert found[-1] == s.architecture()
    none = [a.detach().softmax(1)[:, 0].round().sum().item() for a in s.alphas]
    assert none == [1 + 2], "every edge that was not kept is nothing"


class Sized(nn.Module):
    """Options of different sizes, of which one knows the class, if the choice within it does."""

    def __init__(self) -> None:
        super().__init__()
        within = OneOf({"wrong": Scaled(-2.0), "right": Scaled(1.0), "weak": Scaled(0.1)})
        self.size = OneOf({"whole": Scaled(0.0), "quarter": nn.AvgPool2d(3), "half": nn.Sequential(nn.AvgPool2d(2), within)})
        self.register_buffer("sure", torch.tensor([0.0, 0.0, -1.0, 4.0, 0.0, 0.0, 0.5]))
        self.idle = nn.Parameter(torch.ones(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        found = self.size(torch.ones_like(x))
        sure = self.get_buffer("sure")[found.shape[-1]] * found.mean((1, 2, 3))
        return torch.stack([sure, torch.zeros_like(sure)], 1) + 0 * self.idle.sum()


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


@pytest.mark.parametrize("seed", range(4))
def test_settling_looks_at_every_option_of_those_that_cannot_be_added(seed: int) -> None:
    """Whatever is drawn at first, and although what is within an option is of no use as long as another one is drawn."""
    data = images(80)
    training, validation = halves(replace(data, labels=torch.zeros_like(data.labels)))
    s = DifferentiableSearch(Sized(), training, validation, PLAIN, 4, seed, train.Augment())
    assert s.uneven == (True, False) and [g.depth for g in s.groups] == [0, 1]
    with torch.no_grad():
        s.alphas[1][0] = torch.tensor([0.0, 1.0, 0.0])
    s.done = 4
    *_, found = s.settle(tuning=1, limit=16)
    assert list(labels(choices.space_of(s.net), found).values()) == ["half", "right"]


def test_what_layers_draw_in_a_search_follows_from_the_seed() -> None:
    found = []
    for before in (1, 2):
        s = search(PLAIN)
        s.net = nn.Sequential(nn.Dropout(0.5), s.net)
        torch.manual_seed(before)
        found.append(s.run(STEPS))
    assert found[0] == found[1]


def test_what_layers_draw_is_the_same_in_every_loss_of_a_step() -> None:
    """As differences of losses need it: second order, and the choice between options."""
    s = search(PLAIN)
    s.net = nn.Sequential(nn.Dropout(0.5), s.net)
    batch = s.training.normalised(slice(0, 8)), s.training.y[:8]
    losses = [s.loss(batch, [*s.alphas, *s.betas]).item() for _ in range(3)]
    state = torch.get_rng_state()
    s.done += 1
    other = s.loss(batch, [*s.alphas, *s.betas]).item()
    assert len(set(losses)) == 1 and other != losses[0]
    assert torch.equal(torch.get_rng_state(), state), "others draw as if there had been no loss"


def test_options_are_judged_by_images_of_all_classes_in_parts_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    s, seen = search(PLAIN), list[list[Tensor]]()
    order = s.validation.y.argsort()
    s.validation = s.validation.part(order)
    monkeypatch.setattr(s, "loss", lambda batch, parameters: seen[-1].append(batch[1]) or torch.zeros(()))
    monkeypatch.setattr("nasopt.nets.differentiable.at_once", lambda shape: 3)
    for _ in range(2):
        seen.append([])
        s.validation_loss(40)
    assert all(2 <= len(part) <= 3 for part in seen[0])
    first, second = map(torch.cat, seen)
    assert torch.equal(first, second) and 10 < int(first.sum()) < 30 and len(first) == 40


def test_settling_tunes_the_weights_after_every_row() -> None:
    s = search(PLAIN)
    s.run(STEPS)
    archs = []
    before = s.net.get_parameter("out.largest.weight").detach().clone()
    for arch in s.settle(tuning=1, limit=20):
        archs.append(arch)
        now = s.net.get_parameter("out.largest.weight").detach().clone()
        assert not torch.equal(now, before)
        before = now
    assert len(archs) == sum(g.rows for g in s.groups) == 8
    assert s.done == STEPS + 8
    assert archs[-1] == s.architecture()
    genes = layout(choices.space_of(s.net)).genes
    assert set(archs[-1]) <= {g.path for g in genes}


def test_the_weights_of_the_edges_of_one_node_sum_to_one() -> None:
    s = search(replace(PLAIN, edges=True))
    s.run(STEPS)
    (cell,) = (k for k, g in enumerate(s.groups) if g.targets)
    beta, edges = s.betas[cell].detach(), s.mixes([*s.alphas, *s.betas])[cell].edges
    assert edges is not None and s.groups[cell].targets == (1, 2, 2)
    assert beta[1:].abs().min().item() > 1e-3  # they have learned
    torch.testing.assert_close(edges.detach(), torch.tensor([1.0, *beta[1:].softmax(0)]))
    assert all(len(b) == 0 for k, b in enumerate(s.betas) if k != cell)
    assert all(m.edges is None for k, m in enumerate(s.mixes([*s.alphas, *s.betas])) if k != cell)


# --------------------------------------------------------------------------------------------------------- skip connections
@pytest.mark.parametrize("rule", ["algebra", "nasbench201"])
def test_of_a_mixture_the_skip_connections_alone_are_dropped_out(rule: Rule) -> None:
    torch.manual_seed(0)
    graph = Graph(Wiring(2, ("skip", "conv"), skip="skip", rule=rule), {"skip": nn.Identity, "conv": lambda: nn.Conv2d(2, 2, 1)})
    x, weights, seen = torch.randn(2, 2, 4, 4), torch.tensor([[0.25, 0.75]]), list[Tensor]()
    conv = graph.operation(0, 1)
    assert conv is not None

    def dropout(out: Tensor) -> Tensor:
        seen.append(out)
        return -out

    with relaxed.mixed(graph, [relaxed.mix(weights, dropout=dropout)]):
        torch.testing.assert_close(graph(x), -0.25 * x + 0.75 * conv(x))
    assert len(seen) == 1 and torch.equal(seen[0], x)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_skip_connection_that_halves_the_size_is_not_dropped_out(stride: int) -> None:
    graph = PairGraph(Pairs(2, 1, ("skip", "pool"), none="none", skip="skip"),
                      {"skip": nn.MaxPool2d, "pool": nn.AvgPool2d}, nn.ReLU(), ("skip", "pool"), stride)
    x, z = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4)
    with relaxed.mixed(graph, [relaxed.mix(torch.tensor([[0.2, 0.3, 0.5]] * 2), dropout=lambda out: 0 * out)]):
        kept = 0.3 * (nn.MaxPool2d(stride)(x) + nn.MaxPool2d(stride)(z)) if stride == 2 else 0
        torch.testing.assert_close(graph(x, z), kept + 0.5 * (nn.AvgPool2d(stride)(x) + nn.AvgPool2d(stride)(z)))


def test_dropout_keeps_the_mean_and_is_the_same_within_a_step() -> None:
    s = search(replace(PLAIN, dropout=relax.constant(0.3)))

    def dropped() -> Tensor:
        (found,) = {m.dropout for m in s.mixes([*s.alphas, *s.betas])}
        assert found is not None
        return found(torch.full((20000,), 2.0))

    first = dropped()
    assert torch.equal(first, dropped())
    torch.testing.assert_close(first.unique(), torch.tensor([0, 2 / 0.7]))
    assert abs(float((first == 0).double().mean()) - 0.3) <= 4 * (0.3 * 0.7 / 20000) ** 0.5
    s.done += 1
    assert not torch.equal(first, dropped())


def test_of_the_skip_connections_of_a_cell_the_strongest_stay() -> None:
    """Edges of a `Wiring` do not compete: its two strongest skips stay, and the others take their second best option."""
    s, generator = search(replace(PLAIN, skips=2), nb201(2, 4, 1, 1)), torch.Generator().manual_seed(0)
    for _ in range(20):
        alpha = torch.randn(6, 5, generator=generator)
        alpha[:, 1] += 2
        s.alphas[0].data = alpha
        best, shares = alpha.argmax(1), alpha.softmax(1)
        rest = alpha.index_fill(1, torch.tensor(1), -torch.inf).argmax(1)
        skips = sorted((row for row in range(6) if best[row] == 1), key=lambda row: -float(shares[row, 1]))
        expected = [int(rest[row]) if row in skips[2:] else int(best[row]) for row in range(6)]
        assert list(s.architecture().values()) == expected
    assert len(skips) > 2


def test_fewer_skip_connections_of_pairs() -> None:
    """A skip that is taken from a pair leaves its edge to the next operation, or its node to another edge."""
    wiring = Pairs(2, 2, ("skip", "conv"), none="none", skip="skip")
    net = nn.Sequential()
    net.add_module("cell", PairGraph(wiring, {"skip": lambda step: nn.Identity(), "conv": lambda step: nn.Identity()}, nn.ReLU()))
    weights = torch.tensor([[0.9, 0.06, 0.04], [0.1, 0.5, 0.4],                      # 0 -> 2, 1 -> 2
                            [0.1, 0.55, 0.1], [0.1, 0.3, 0.45], [0.1, 0.1, 0.2]])    # 0 -> 3, 1 -> 3, 2 -> 3
    allowed = torch.ones(5, 3, dtype=torch.bool)

    def found(most: int) -> tuple[int, ...]:
        return tuple(relaxed.nearest(net, [weights], relaxed.few_skips(net, [weights], [allowed], most)).values())

    skip, conv = 0, 1
    assert found(9) == found(3) == (0, skip, skip, 0, skip, conv)
    assert found(2) == (0, conv, skip, 0, skip, conv)  # of 0.06, 0.5 and 0.55 the first gives way
    assert found(1) == (0, conv, conv, 0, skip, conv)
    assert found(0) == (0, conv, conv, 2, conv, conv)  # 0 -> 3 has 0.1 left, less than 2 -> 3: now node 3 takes 1 and 2
    allowed[0, 2] = False
    assert found(0) == found(1) == (0, skip, conv, 2, conv, conv)  # 0 -> 2 has nothing else


# ------------------------------------------------------------------------------------------------------------ perturbations
def test_perturbations_stay_within_their_radius_and_the_adversarial_one_raises_the_loss() -> None:
    batch = next(train.batches(parts()[0], 8, train.Augment(), 0, 0))
    rises = {}
    for kind in ("random", "adversarial"):
        s = search(replace(PLAIN, perturbation=kind, radius=relax.constant(0.3)), loud())
        moved = s._perturbed(batch)
        for a, m in zip(s.alphas, moved, strict=True):
            assert 0.05 < (m - a).abs().max().item() <= 0.3 + 1e-6
        with torch.no_grad():
            rises[kind] = (s.loss(batch, [*moved, *s.betas]) - s.loss(batch, [*s.alphas, *s.betas])).item()
    assert rises["adversarial"] > max(0.01, 2 * rises["random"])


def test_an_attack_goes_on_where_an_alpha_has_no_effect() -> None:
    """Of a sampled operation alone the choices inside it are in the graph."""
    inner = OneOf({"conv": nn.Conv2d(1, 1, 1), "tanh": nn.Tanh()})
    net = nn.Sequential(OneOf({"deep": nn.Sequential(inner), "flat": nn.Identity()}), nn.Flatten(), nn.Linear(36, 2))
    s = search(replace(PLAIN, relaxation=relax.gumbel_hard, perturbation="adversarial", radius=half), net)
    live = []
    for _ in range(STEPS):
        live.append(s.mixes([*s.alphas, *s.betas])[0].live[0])
        s.run(1)
    assert {(0,), (1,)} == set(live)


# ------------------------------------------------------------------------------------------------------------- bad input
def test_bad_parts_are_refused() -> None:
    training, validation = parts()
    nothing = torch.arange(0)
    with pytest.raises(InputError, match="validation part is empty"):
        DifferentiableSearch(Net(), training, validation.part(nothing), PLAIN, 2, 0, train.Augment())
    both = images().part(torch.arange(70, 100))
    with pytest.raises(InputError, match="share 10 images"):
        DifferentiableSearch(Net(), training, replace(both, x=training.x), PLAIN, 2, 0, train.Augment())
    with pytest.raises(InputError, match="training part has 1 images"):
        DifferentiableSearch(Net(), training.part(torch.arange(1)), validation, PLAIN, 2, 0, train.Augment())
    DifferentiableSearch(Net(), training, both, PLAIN, 2, 0, train.Augment())  # another data set's images are others


@pytest.mark.parametrize(("part", "message"), [
    ({"lr": 0.0}, "lr is 0.0: give a number above 0"), ({"lr": float("nan")}, "lr is nan"),
    ({"betas": (0.5, 1.0)}, r"betas is \(0.5, 1.0\): give two numbers from 0 to below 1"), ({"betas": (-0.1, 0.5)}, "betas is"),
    ({"betas": (0.5,)}, "betas is"), ({"decay": -1e-3}, "decay is -0.001: give a number of 0 or more"),
    ({"start": -1.0}, "start is -1.0"), ({"still": 1.5}, "still is 1.5: give a share from 0 to 1"), ({"still": -0.1}, "still is"),
    ({"every": 0}, "every is 0: give 1 or more"),
    ({"prune": ((1.5, 2),)}, r"prune is \(\(1.5, 2\),\): give pairs of a progress from 0 to 1"),
    ({"prune": ((0.5, 2), (0.7, 0))}, "prune is"), ({"prune": ((0.5, 2.5),)}, "prune is"),
    ({"prune": ((0.5, 0.0),)}, "1 or more or a share of them"),
    ({"skips": -1}, "skips is -1: give a number of 0 or more, or None"),
    ({"radius": half}, "radius without a perturbation does nothing: add perturbation='random'"),
    ({"perturbation": "randm", "radius": half}, "unknown perturbation 'randm': did you mean 'random'"),
])
def test_a_part_out_of_its_range_is_refused(part: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Method(**part)  # type: ignore[arg-type]


def test_a_part_at_the_end_of_its_range_is_taken() -> None:
    Method(betas=(0.0, 0.0), decay=0.0, start=0.0, still=1.0, prune=((0.0, 1), (1.0, 9), (0.5, 0.1)), skips=0)


def test_a_loss_that_is_not_a_number_says_so() -> None:
    s = search(replace(PLAIN, still=1.0))
    with torch.no_grad():
        s.net.get_parameter("out.largest.bias").fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"training loss became nan.* at step 1 of 6: use a smaller learning rate"):
        s.run(1)
    assert s.done == 0
    s = search(PLAIN)
    with torch.no_grad():
        s.net.get_parameter("out.largest.bias").fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="hypergradient is not finite"):
        s.run(1)


def test_a_gradient_that_is_not_a_number_leaves_the_weights_alone() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (0 * x).sqrt()  # its value is 0, its gradient 0 · ∞

    net = nn.Sequential(nn.Conv2d(1, 1, 1), OneOf({"root": Root(), "same": nn.Identity()}), nn.Flatten(), nn.Linear(36, 2))
    s = search(replace(PLAIN, still=1.0), net)
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(FloatingPointError, match="gradient's norm nan"):
        s.run(1)
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


# ------------------------------------------------------------------------------------------------------- the cell space
METHODS: dict[str, Method] = {
    "darts": PLAIN,
    "second order": replace(PLAIN, hypergradient=FiniteDifference(0.025)),
    "gdas": replace(PLAIN, relaxation=relax.gumbel_hard, temperature=relax.linear(10, 0.1)),
    "snas": replace(PLAIN, relaxation=relax.gumbel, temperature=relax.exponential(5.0, 0.2)),
    "drnas": replace(PLAIN, relaxation=relax.dirichlet, regularisers=((relax.anchor, relax.constant(1e-3)),), prune=((0.5, 2),)),
    "sparsemax": replace(PLAIN, relaxation=relax.sparsemax, start=0.5),
    "fairdarts": replace(PLAIN, relaxation=relax.sigmoid, regularisers=((relax.fairness, relax.constant(10.0)),)),
    "β-darts": replace(PLAIN, regularisers=((relax.beta_decay, relax.linear(0, 50)),)),
    "darts-": replace(PLAIN, bypass=relax.linear(1, 0)),
    "sdarts": replace(PLAIN, perturbation="adversarial", radius=relax.linear(0, 0.3)),
    "edges": replace(PLAIN, edges=True),
    "idarts": replace(PLAIN, hypergradient=Neumann(2, 0.01)),
    "unrolled": replace(PLAIN, hypergradient=Unrolled(1, 0.05)),
    "conjugate": replace(PLAIN, hypergradient=ConjugateGradient(2, damping=1.0)),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_searches_the_cell_space(method: Method) -> None:
    torch.manual_seed(0)
    net = cells((1, 6, 6), 2, stages=2, widths=[(2, 4), (4, 8)], heads=("linear", "hidden"),
                operations=("none", "skip", "dil_3x3", "mbconv_3x3"))
    s = search(method, net, steps=3)
    before = [a.detach().clone() for a in s.alphas]
    assert len(s.run(9)) == 3
    moved = [g.path for g, a, b in zip(s.groups, s.alphas, before, strict=True) if not torch.equal(a, b)]
    assert all(any(p.endswith(end) for p in moved) for end in ("width", "cells", "/cell", "reduce", "head")), moved
    arch, sampled = s.architecture(), s.sample(1)
    for found in (arch, sampled):
        alone = choices.extract(net, found).eval()
        assert alone(torch.rand(2, 1, 6, 6)).shape == (2, 2)
    assert 0 < s.validation_loss(20) < 10
