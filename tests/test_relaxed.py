"""Modules as continuous functions of weights of their options: one-hot weights against the activated sub-networks, mixtures
against sums of those, gradients against central differences."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nasopt import seed, space
from nasopt.errors import InputError
from nasopt.nets import choices, relaxed
from nasopt.nets.choices import (
    BatchNorm2d,
    Conv2d,
    Depth,
    DifferentiableOp,
    Graph,
    KernelSize,
    LayerNorm,
    Linear,
    OneOf,
    Upstream,
    Width,
    Wiring,
)
from nasopt.nets.elastic import mask_now
from nasopt.nets.graphs import shuffled
from nasopt.nets.ops import Zero
from nasopt.nets.options import MIXED
from nasopt.nets.plan import plan_of
from nasopt.spaces.cells import cells
from nasopt.spaces.nb201 import nb201

F64 = torch.float64


class Everything(nn.Module):
    """Every kind of choice, nested, shared, under both rules of a cell, and layers between that do not map 0 to 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.width = Width([3, 4, 6])
        self.fixed = Width([2])
        hidden = self.width * 2
        self.stem = nn.Sequential(Conv2d(2, self.fixed, 1), Conv2d(self.fixed, self.width, KernelSize([1, 3, 5])),
                                  BatchNorm2d(self.width), nn.Sigmoid())
        self.expand = nn.Sequential(Conv2d(self.width, hidden, 1), nn.Tanh(), Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
                                    BatchNorm2d(hidden), Conv2d(hidden, self.width, 1))
        self.shared = Depth([self._block(self.width) for _ in range(2)], [0, 1, 2], shared=True)
        self.cell, self.published = (
            self._graph(Wiring(3, ("none", "skip", "conv"), none="none", skip="skip", rule=rule), self.width)
            for rule in ("algebra", "nasbench201"))
        self.op = DifferentiableOp({"tanh": nn.Tanh(), "softplus": nn.Softplus()})
        inner = Width([2, 5])
        self.unequal = Depth([Conv2d(self.width, self.width, 1),
                              nn.Sequential(Conv2d(self.width, inner, 1), Conv2d(Upstream([inner]), self.width, 1))], [1, 2])
        self.tail = OneOf({"same": nn.Identity(), "deep": self._block(self.width)})
        out = Upstream([self.width, self.width, self.width], self.unequal)
        self.end = nn.Sequential(BatchNorm2d(out), nn.AdaptiveAvgPool2d(1), nn.Flatten(), LayerNorm(out), Linear(out, 3))

    @staticmethod
    def _block(size: Width) -> nn.Module:
        return nn.Sequential(OneOf({"conv": Conv2d(size, size, 3, padding=1), "point": Conv2d(size, size, 1)}), nn.Tanh())

    @staticmethod
    def _graph(wiring: Wiring, size: Width) -> Graph:
        return Graph(wiring, {"none": Zero, "skip": nn.Identity,
                              "conv": lambda: nn.Sequential(Conv2d(size, size, 1), BatchNorm2d(size))}, nn.Softplus())

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.expand(self.stem(x)))
        x = self.op(self.published(x) + self.cell(x))
        return self.end(self.tail(self.unequal(x)))  # type: ignore[no-any-return]


def tiny_cells(**more: int) -> nn.Module:
    torch.manual_seed(0)
    return cells((1, 8, 8), 3, stages=2, widths=[(2, 4, 6), (4, 8, 12)], operations=("none", "skip", "conv_3x3", "mbconv_3x3"),
                 heads=("linear", "hidden"), **more)


def tiny_stages() -> nn.Module:
    """Where the number of stages is a choice, too, so that architectures end in different shapes."""
    torch.manual_seed(0)
    return cells((3, 16, 16), 3, stages=(1, 2), widths=[(2, 4), (4, 8)], operations=("none", "skip", "conv_3x3"))


