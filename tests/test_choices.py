"""Inline choices: the space of a module, its weight-sharing paths and the extracted networks."""

from __future__ import annotations

import copy

import numpy as np
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
    PairGraph,
    Pairs,
    Upstream,
    Width,
    Wiring,
)
from nasopt.nets.elastic import ElasticLayer, Multiple
from nasopt.nets.options import Choosing

CHOICE_KINDS = (Choosing, ElasticLayer, Graph, Multiple)


class Everything(nn.Module):
    """Every kind of choice, nested, shared and in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.width = Width([4, 8])
        inner = Width([3, 6])
        self.stem = nn.Sequential(Conv2d(3, self.width, KernelSize([1, 3, 5])), BatchNorm2d(self.width), nn.ReLU())
        hidden = self.width * 2
        self.expand = nn.ModuleList([Conv2d(self.width, hidden, 1), Conv2d(hidden, hidden, 3, padding=1, groups=hidden)])
        self.shrink = Conv2d(hidden, inner, 1)
        self.blocks = Depth([self._block(inner), self._block(inner)], [0, 1, 2])
        wiring = Wiring(3, ("none", "skip", "conv"), none="none", skip="skip")
        self.cells = nn.Sequential(*[self._graph(wiring, inner) for _ in range(2)])
        self.mix = DifferentiableOp({"tanh": nn.Tanh(), "relu": nn.ReLU()})
        last = Width([5, 7])
        self.tail = OneOf({"same": nn.Identity(), "deep": Depth([Conv2d(inner, inner, 1), self._tail(inner, last)], [1, 2])})
        self.twice = OneOf([nn.Tanh(), nn.Identity()])
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), LayerNorm(inner), Linear(inner, 4))

    @staticmethod
    def _block(size: Width) -> nn.Module:
        return nn.Sequential(Conv2d(size, size, 3, padding=1), OneOf({"relu": nn.ReLU(), "tanh": nn.Tanh()}))

    @staticmethod
    def _tail(size: Width, middle: Width) -> nn.Module:
        return nn.Sequential(Conv2d(size, middle, 1), Conv2d(Upstream([middle]), size, 1))

    @staticmethod
    def _graph(wiring: Wiring, size: Width) -> Graph:
        return Graph(
            wiring,
            {"none": nn.Identity, "skip": nn.Identity, "conv": lambda: Conv2d(size, size, 3, padding=1)},
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.expand:
            x = layer(x)
        x = self.twice(self.cells(self.blocks(self.shrink(x))))
        return self.head(self.twice(self.tail(self.mix(x))))  # type: ignore[no-any-return]


def randomise(net: nn.Module) -> None:
    """Random statistics and affine parameters, so that a wrong slice of them shows."""
    generator = torch.Generator().manual_seed(0)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.normal_(0, 0.1, generator=generator)
            m.running_var.uniform_(0.5, 2, generator=generator)


def worst_difference(net: nn.Module, x: Tensor, archs: int) -> float:
    """Largest |supernet path - extracted network| over random architectures."""
    net.eval()
    randomise(net)
    rng, s, worst = seed.rng(0, 0, "extraction"), choices.space_of(net), 0.0
    for _ in range(archs):
        arch = space.sample(s, rng)
        choices.activate(net, arch)
        alone = choices.extract(net, arch)
        with torch.no_grad():
            worst = max(worst, float((net(x) - alone(x)).abs().max()))
        assert not any(isinstance(m, CHOICE_KINDS) for m in alone.modules())
    return worst


def test_a_path_of_the_supernet_equals_the_extracted_network() -> None:
    torch.manual_seed(0)
    assert worst_difference(Everything(), torch.randn(2, 3, 6, 6), 60) <= 1e-6


def test_space_of_everything() -> None:
    net = Everything()
    paths = {g.path: g.labels for g in space.layout(choices.space_of(net)).genes}
    assert paths["width"] == ("4", "8")
    assert paths["stem/0/kernel"] == ("1", "3", "5")
    assert paths["blocks[1]/1"] == ("relu", "tanh")
    assert paths["cells/0/1-2"] == ("none", "skip", "conv")
    assert paths["tail=deep/choice" if "tail=deep/choice" in paths else "tail=deep/depth"] == ("1", "2")
    assert "tail=deep/depth=2/1/0/out_channels" in paths
    # 2 widths, 3 kernels, 2 inner widths, blocks 1+2+4, 3^3 edges, 2 mixed, tail 1+(1+2), twice 2
    assert space.size(choices.space_of(net)) == 2 * 3 * 2 * 7 * 27 * 2 * 4 * 2


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        w = Width([2, 3])
        self.first = nn.Conv2d(1, 2, 1)
        self.pick = OneOf({"a": nn.Conv2d(2, 2, 1), "b": nn.Sequential(Conv2d(2, w, 1), nn.Tanh(), Conv2d(w, 2, 1))})
        self.more = Depth([nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)], [0, 2])

    def forward(self, x: Tensor) -> Tensor:
        return self.more(self.pick(self.first(x)))  # type: ignore[no-any-return]


def test_size_counts_the_distinct_extractions() -> None:
    torch.manual_seed(0)
    net, x = Small().eval(), torch.randn(1, 1, 4, 4)
    s = choices.space_of(net)
    outputs = {tuple(choices.extract(net, a)(x).flatten().tolist()) for a in space.everything(s)}
    assert space.size(s) == 6 == len(outputs)


def test_extraction_leaves_the_supernet_unchanged() -> None:
    net = Everything().eval()
    lo, hi, x = choices.smallest(net), choices.largest(net), torch.randn(1, 3, 6, 6)
    choices.activate(net, hi)
    before, state = net(x), copy.deepcopy(net.state_dict())
    alone = choices.extract(net, lo)
    for p in alone.parameters():
        p.data.fill_(7.0)
    assert torch.equal(net(x), before)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert not any("plan" in k for k in state)


def test_only_the_active_option_gets_a_gradient_and_slices_share_memory() -> None:
    net = Small()
    choices.activate(net, {"pick": 1, "pick=b/0/out_channels": 0, "more": 0})
    net(torch.randn(1, 1, 4, 4)).sum().backward()
    unused, wide = net.pick.options[0], net.pick.options[1][0]
    assert all(p.grad is None for p in unused.parameters()) and all(p.grad is None for p in net.more.parameters())
    assert wide.largest.weight.grad is not None
    assert torch.count_nonzero(wide.largest.weight.grad[2:]) == 0 < torch.count_nonzero(wide.largest.weight.grad[:2])
    assert wide.sliced()[0].data_ptr() == wide.largest.weight.data_ptr()


def test_a_copy_of_a_supernet_is_independent() -> None:
    net = Small().eval()
    choices.activate(net, choices.largest(net))
    x = torch.randn(1, 1, 4, 4)
    before, twin = net(x), copy.deepcopy(net)
    choices.activate(twin, choices.smallest(twin))
    assert torch.equal(net(x), before) and not torch.equal(twin(x), before)


def test_the_mixture_is_the_softmax_weighted_sum() -> None:
    torch.manual_seed(0)
    op = DifferentiableOp([nn.Linear(3, 3), nn.Tanh(), nn.Identity()]).double()
    x = torch.randn(4, 3, dtype=torch.double)
    op.alpha.data = torch.tensor([0.3, -1.0, 0.5], dtype=torch.double)
    p = np.exp([0.3, -1.0, 0.5]) / np.exp([0.3, -1.0, 0.5]).sum()
    linear = op.options[0]
    by_hand = p[0] * (x @ linear.weight.T + linear.bias) + p[1] * torch.tanh(x) + p[2] * x
    torch.testing.assert_close(op(x), by_hand, rtol=1e-13, atol=1e-13)
    assert choices.architecture_parameters(op)[0] is op.alpha

    def loss(alpha: Tensor) -> Tensor:
        op.alpha.data = alpha
        return op(x).pow(2).sum()  # type: ignore[no-any-return]

    at = op.alpha.data.clone()
    loss(at).backward()
    steps = 1e-6 * torch.eye(3, dtype=torch.double)
    slopes = torch.stack([(loss(at + h) - loss(at - h)) / 2e-6 for h in steps])
    assert op.alpha.grad is not None
    torch.testing.assert_close(op.alpha.grad, slopes, rtol=1e-7, atol=1e-7)
    choices.activate(op, {"differentiableop": 1})
    assert torch.equal(op(x), torch.tanh(x))
    choices.relax(op)
    assert not torch.equal(op(x), torch.tanh(x))


def test_a_differentiable_graph_is_the_mixture_of_its_edges() -> None:
    wiring = Wiring(2, ("none", "skip", "tanh"), none="none", skip="skip", differentiable=True)
    graph = Graph(wiring, {"none": nn.Identity, "skip": nn.Identity, "tanh": nn.Tanh}, nn.ReLU())
    x = torch.randn(2, 3, 4, 4)
    assert wiring.alpha is not None
    wiring.alpha.data = torch.tensor([[0.1, 0.2, 0.7]])
    p = torch.softmax(wiring.alpha, 1)[0]
    torch.testing.assert_close(graph(x), p[1] * x + p[2] * torch.tanh(torch.relu(x)))


def test_a_choice_of_the_activation_is_one_of_the_space() -> None:
    wiring = Wiring(2, ("none", "skip", "same"), none="none", skip="skip")
    graph = Graph(wiring, {"none": nn.Identity, "skip": nn.Identity, "same": nn.Identity},
                  OneOf({"relu": nn.ReLU(), "tanh": nn.Tanh()}))
    found = nn.Sequential(graph)
    (path,) = (gene.path for gene in space.layout(choices.space_of(found)).genes if "tanh" in gene.labels)
    x = torch.randn(2, 3, 4, 4)
    rest = {gene.path: 2 for gene in space.layout(choices.space_of(found)).genes if gene.path != path}
    for option, function in enumerate((torch.relu, torch.tanh)):
        assert torch.equal(choices.extract(found, {**rest, path: option})(x), function(x))


def test_layers_that_work_in_place_leave_a_node_s_value_alone() -> None:
    """A skip passes on what is negative, and two operations on one node can both be trained."""
    wiring = Wiring(3, ("none", "skip", "op"), none="none", skip="skip")
    graph = Graph(wiring, {"none": nn.Identity, "skip": nn.Identity,
                           "op": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(1, 1, 1))}, nn.ReLU(inplace=True))
    arch = {"cell/0-1": 1, "cell/0-2": 2, "cell/1-2": 1}
    x = torch.randn(2, 1, 4, 4)
    for net in (graph, choices.extract(graph, arch)):
        if net is graph:
            choices.activate(graph, arch)
        before = x.clone()
        out = net(x)
        assert torch.equal(x, before)
        torch.testing.assert_close(out, x + graph.edges[1][0](torch.relu(x)))
    choices.activate(graph, {"cell/0-1": 2, "cell/0-2": 2, "cell/1-2": 1})
    graph(x.requires_grad_() * 1.0).sum().backward()


def test_an_operation_of_another_shape_is_named() -> None:
    op = DifferentiableOp({"keep": nn.Identity(), "halve": nn.AvgPool2d(2)})
    with pytest.raises(InputError, match=r"'halve'.*\(1, 2, 2, 2\).*'keep'.*\(1, 2, 4, 4\)"):
        op(torch.randn(1, 2, 4, 4))


def test_dead_edges_are_not_computed() -> None:
    calls: list[str] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append("x")
            return x

    graph = Graph(Wiring(4, ("none", "op"), none="none"), {"none": nn.Identity, "op": Spy})
    x = torch.ones(1, 1, 2, 2)
    choices.activate(graph, {"cell/0-1": 1, "cell/0-2": 0, "cell/1-2": 0, "cell/0-3": 1, "cell/1-3": 0, "cell/2-3": 1})
    assert torch.equal(graph(x), x) and len(calls) == 1  # 0-1 leads nowhere, 2-3 carries nothing
    nothing = dict.fromkeys(space.layout(choices.space_of(graph)).column, 0)
    assert torch.equal(choices.extract(graph, nothing)(x), torch.zeros_like(x))


@pytest.mark.parametrize("label", ["double", "train", "forward", "a.b"])
def test_an_operation_may_be_named_like_anything(label: str) -> None:
    """A module's own attributes, too, and what torch does not allow as a module's name."""
    torch.manual_seed(0)
    x, width = torch.randn(2, 2, 4, 4), Width([1, 2])
    graph = Graph(Wiring(2, (label, "skip"), skip="skip"), {label: lambda: Conv2d(2, 2, 1), "skip": nn.Identity})
    inner = Graph(Wiring(2, (label, "skip"), skip="skip"),
                  {label: lambda: nn.Sequential(Conv2d(2, width, 1), Conv2d(width, 2, 1)), "skip": nn.Identity})
    pairs = PairGraph(Pairs(2, 1, (label, "skip"), none="none", skip="skip"),
                      {label: lambda step: Conv2d(2, 2, 3, step, 1), "skip": lambda step: nn.Identity()}, nn.ReLU())
    for net, inputs, arch in ((graph, (x,), {"cell/0-1": 0}), (inner, (x,), {"cell/0-1": 0, f"0-1.{label}/0/out_channels": 1}),
                              (pairs, (x, 2 * x), {"cell/2-inputs": 0, "cell/2-first": 0, "cell/2-second": 1})):
        choices.activate(net, arch)
        out = net(*inputs)
        assert torch.equal(choices.extract(net, arch)(*inputs), out)
        doubled = {name: 2 * p for name, p in net.named_parameters()}
        assert doubled and not torch.equal(torch.func.functional_call(net, doubled, inputs), out)


def test_shared_blocks_make_one_choice() -> None:
    blocks = [nn.Sequential(nn.Linear(2, 2), OneOf({"relu": nn.ReLU(), "tanh": nn.Tanh()})) for _ in range(3)]
    net = nn.Sequential(Depth(blocks, [1, 3], shared=True))
    assert [g.path for g in space.layout(choices.space_of(net)).genes] == ["0", "0[*]/1"]
    alone = choices.extract(net, {"0": 1, "0[*]/1": 1})
    assert [type(m).__name__ for m in alone.modules()].count("Tanh") == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: choices.space_of(nn.Linear(2, 2)), "has no choices: put a OneOf"),
        (lambda: choices.activate(Small(), {"pick": 0}), "'more' is missing"),
        (lambda: choices.activate(Small(), {"pick": 0, "more": 0, "other": 1}), "'other' does not exist"),
        (lambda: choices.activate(Small(), {"pick": 2, "more": 0}), "'pick' is 2"),
        (lambda: OneOf([]), "has no options"),
        (lambda: Width([4, 4]), "distinct"),
        (lambda: KernelSize([3, 4]), "even"),
        (lambda: Depth([nn.Identity()], [0, 2]), "number of blocks"),
        (lambda: Conv2d(Width([3, 4]), 4, 1, groups=2), "do not divide"),
        (lambda: Graph(Wiring(2, ("a",)), {"b": nn.Identity}), "not the wiring's"),
        (lambda: choices.space_of(Depth([nn.Identity(), OneOf([nn.ReLU()])], [2], shared=True)), "same choices"),
    ],
)
def test_errors_name_the_input(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


def test_a_choice_under_two_options_belongs_to_the_scope_around_both() -> None:
    width = Width([2, 4])
    options = {"one": Conv2d(3, width, 1), "two": Conv2d(3, width, 3, padding=1), "none": nn.Conv2d(3, 4, 1)}
    net = nn.ModuleDict({"pick": OneOf(options)})
    assert {g.path: g.parent for g in space.layout(choices.space_of(net)).genes} == {
        "pick": -1,
        "pick.one.out_channels": -1,
    }
    arch = {"pick": 1, "pick.one.out_channels": 0}
    pick = choices.extract(net, arch)["pick"]
    assert isinstance(pick, nn.Conv2d) and (pick.out_channels, pick.kernel_size) == (2, (3, 3))


class Block(nn.Identity):
    pass


class Block_3(nn.Identity):  # noqa: N801 - a name that a label may need
    pass


def test_options_without_labels_get_distinct_ones_whatever_their_types_are_called() -> None:
    assert OneOf([Block_3(), Block(), Block(), Block()]).labels == ("Block_3", "Block", "Block_2", "Block_4")
    assert OneOf([Block(), Block(), Block(), Block_3()]).labels == ("Block", "Block_2", "Block_3", "Block_3_2")


def test_an_option_that_works_in_place_does_not_change_what_the_others_see() -> None:
    x, half = torch.tensor([[-1.0, 2.0]]), torch.tensor([[0.5, 0.5]])
    for net in (OneOf({"relu": nn.Sequential(nn.ReLU(inplace=True)), "skip": nn.Identity()}),
                Depth([nn.Identity(), nn.Sequential(nn.ReLU(inplace=True))], [1, 2])):
        with relaxed.mixed(net, [relaxed.mix(half)]):
            assert net(x.clone()).tolist() == [[-0.5, 2.0]]
