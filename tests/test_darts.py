"""The space of DARTS: genotypes, parameter counts, mixtures, discrete networks."""

from __future__ import annotations

from collections.abc import Callable
from math import comb, prod

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nasopt import seed, space
from nasopt.cost.count import params
from nasopt.errors import InputError
from nasopt.nets import choices, relax, relaxed
from nasopt.nets.differentiable import DifferentiableSearch, Method
from nasopt.nets.graphs import PairGraph, Pairs, pairs_below
from nasopt.nets.options import Choosing
from nasopt.nets.train import Augment, Images
from nasopt.spaces import darts

V2 = """Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 1),
('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0),
('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2),
('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"""
"""Published as the best cells of second order (Liu et al., DARTS, ICLR 2019, fig. 4 and 5)."""


def small(**changes: int) -> darts.DARTS:
    torch.manual_seed(0)
    return darts.darts(**{"classes": 3, "channels": 4, "layers": 3, **changes})


def archs(count: int) -> list[dict[str, int]]:
    rng = seed.rng(0, 0, "darts")
    return [space.sample(darts.SPACE, rng) for _ in range(count)]


def one_hot(net: nn.Module, arch: dict[str, int]) -> list[Tensor]:
    """Weight 1 for what the genotype has, and for none on all other edges."""
    found, genotype = [], darts.to_genotype(arch)
    for edges in (genotype.normal, genotype.reduce):
        weights = functional.one_hot(torch.zeros(14, dtype=torch.long), 8).float()
        for place, (label, source) in enumerate(edges):
            row = [0, 2, 5, 9][place // 2] + source
            weights[row] = functional.one_hot(torch.tensor(1 + darts.OPERATIONS.index(label)), 8).float()
        found.append(weights)
    return found


def randomise(net: nn.Module) -> None:
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
            if m.weight is not None:
                nn.init.uniform_(m.weight, 0.5, 2)


# ------------------------------------------------------------------------------------------------- space and genotypes
def test_the_space_has_the_published_size_and_is_that_of_the_network() -> None:
    assert space.size(darts.SPACE) == prod(comb(j, 2) * 49 for j in range(2, 6)) ** 2
    assert choices.space_of(small()) == darts.SPACE
    assert choices.space_of(small(partial=2, layers=5)) == darts.SPACE


def test_architectures_and_genotypes_round_trip() -> None:
    rng = seed.rng(1, 0, "darts")
    for arch in archs(50):
        genotype = darts.to_genotype(arch)
        assert darts.from_genotype(genotype) == arch
        assert darts.parse(repr(genotype)) == genotype
        near = space.mutate(darts.SPACE, arch, rng)
        assert darts.to_genotype(near) != genotype


def test_the_published_genotype() -> None:
    genotype = darts.parse(V2)
    arch = darts.from_genotype(genotype)
    assert {k: v for k, v in arch.items() if k.startswith("normal")} == {
        "normal/2-inputs": 0, "normal/2-first": 3, "normal/2-second": 3, "normal/3-inputs": 0, "normal/3-first": 3,
        "normal/3-second": 3, "normal/4-inputs": 0, "normal/4-first": 2, "normal/4-second": 3, "normal/5-inputs": 1,
        "normal/5-first": 2, "normal/5-second": 5}
    back = darts.to_genotype(arch)
    for ours, theirs in ((back.normal, genotype.normal), (back.reduce, genotype.reduce)):
        assert [set(ours[k:k + 2]) for k in range(0, 8, 2)] == [set(theirs[k:k + 2]) for k in range(0, 8, 2)]
    assert darts.parse(V2.replace("[2, 3, 4, 5]", "range(2, 6)")) == genotype


@pytest.mark.parametrize(("old", "new", "message"), [
    ("Genotype(", "Genotipe(", "not a call of Genotype"),
    ("reduce_concat=", "reduce_out=", "its arguments are"),
    ("normal_concat=[2, 3, 4, 5]", "normal_concat=__import__('os').getcwd()", "is not a published genotype"),
    ("normal_concat=[2, 3, 4, 5]", "normal_concat=range(2, 1000000)", "is not a range of nodes"),
    ("normal_concat=[2, 3, 4, 5]", "normal_concat=range(2, 6.0)", "is not a range of nodes"),
    ("normal_concat=[2, 3, 4, 5]", "normal_concat=7", "7 is not a list of nodes"),
    ("('dil_conv_3x3', 2)", "('dil_conv_3x3', '2')", "is not an operation and its source"),
    ("[('sep_conv_3x3', 0)", "[(", "is not a published genotype"),
])
def test_bad_texts_are_named(old: str, new: str, message: str) -> None:
    assert old in V2
    with pytest.raises(InputError, match=message):
        darts.parse(V2.replace(old, new, 1))


@pytest.mark.parametrize(("old", "new", "message"), [
    ("('dil_conv_3x3', 2)", "('none', 2)", "'none'"),
    ("('dil_conv_3x3', 2)", "('dil_conv_3x3', 0)", "node 5 of the genotype's normal cell has the sources 0 and 0"),
    ("('dil_conv_3x3', 2)", "('dil_conv_3x3', 5)", "node 5 of the genotype's normal cell has the sources 0 and 5"),
    ("('dil_conv_3x3', 2)", "('dil_conv_3x3', -1)", "sources -1 and 0"),
    (", ('dil_conv_3x3', 2)", "", "normal cell has 7 operations"),
    ("reduce_concat=[2, 3, 4, 5]", "reduce_concat=[4, 5]", r"reduce cell is made of the nodes \[4, 5\]"),
])
def test_bad_genotypes_are_named(old: str, new: str, message: str) -> None:
    genotype = darts.parse(V2.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        darts.from_genotype(genotype)


def test_a_missing_choice_is_named() -> None:
    arch = archs(1)[0]
    del arch["reduce/4-second"]
    with pytest.raises(InputError, match=r"'reduce/4-second' must be an index 0\.\.6"):
        darts.to_genotype(arch)


# --------------------------------------------------------------------------------------------------------- the network
def test_published_parameter_counts() -> None:
    with torch.device("meta"):
        assert params(darts.darts(affine=False)) == 1_930_618  # the published program's search network
        final = darts.darts(channels=36, layers=20)
    assert params(choices.extract(final, darts.from_genotype(darts.parse(V2)))) == 3_349_342  # its DARTS_V2, printed as 3.3 M


def by_hand(arch: dict[str, int] | None, c: int, affine: int, parts: int = 1) -> int:
    """Parameters of a network of 3 layers, 1 channel in, 2 classes: one normal cell and two reductions. ``affine``: numbers a
    channel of a normalisation."""
    count = 9 * 3 * c + 2 * 3 * c + 16 * c * 2 + 2  # stem, head: width 4c · 4 after two doublings
    widths = [(3 * c, 3 * c, c), (3 * c, 4 * c, 2 * c), (4 * c, 8 * c, 4 * c)]  # inputs and width of each cell
    for (a, b, width), kind in zip(widths, ("normal", "reduce", "reduce"), strict=True):
        count += a * width + b * width + 2 * affine * width
        w = width // parts
        reduced = kind == "reduce"
        if arch is None:
            edges = [(label, i) for j in range(2, 6) for i in range(j) for label in darts.OPERATIONS]
        else:
            edges = list(getattr(darts.to_genotype(arch), kind))
        for label, source in edges:
            k = int(label[-1]) if "conv" in label else 0
            separable = k * k * w + w * w + affine * w
            halving = w * w + affine * w if reduced and source < 2 else 0
            count += {"max": 0, "avg": 0, "ski": halving, "sep": 2 * separable, "dil": separable}[label[:3]]
    return count


@pytest.mark.parametrize("affine", [False, True])
def test_parameter_counts_by_hand(affine: bool) -> None:
    net = darts.darts(2, 8, 3, 1, affine=affine)
    assert params(net) == by_hand(None, 8, 2 * affine)
    assert params(darts.darts(2, 8, 3, 1, partial=4, affine=affine)) == by_hand(None, 8, 2 * affine, 4)
    for arch in archs(3):
        assert params(choices.extract(net, arch)) == by_hand(arch, 8, 2 * affine)


@pytest.mark.parametrize(("side", "partial"), [(8, 1), (9, 1), (8, 2), (9, 2)])
def test_shapes(side: int, partial: int) -> None:
    net = small(partial=partial, in_channels=1).eval()
    x = torch.randn(2, 1, side, side)
    assert net(x).shape == (2, 3)
    before_last = last = net.stem(x)
    sizes = []
    for cell in net.cells:
        before_last, last = last, cell(before_last, last)
        sizes.append(tuple(last.shape[1:]))
    assert sizes == [(16, side, side), (32, (side + 1) // 2, (side + 1) // 2), (64, (side + 3) // 4, (side + 3) // 4)]
    for option in (0, 3):  # nothing at all; nothing but a skip from the first input to the first node
        rows = functional.one_hot(torch.tensor([option, *[0] * 13]), 8).float()
        with relaxed.mixed(net, [relaxed.mix(rows)] * 2):
            assert net(x).shape == (2, 3)


def test_a_factorised_reduction_keeps_every_position() -> None:
    part = darts.FactorizedReduction(1, 2, affine=False).eval()
    nn.init.ones_(part.even.weight)
    nn.init.ones_(part.odd.weight)
    x = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    expected = torch.cat([x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]], 1)  # as published
    torch.testing.assert_close(part(x) * (1 + 1e-5) ** 0.5, expected)
    assert part(torch.randn(1, 1, 5, 5)).shape == (1, 2, 3, 3)


def test_a_path_equals_its_one_hot_mixture_and_its_extraction() -> None:
    net = small().eval()
    randomise(net)
    x, outputs = torch.randn(2, 3, 8, 8), []
    for arch in archs(6):
        choices.activate(net, arch)
        with torch.no_grad():
            alone, path = choices.extract(net, arch), net(x)
            with relaxed.mixed(net, [relaxed.mix(w) for w in one_hot(net, arch)]):
                mixture = net(x)
            scale = path.abs().max().item()
            assert (mixture - path).abs().max().item() <= 1e-6 * scale
            assert (alone(x) - path).abs().max().item() <= 1e-6 * scale
        assert not any(isinstance(m, (Choosing, PairGraph)) for m in alone.modules())
        outputs.append(path)
    assert all((a - outputs[0]).abs().max() > 1e-3 for a in outputs[1:])


def test_the_path_is_the_published_sum() -> None:
    """One cell computed by hand from its operations, which each take the rectified value unless they pool or skip."""
    net, arch = small().eval(), archs(1)[0]
    randomise(net)
    choices.activate(net, arch)
    graph, inputs = net.cells[0].graph, [torch.randn(2, 4, 5, 5) for _ in range(2)]
    nodes, edges = list(inputs), darts.to_genotype(arch).normal
    for k in range(4):
        total = torch.zeros(())
        for label, source in edges[2 * k:2 * k + 2]:
            operation = graph.operation([0, 2, 5, 9][k] + source, graph.wiring.labels.index(label))
            plain = label in ("max_pool_3x3", "avg_pool_3x3", "skip_connect")
            total = total + operation(nodes[source] if plain else torch.relu(nodes[source]))
        nodes.append(total)
    torch.testing.assert_close(graph(*inputs), torch.cat(nodes[2:], 1))


def test_extremes() -> None:
    net = small()
    high, low = choices.largest(net), choices.smallest(net)
    assert {o for o, _ in darts.to_genotype(high).normal} == {"sep_conv_5x5"}
    assert {o for o, _ in darts.to_genotype(low).reduce} == {"max_pool_3x3"}


def test_what_cannot_be_built_or_extracted_is_named() -> None:
    with pytest.raises(InputError, match="at least 3 layers"):
        darts.darts(layers=2)
    with pytest.raises(InputError, match=r"4 channels of which 1 in 4.*multiple of 8"):
        darts.darts(channels=4, partial=4)
    with pytest.raises(InputError, match="extract from the network with partial=1"):
        choices.extract(small(partial=2), archs(1)[0])
    with pytest.raises(InputError, match="at least 2 inputs"):
        Pairs(1, 4, ("a",), none="none", skip="a")
    with pytest.raises(InputError, match="are not the wiring's"):
        PairGraph(Pairs(2, 1, ("a",), none="none", skip="a"), {"b": lambda s: nn.Identity()}, nn.ReLU())


# -------------------------------------------------------------------------------------------------------- the mixtures
def test_the_groups() -> None:
    found = relaxed.groups(small())
    assert [(g.path, g.shape, g.labels[0], g.none, g.labels[g.skip or 0]) for g in found] == [
        (kind, (14, 8), "none", 0, "skip_connect") for kind in ("normal", "reduce")]
    assert found[0].targets == (2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5)


def test_the_nearest_architecture_is_the_published_rule() -> None:
    net, rng = small(), np.random.default_rng(0)
    for arch in archs(10):
        weights = [0.3 * w + 0.1 * torch.rand(w.shape) for w in one_hot(net, arch)]
        for w in weights:
            w[:, 0] += 0.5  # none is strongest everywhere, and never chosen
        assert relaxed.nearest(net, weights) == arch
    for _ in range(10):  # against the rule as it is written: sort the edges by their best operation
        weights = [torch.tensor(rng.random((14, 8))) for _ in range(2)]
        genotype = darts.to_genotype(relaxed.nearest(net, weights))
        for w, edges in zip(weights, (genotype.normal, genotype.reduce), strict=True):
            start, expected = 0, []
            for j in range(2, 6):
                rows = w[start:start + j, 1:].tolist()
                two = sorted(sorted(range(j), key=lambda i: -max(rows[i]))[:2])
                expected += [(darts.OPERATIONS[rows[source].index(max(rows[source]))], source) for source in two]
                start += j
            assert list(edges) == expected
    allowed = [torch.ones(14, 8, dtype=torch.bool) for _ in range(2)]
    allowed[0][:, 1:4] = False
    chosen = darts.to_genotype(relaxed.nearest(net, [torch.rand(14, 8) for _ in range(2)], allowed)).normal
    assert {label for label, _ in chosen} <= set(darts.OPERATIONS[3:])


def images(count: int) -> Images:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    return Images.all(x, torch.arange(count) % 3, torch.zeros(3), torch.ones(3))


def search(net: nn.Module, **parts: object) -> DifferentiableSearch:
    data = images(240)
    index = torch.arange(240)
    return DifferentiableSearch(net, data.part(index[:120]), data.part(index[120:]), Method(**parts), 2, 0, Augment())  # type: ignore[arg-type]


def test_edges_compete_by_the_weight_of_their_best_operation_times_their_own() -> None:
    found = search(small(), edges=True)
    with torch.no_grad():
        for alpha in found.alphas:
            alpha.zero_()
        alpha = found.alphas[0]
        alpha[9:14, 4] = torch.tensor([3.0, 2.0, 1.0, 0.0, 0.0])  # node 5 prefers the sources 0 and 1 ...
        alpha[9, 5:8] = 3.0  # ... but source 0 cannot decide between four: softmax 0.24 against 0.51 and 0.28
        assert found.architecture()["normal/5-inputs"] == pairs_below(5).index((1, 2))
        found.betas[0][9 + 4] = 5.0  # an edge of weight 0.95, the others 0.01
        assert found.architecture()["normal/5-inputs"] == pairs_below(5).index((1, 4))


@pytest.mark.parametrize("partial", [1, 2])
def test_a_search_step_moves_all_alphas(partial: int) -> None:
    found = search(small(partial=partial), edges=True)
    before = [p.detach().clone() for p in (*found.alphas, *found.betas)]
    found.run(2)
    assert all(bool((p.detach() != b).all()) for p, b in zip((*found.alphas, *found.betas), before, strict=True))
    assert space.check(darts.SPACE, found.architecture()) is None


def test_a_sampled_path_computes_one_operation_an_edge() -> None:
    net = small()
    found = search(net, relaxation=relax.gumbel_hard)
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    calls: list[int] = []
    for edge, ops in enumerate(net.cells[0].graph.edges):
        for operation in ops:
            operation.register_forward_hook(lambda *_, edge=edge: calls.append(edge))
    mix = found.mixes([*found.alphas, *found.betas])[0]
    loss = found.loss((x, y), [*found.alphas, *found.betas])
    assert calls == [edge for edge, (option,) in enumerate(mix.live) if option != 0]
    loss.backward()
    grad = found.alphas[0].grad
    assert grad is not None and bool((grad != 0).any(1).logical_or(mix.weights[:, 0] == 1).all())


@pytest.mark.parametrize("partial", [1, 2])
def test_the_gradient_of_alpha_against_central_differences(partial: int) -> None:
    net = small(partial=partial).double()
    x, y = torch.randn(6, 3, 8, 8, dtype=torch.double), torch.arange(6) % 3
    alphas = [torch.randn(14, 8, dtype=torch.double).requires_grad_() for _ in range(2)]
    betas = [torch.randn(14, dtype=torch.double).requires_grad_() for _ in range(2)]

    def loss(parameters: list[Tensor]) -> Tensor:
        mixes = [relaxed.mix(a.softmax(1), 0.3, b.sigmoid()) for a, b in zip(parameters[:2], parameters[2:], strict=True)]
        with relaxed.mixed(net, mixes):
            return functional.cross_entropy(net(x), y)

    at = [*alphas, *betas]
    slopes = torch.autograd.grad(loss(at), at)
    assert all(bool((slope != 0).all()) for slope in slopes)
    step = 1e-6
    with torch.no_grad():
        for _ in range(8):
            v = [torch.randn_like(p) for p in at]
            up, down = (loss([p + s * step * d for p, d in zip(at, v, strict=True)]) for s in (1, -1))
            exact = float(sum((s * d).sum() for s, d in zip(slopes, v, strict=True)))
            assert abs(float(up - down) / (2 * step) - exact) <= 1e-6 * (1 + abs(exact))


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


@pytest.mark.parametrize("stride", [1, 2])
def test_partial_channels_bypass_and_edge_weights_by_hand(stride: int) -> None:
    """x_2 = Σ_i e_i · places(cat[Σ_o w_io o(x_i[:2]) + β skip(x_i[:2]), pooled x_i[2:]])."""
    wiring = Pairs(2, 1, ("skip", "triple"), none="none", skip="skip")

    def at_stride(factor: float) -> Callable[[int], nn.Module]:
        return lambda step: nn.Sequential(nn.MaxPool2d(step, ceil_mode=True), Times(factor))

    graph = PairGraph(wiring, {"skip": at_stride(1.0), "triple": at_stride(3.0)}, nn.ReLU(), ("skip",), stride, 2)
    xs = [torch.randn(1, 4, 4, 4) for _ in range(2)]
    w = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.4, 0.5]])
    e = torch.tensor([0.7, 0.3])
    with relaxed.mixed(graph, [relaxed.mix(w, 0.25, e)]):
        out = graph(*xs)
    expected = torch.zeros(())
    for i, x in enumerate(xs):
        pooled = functional.max_pool2d(x, stride)
        first = (w[i, 1] + 0.25) * pooled[:, :2] + w[i, 2] * 3 * torch.relu(pooled[:, :2])
        whole = torch.cat([first, pooled[:, 2:]], 1)
        expected = expected + e[i] * whole[:, [0, 2, 1, 3]]
    torch.testing.assert_close(out, expected)