def tiny_nb201() -> nn.Module:
    torch.manual_seed(0)
    return nb201(3, channels=2, cells=1, in_channels=1)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "everything": (Everything, (2, 5, 5)), "cells": (tiny_cells, (1, 8, 8)), "stages": (tiny_stages, (3, 16, 16)),
    "nb201": (tiny_nb201, (1, 8, 8))}
each_net = pytest.mark.parametrize(("build", "shape"), NETS.values(), ids=NETS)


def randomised(net: nn.Module) -> nn.Module:
    """In fp64, with random statistics and affine parameters: a channel that ought not to be there shows."""
    generator = torch.Generator().manual_seed(1)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.normal_(0, 0.3, generator=generator)
            m.running_var.uniform_(0.5, 2, generator=generator)
        if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm)):
            with torch.no_grad():
                m.weight.uniform_(0.5, 2, generator=generator)
                m.bias.normal_(0, 0.5, generator=generator)
    return net.double()


def one_hots(net: nn.Module, arch: dict[str, int], off: float = 0.0) -> list[Tensor]:
    """Of every group, 1 for the options of ``arch`` (of what is not in it, for any), ``off`` elsewhere."""
    choices.activate(net, arch)
    found = []
    for group in relaxed.groups(net):
        active = torch.tensor(group.choices[0].chosen).clamp(min=0)[:, None]
        found.append(torch.full(group.shape, off, dtype=F64).scatter(1, active, 1.0))
    return found


def random_weights(net: nn.Module, seed_: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed_)
    return [torch.rand(g.shape, dtype=F64, generator=generator).add(0.2).softmax(1) for g in relaxed.groups(net)]


def mixture_of(net: nn.Module, weights: list[Tensor], x: Tensor) -> Tensor:
    with relaxed.mixed(net, [relaxed.mix(w) for w in weights]):
        return net(x)  # type: ignore[no-any-return]


# -------------------------------------------------------------------------------------------------------------- vertices
@each_net
@pytest.mark.parametrize("training", [True, False])
def test_one_hot_weights_give_the_activated_network(build: Callable[[], nn.Module], shape: tuple[int, int, int],
                                                    training: bool) -> None:
    net, rng = randomised(build()).train(training), seed.rng(0, 0, "one-hot")
    x = torch.randn(3, *shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    state = {k: v.clone() for k, v in net.state_dict().items()}
    worst = size = 0.0
    for _ in range(25):
        arch = space.sample(choices.space_of(net), rng)
        weights = one_hots(net, arch)
        with torch.no_grad():
            expected = net(x)
            net.load_state_dict(state)  # in training both move the running statistics
            worst = max(worst, float((mixture_of(net, weights, x) - expected).abs().max()))
            net.load_state_dict(state)
        size = max(size, float(expected.std()))
    assert size > 0.05
    assert worst <= 1e-12  # measured: 7e-16, and 0 without the layer normalisation


class Sizes(nn.Module):
    """Every kind of size, and only modules that keep 0 between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        width, last = Width([2, 3, 6]), Width([1, 2, 6])
        self.stem = nn.Sequential(Conv2d(1, width, KernelSize([1, 3, 5])), BatchNorm2d(width), nn.Tanh())
        double = nn.Sequential(Conv2d(width, width * 2, 1), BatchNorm2d(width * 2), nn.Tanh(), Conv2d(width * 2, width, 1))
        self.blocks = Depth([double, nn.Sequential(Conv2d(width, last, 1), nn.Tanh())], [0, 1, 2])
        out = Upstream([width, width, last], self.blocks)
        self.pool = nn.Sequential(BatchNorm2d(out), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.end = nn.Sequential(LayerNorm(out), Linear(out, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.pool(self.blocks(self.stem(x))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("training", [True, False])
def test_sizes_are_continuous_where_they_are_an_architecture(training: bool) -> None:
    """With hardly any weight everything is computed, and changes hardly anything."""
    net, rng, tiny = randomised(Sizes()).train(training), seed.rng(0, 0, "nearly one-hot"), 1e-9
    x = torch.randn(3, 1, 5, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    state, worst = {k: v.clone() for k, v in net.state_dict().items()}, 0.0
    for _ in range(25):
        weights = one_hots(net, space.sample(choices.space_of(net), rng), off=tiny)
        with torch.no_grad():
            expected = net(x)
            net.load_state_dict(state)
            worst = max(worst, float((mixture_of(net, weights, x) - expected).abs().max()))
            net.load_state_dict(state)
    assert tiny < worst <= 1e-5  # measured: 1.5e-6


@each_net
def test_the_nearest_architecture_of_one_hot_weights_is_that_architecture(build: Callable[[], nn.Module],
                                                                          shape: tuple[int, int, int]) -> None:
    net, rng, noise = build(), seed.rng(0, 1, "nearest"), torch.Generator().manual_seed(0)
    found = set()
    for _ in range(40):
        arch = space.sample(choices.space_of(net), rng)
        noisy = [w + 0.9 * torch.rand(w.shape, dtype=F64, generator=noise) for w in one_hots(net, arch)]
        assert relaxed.nearest(net, noisy) == arch
        found.add(tuple(sorted(arch.items())))
    assert len(found) > 20


def test_only_what_is_allowed_is_nearest() -> None:
    net = Everything()
    weights = random_weights(net)
    allowed = [torch.ones(w.shape, dtype=torch.bool).scatter(1, w.argmax(1, keepdim=True), False) for w in weights]
    second = [w.scatter(1, w.argmax(1, keepdim=True), 0.0) for w in weights]
    assert relaxed.nearest(net, weights, allowed) == relaxed.nearest(net, second) != relaxed.nearest(net, weights)


def test_the_groups_of_a_module() -> None:
    net = Everything()
    groups = {g.path: g for g in relaxed.groups(net)}
    assert list(groups) == ["width", "stem/1/kernel", "shared", "shared[*]/0", "cell", "published", "op", "unequal",
                            "unequal=2/1/0/out_channels", "tail", "tail=deep/0"]  # not `fixed`: it has one option
    assert groups["cell"].shape == (3, 3)
    assert groups["cell"].targets == (1, 2, 2)
    assert (groups["cell"].none, groups["cell"].skip) == (0, 1)
    assert groups["shared[*]/0"].labels == ("conv", "point")
    assert len(groups["shared[*]/0"].choices) == 2
    assert (groups["width"].rows, groups["width"].targets, groups["width"].none) == (1, (), None)


def test_a_module_that_leaves_nothing_to_weigh_is_refused() -> None:
    with pytest.raises(InputError, match=r"Sequential has a single option.*two options"):
        relaxed.groups(nn.Sequential(Conv2d(1, Width([2]), 1), OneOf([nn.ReLU()])))


# -------------------------------------------------------------------------------------------------- between the vertices
def kernels() -> nn.Module:
    return Conv2d(2, 3, KernelSize([1, 3, 5, 7]))


def depths() -> nn.Module:
    return Depth([nn.Sequential(Conv2d(2, 2, 1), nn.Tanh()) for _ in range(3)], [0, 1, 3])


def operations() -> nn.Module:
    return OneOf({"a": Conv2d(2, 3, 1), "b": Conv2d(2, 3, 3, padding=1), "c": Conv2d(2, 3, 5, padding=2)})


@pytest.mark.parametrize("build", [kernels, depths, operations])
def test_a_mixture_is_the_weighted_sum_of_its_options(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(build()).double(), torch.randn(2, 2, 7, 7, dtype=F64)
    (group,) = relaxed.groups(net)
    weights = random_weights(net)
    outputs = []
    for option in range(group.shape[1]):
        choices.activate(net, {group.path: option})
        outputs.append(net(x))
    expected = sum(float(w) * out for w, out in zip(weights[0][0], outputs, strict=True))
    torch.testing.assert_close(mixture_of(net, weights, x), expected, rtol=0, atol=1e-13)


def test_blocks_that_share_their_choices_are_mixed_with_the_same_weights() -> None:
    torch.manual_seed(0)
    ops = [[nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, padding=1)] for _ in range(2)]
    net = nn.Sequential(Depth([OneOf(pair) for pair in ops], [1, 2], shared=True)).double()
    x, weights = torch.randn(1, 2, 4, 4, dtype=F64), random_weights(net)
    (deep, shallow), (a, b) = (w[0].tolist() for w in weights)
    first = a * ops[0][0](x) + b * ops[0][1](x)
    second = a * ops[1][0](first) + b * ops[1][1](first)
    torch.testing.assert_close(mixture_of(net, weights, x), deep * first + shallow * second, rtol=0, atol=1e-13)


def test_a_width_between_its_options_scales_the_channels_by_the_options_that_hold_them() -> None:
    torch.manual_seed(0)
    width = Width([1, 2, 4])
    net = nn.ModuleDict({"conv": Conv2d(2, width, 1), "twice": Conv2d(2, width * 2, 1), "line": Linear(2, width)}).double()
    x = torch.randn(2, 2, 3, 3, dtype=F64)
    with relaxed.mixed(net, [relaxed.mix(torch.tensor([[0.5, 0.3, 0.2]], dtype=F64))]):
        mixed = net["conv"](x), net["twice"](x), net["line"](x.movedim(1, -1)).movedim(-1, 1)
    plain = net["conv"](x), net["twice"](x), net["line"](x.movedim(1, -1)).movedim(-1, 1)
    once = torch.tensor([1.0, 0.5, 0.2, 0.2], dtype=F64)
    for out, full, mask in zip(mixed, plain, (once, once.repeat_interleave(2), once), strict=True):
        torch.testing.assert_close(out, full * mask[:, None, None], rtol=0, atol=1e-14)


def test_a_size_after_a_mixed_depth_has_the_mixture_of_the_masks() -> None:
    torch.manual_seed(0)
    before, after = Width([2, 4]), Width([1, 4])
    depth = Depth([Conv2d(before, after, 1)], [0, 1])
    out = Upstream([before, after], depth)
    net = nn.ModuleDict({"start": Conv2d(2, before, 1), "depth": depth, "end": Conv2d(out, out, 1, groups=1)}).double()
    by_label = {"2": [0.5, 0.5], "0": [0.25, 0.75], "1": [0.4, 0.6]}
    weights = [torch.tensor([by_label[g.labels[0]]], dtype=F64) for g in relaxed.groups(net)]
    with relaxed.mixed(net, [relaxed.mix(w) for w in weights]):
        mask = mask_now(out)
    assert mask is not None
    first, second = torch.tensor([1, 1, 0.5, 0.5], dtype=F64), torch.tensor([1, 0.6, 0.6, 0.6], dtype=F64)
    torch.testing.assert_close(mask, 0.25 * first + 0.75 * second)
    assert mask_now(out) is None


@each_net
def test_gradients_of_the_weights_against_central_differences(build: Callable[[], nn.Module],
                                                              shape: tuple[int, int, int]) -> None:
    net = randomised(build())
    generator = torch.Generator().manual_seed(0)
    weights, x = random_weights(net), torch.randn(2, *shape, dtype=F64, generator=generator)
    if build is tiny_stages:  # options of other shapes are left out: they cannot be mixed
        weights = [w if g.path not in ("first/reduce", "stages") else torch.tensor([[0.0, 1.0]], dtype=F64)
                   for w, g in zip(weights, relaxed.groups(net), strict=True)]
    probe = torch.randn(2, 3, dtype=F64, generator=generator)
    free = [k for k, w in enumerate(weights) if (w > 0).all()]

    def loss(at: list[Tensor]) -> Tensor:
        return (mixture_of(net, at, x) * probe).sum()

    leaves = [w.clone().requires_grad_() for w in weights]
    slopes = torch.autograd.grad(loss(leaves), leaves, materialize_grads=True)
    directions = [torch.randn(w.shape, dtype=F64, generator=generator) if k in free else torch.zeros_like(w)
                  for k, w in enumerate(weights)]
    h, worst = 1e-6, 0.0
    for chosen in [*([k] for k in free), free]:  # along every group alone, and all together
        along = [d if k in chosen else torch.zeros_like(d) for k, d in enumerate(directions)]
        with torch.no_grad():
            up, down = (float(loss([w + s * h * d for w, d in zip(weights, along, strict=True)])) for s in (1, -1))
        exact = float(sum((g * d).sum() for g, d in zip(slopes, along, strict=True)))
        assert exact != 0
        worst = max(worst, abs((up - down) / (2 * h) - exact) / max(1.0, abs(exact)))
    assert worst <= 1e-6  # measured: 2e-9


# ------------------------------------------------------------------------------------------------------- what is computed
class Counting(nn.Module):
    """The identity, which counts its calls and keeps the last input's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.shape: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.shape = tuple(x.shape)
        return x


def calls_of(net: nn.Module, weights: list[list[list[float]]], x: Tensor) -> list[int]:
    mixture_of(net, [torch.tensor(w, dtype=F64) for w in weights], x)
    return [m.calls for m in net.modules() if isinstance(m, Counting)]


def test_options_without_weight_are_not_computed() -> None:
    x = torch.randn(1, 2, 3, 3, dtype=F64)
    three = [Counting(), Counting(), Counting()]
    assert calls_of(nn.Sequential(OneOf(three)), [[[0.4, 0.0, 0.6]]], x) == [1, 0, 1]
    three = [Counting(), Counting(), Counting()]
    assert calls_of(nn.Sequential(DifferentiableOp(three)), [[[0.0, 1.0, 0.0]]], x) == [0, 1, 0]
    three = [Counting(), Counting(), Counting()]
    assert calls_of(nn.Sequential(Depth(three, [0, 1, 2, 3])), [[[0.5, 0.0, 0.5, 0.0]]], x) == [1, 1, 0]
    wiring = Wiring(3, ("none", "a", "b"), none="none")
    graph = Graph(wiring, {"none": Zero, "a": Counting, "b": Counting})
    assert calls_of(nn.Sequential(graph), [[[0.1, 0.0, 0.9], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]], x) == [0, 1, 0, 0, 1, 1]


def test_of_a_width_and_a_kernel_only_the_places_with_weight_are_computed() -> None:
    width, kernel = Width([2, 4, 8]), KernelSize([1, 3, 5])
    net = nn.Sequential(Conv2d(1, width, kernel), Counting()).double()
    by_label = {"2": [[0.5, 0.5, 0.0]], "1": [[0.0, 1.0, 0.0]]}
    weights = [torch.tensor(by_label[g.labels[0]], dtype=F64) for g in relaxed.groups(net)]
    with relaxed.mixed(net, [relaxed.mix(w) for w in weights]):
        net(torch.randn(1, 1, 6, 6, dtype=F64))
        assert (width.value, kernel.value) == (4, 3)
    assert net[1].shape == (1, 4, 6, 6)


@pytest.mark.parametrize(("net", "first", "second"), [
    (OneOf({"wide": nn.Conv2d(2, 5, 1), "narrow": nn.Conv2d(2, 3, 1)}), (1, 5, 4, 4), (1, 3, 4, 4)),
    (Depth([nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, stride=2)], [1, 2]), (1, 2, 4, 4), (1, 2, 1, 1)),
    (Depth([nn.Conv2d(2, 6, 1)], [0, 1]), (1, 2, 4, 4), (1, 6, 4, 4)),
    (Graph(Wiring(2, ("same", "small")), {"same": nn.Identity, "small": lambda: nn.MaxPool2d(2)}), (1, 2, 4, 4), (1, 2, 2, 2))])
def test_an_operation_of_another_shape_is_named_with_both(net: nn.Module, first: tuple[int, ...],
                                                         second: tuple[int, ...]) -> None:
    module = nn.Sequential(net)
    (group,) = relaxed.groups(module)
    label = rf"{group.labels[1]}\b.*" + re.escape(str(second)) + rf".*{group.labels[0]}\b.*" + re.escape(str(first))
    with pytest.raises(InputError, match=label), relaxed.mixed(module, [relaxed.mix(torch.full(group.shape, 0.5))]):
        module(torch.randn(1, 2, 4, 4))
    with relaxed.mixed(module, [relaxed.mix(torch.tensor([[0.0, 1.0]]))]):
        assert tuple(module(torch.randn(1, 2, 4, 4)).shape) == second


# ---------------------------------------------------------------------------------------------------------- the context
def test_the_context_restores_what_was_there() -> None:
    net = Everything()
    arch = space.sample(choices.space_of(net), seed.rng(0, 2, "context"))
    choices.activate(net, arch)

    def seen() -> list[tuple[list[int], object]]:
        return [(list(c.chosen), c.mix) for c in plan_of(net).choices]

    before, mixes = seen(), [relaxed.mix(w) for w in random_weights(net)]
    with relaxed.mixed(net, mixes):
        inside = seen()
        assert {m for _, m in inside} == {*mixes, None}  # None: the width of one option
        assert all(set(c) == {MIXED} for c, m in inside if m is not None)
        with relaxed.mixed(net, [relaxed.mix(w) for w in random_weights(net, 1)]):
            assert seen() != inside
        assert seen() == inside
    assert seen() == before
    with pytest.raises(ZeroDivisionError), relaxed.mixed(net, mixes):
        raise ZeroDivisionError
    assert seen() == before
    with pytest.raises(ValueError, match="shorter"), relaxed.mixed(net, mixes[:-1]):
        pass
    assert seen() == before


# ------------------------------------------------------------------------------------------------------- extras of a mix
def test_a_bypass_adds_its_input_where_the_shape_is_kept() -> None:
    torch.manual_seed(0)
    keep, change = OneOf([nn.Conv2d(1, 1, 1), nn.Tanh()]), OneOf([nn.Conv2d(1, 3, 1), nn.Conv2d(1, 3, 3, padding=1)])
    x, half = torch.randn(2, 1, 4, 4, dtype=F64), torch.tensor([[0.5, 0.5]], dtype=F64)
    for choice, added in ((keep, 0.7 * x), (change, torch.zeros(1, dtype=F64))):
        net = nn.Sequential(choice).double()
        with relaxed.mixed(net, [relaxed.mix(half, bypass=0.7)]):
            out = net(x)
        torch.testing.assert_close(out, (choice.options[0](x) + choice.options[1](x)) / 2 + added)


@pytest.mark.parametrize("rule", ["algebra", "nasbench201"])
def test_bypass_and_edge_weights_of_a_cell(rule: space.Rule) -> None:
    wiring = Wiring(3, ("none", "twice"), none="none", rule=rule)

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    net, x = nn.Sequential(Graph(wiring, {"none": Zero, "twice": Twice})), torch.randn(1, 2, 3, 3, dtype=F64)
    weights = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]], dtype=F64)  # edges 0-1, 0-2, 1-2
    edges = torch.tensor([1.0, 0.3, 0.6], dtype=F64)
    with relaxed.mixed(net, [relaxed.mix(weights, bypass=0.1, edges=edges)]):
        out = net(x)
    torch.testing.assert_close(out, 0.3 * 0.1 * x + 0.6 * (0.75 * 2 + 0.1) * (0.5 * 2 + 0.1) * x)


def test_the_order_of_shuffled_channels() -> None:
    x = torch.arange(12.0).view(1, 12, 1, 1).expand(2, 12, 3, 2)
    out = shuffled(x, 4)
    assert out.shape == x.shape
    assert out[1, :, 2, 1].tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]


class OneGraph(nn.Module):
    """A module with one cell, ``graph``."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, x: Tensor) -> Tensor:
        return self.graph(x)  # type: ignore[no-any-return]


def test_one_in_k_channels_passes_the_operations() -> None:
    torch.manual_seed(0)
    wiring = Wiring(2, ("none", "skip", "conv", "seen"), none="none", skip="skip")
    graph = Graph(wiring, {"none": Zero, "skip": nn.Identity, "conv": lambda: nn.Conv2d(2, 2, 3, padding=1), "seen": Counting},
                  nn.Softplus(), partial=4)
    net, x = OneGraph(graph).double(), torch.randn(3, 8, 5, 5, dtype=F64)
    weights, edges = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=F64), torch.tensor([0.5], dtype=F64)
    with relaxed.mixed(net, [relaxed.mix(weights, edges=edges)]):
        out = net(x)
    soft, (conv, seen) = nn.functional.softplus(x)[:, :2], (graph.operation(0, k) for k in (2, 3))
    assert isinstance(seen, Counting) and conv is not None
    assert seen.shape == (3, 2, 5, 5)
    part = 0.2 * x[:, :2] + 0.3 * conv(soft) + 0.4 * soft
    expected = 0.5 * torch.cat([part, x[:, 2:]], 1)[:, [0, 2, 4, 6, 1, 3, 5, 7]]  # the edge's weight counts for all channels
    torch.testing.assert_close(out, expected)
    with relaxed.mixed(net, [relaxed.mix(torch.tensor([[1.0, 0, 0, 0]], dtype=F64))]):
        nothing = net(x)
    torch.testing.assert_close(nothing, torch.cat([0 * x[:, :2], x[:, 2:]], 1)[:, [0, 2, 4, 6, 1, 3, 5, 7]])
    choices.activate(net, {"graph/0-1": 2})
    torch.testing.assert_close(net(x), torch.cat([conv(soft), x[:, 2:]], 1)[:, [0, 2, 4, 6, 1, 3, 5, 7]])
    with pytest.raises(InputError, match=r"1 in 4 channels.*partial=1"):
        choices.extract(net, {"graph/0-1": 2})
    with pytest.raises(InputError, match="does not divide the 6 channels"):
        net(x[:, :6])


def test_weights_of_zero_are_found_from_the_values() -> None:
    mix = relaxed.mix(torch.tensor([[0.0, 1.0, 0.0], [0.2, 0.0, 0.8]], requires_grad=True), 0.5)
    assert mix.live == ((1,), (0, 2))
    assert mix.bypass == 0.5


def test_options_that_change_the_shape_are_found_where_they_stand_even_below_other_options() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = choices.OneOf({"whole": nn.Identity(), "half": nn.AvgPool2d(2)})
            self.way = choices.OneOf({"plain": nn.Tanh(), "deep": nn.Sequential(inner, nn.Upsample((8, 8)))})
            self.act = choices.OneOf({"relu": nn.ReLU(), "tanh": nn.Tanh()})

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.way(x))  # type: ignore[no-any-return]

    net = Net().train()
    found = dict(zip((g.path for g in relaxed.groups(net)), relaxed.uneven(net, torch.randn(2, 3, 8, 8)), strict=True))
    assert [path for path, different in found.items() if different] == [p for p in found if p.startswith("way=deep/")]
    assert len(found) == 3 and net.training


def test_options_whose_shape_another_choice_decides_are_found() -> None:
    """An outer choice that is even only as long as the inner one does not halve, and a depth of blocks of different widths."""
    inner = choices.OneOf({"whole": nn.Identity(), "half": nn.AvgPool2d(2)})
    outer = nn.Sequential(choices.OneOf({"plain": nn.Tanh(), "block": nn.Sequential(inner, nn.Tanh())}), nn.AdaptiveAvgPool2d(1))
    assert relaxed.uneven(outer, torch.randn(2, 3, 8, 8)) == (True, True)
    one, two = choices.Width([2, 4]), choices.Width([2, 8])
    deep = nn.Sequential(choices.Depth([choices.Conv2d(3, one, 1), choices.Conv2d(one, two, 1)], [1, 2]))
    found = dict(zip((g.labels for g in relaxed.groups(deep)), relaxed.uneven(deep, torch.randn(2, 3, 8, 8)), strict=True))
    assert found[("1", "2")]
