"""The space of fast networks: sizes of images, members designed by hand, paths against extracted networks, export."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nasopt import seed, space
from nasopt.cost.count import flops, params
from nasopt.cost.forward import capture
from nasopt.cost.runtimes import onnx_bytes, session
from nasopt.errors import InputError
from nasopt.nets import choices, relaxed, train
from nasopt.nets.supernet import sandwich
from nasopt.nets.whitening import Whitening
from nasopt.spaces import fast
from test_choices import worst_difference


@pytest.fixture(scope="module")
def net() -> fast.Fast:
    torch.manual_seed(0)
    return fast.fast((3, 32, 32), 10)


def maps(net: nn.Module, x: torch.Tensor) -> list[tuple[int, ...]]:
    """The sizes of the outputs of all stages."""
    sizes: list[tuple[int, ...]] = []
    hooks = [m.register_forward_hook(lambda m, i, out: sizes.append(tuple(out.shape[1:]))) for m in net.modules()
             if isinstance(m, fast.Stage)]
    with torch.no_grad():
        net.eval()(x)
    for hook in hooks:
        hook.remove()
    return sizes


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 8, 8), (3, 16, 20), (2, 64, 72)])
def test_paths_equal_extractions_at_every_size(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    assert worst_difference(fast.fast(shape, 7, widths=(16, 24, 24, 32)), torch.randn(2, *shape), 4) <= 1e-6


@pytest.mark.parametrize(("size", "counts"), [(4, (1,)), (8, (2,)), (16, (2, 3)), (28, (3, 4)), (32, (3, 4)), (224, (3, 4))])
def test_every_member_ends_with_four_pixels_at_least(size: int, counts: tuple[int, ...]) -> None:
    net = fast.fast((1, size, size), 3, widths=(8, 8, 8, 8))
    s, rng = choices.space_of(net), seed.rng(0, 0, "sizes")
    assert fast.stage_counts((1, size, size)) == counts
    for _ in range(40):
        found = maps(choices.extract(net, space.sample(s, rng)), torch.zeros(1, 1, size, size))
        assert len(found) in counts and found[-1][1] >= 2


def test_airbench94_is_a_member(net: fast.Fast) -> None:
    """Whitened patches of 2x2, and maps of 31, 15, 7 and 3 pixels, as published."""
    alone = choices.extract(net, fast.airbench94(net))
    convolutions = 3 * 24 * 4 + 24 + 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    normalisations = 2 * (2 * 64 + 4 * 256)
    assert params(alone) == convolutions + normalisations + 256 * 10 + 10
    x = torch.randn(2, 3, 32, 32)
    assert maps(alone, x) == [(64, 15, 15), (256, 7, 7), (256, 3, 3)]
    weights = {31: 3 * 24 * 4 + 24 + 9 * 24 * 64, 15: 9 * 64 * 64 + 9 * 64 * 256, 7: 2 * 9 * 256 * 256, 3: 9 * 256 * 256}
    by_hand = sum(pixels**2 * count for pixels, count in weights.items())
    assert flops(alone, x) == by_hand + 256 * 10 + 10
    kinds = {type(m) for m in alone.modules()}
    assert nn.GELU in kinds and nn.ReLU not in kinds and fast.Peak in kinds
    linear, scale = alone.head[2], alone.head[3]
    features = alone.head[:2](alone.stages(alone.first(x)))
    torch.testing.assert_close(alone(x), linear(features) / 9)
    assert isinstance(scale, fast.Scale)


def test_airbench96_is_a_member_where_stages_may_be_wide(net: fast.Fast) -> None:
    wide = fast.fast((3, 32, 32), 10, percent=(*fast.PERCENT, *fast.WIDER))
    alone = choices.extract(wide, fast.airbench96(wide))
    convolutions = 3 * 24 * 4 + 24 + 9 * (24 * 128 + 2 * 128**2 + 128 * 512 + 5 * 512**2)
    assert params(alone) == convolutions + 2 * 3 * (128 + 512 + 512) + 512 * 10 + 10
    assert maps(alone, torch.zeros(1, 3, 32, 32)) == [(128, 15, 15), (512, 7, 7), (512, 3, 3)]
    one, other = (space.labels(choices.space_of(n), fast.airbench94(n)) for n in (wide, net))
    assert one == other
    with pytest.raises(InputError, match="stages of 200 % is no member: take the space fast-wide"):
        fast.airbench96(net)


def test_resnet18_is_nearly_a_member(net: fast.Fast) -> None:
    alone = choices.extract(net, fast.resnet18(net))
    assert maps(alone, torch.zeros(1, 3, 32, 32)) == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (256, 4, 4)]
    wide = (64, 128, 256, 256)
    convolutions = 27 * 24 + 9 * sum(a * b for a, b in zip((24, *wide), wide, strict=False)) + 4 * 9 * sum(w * w for w in wide)
    assert params(alone) == convolutions + 2 * (24 + 5 * sum(wide)) + 2570
    assert 0.95 < flops(alone, torch.zeros(1, 3, 32, 32)) / 556e6 < 1.05, "as many as the published network at 32x32"


def test_mobilenetv2_is_nearly_a_member(net: fast.Fast) -> None:
    alone = choices.extract(net, fast.mobilenetv2(net))
    assert maps(alone, torch.zeros(1, 3, 32, 32)) == [(16, 32, 32), (32, 16, 16), (64, 8, 8), (128, 4, 4)]
    wide, depth = (16, 32, 64, 128), (1, 3, 3, 2)
    enter = 27 * 24 + 2 * 24 + 24 * 16 + 9 * (16 * 32 + 32 * 64 + 64 * 128) + 2 * sum(wide)
    blocks = sum(d * (2 * 4 * w * w + 9 * 4 * w + 2 * 9 * w) for w, d in zip(wide, depth, strict=True))
    assert params(alone) == enter + blocks + 1290


def test_a_network_of_too_many_stages_is_refused() -> None:
    with pytest.raises(InputError, match="4 stages is no member: images of this size allow for 2 or 3; use larger"):
        fast.resnet18(fast.fast((3, 16, 16), 10, widths=(8, 8, 8)))


@pytest.mark.parametrize(("shape", "classes", "widths"), [((3, 3, 9), 10, (8, 8)), ((3, 8, 8), 0, (8, 8)),
                                                          ((3, 8, 8), 10, (8, 12)), ((3, 8, 8), 10, (8,))])
def test_what_does_not_fit_is_refused(shape: tuple[int, int, int], classes: int, widths: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="give"):
        fast.fast(shape, classes, widths=widths)


def test_a_member_is_exported() -> None:
    """Patches of an odd number of pixels, and both ways to reduce it."""
    torch.manual_seed(0)
    net = fast.fast((3, 32, 32), 4, widths=(16, 16, 16, 16)).eval()
    parts = [fast.Part(100, "max", "residual", 1), fast.Part(100, "conv", "mobile", 1, depthwise=5),
             fast.Part(50, "max", "plain", 1)]
    arch = fast.member(net, "patches", parts, "gelu", "max", "x0.33")
    alone, x = choices.extract(net, arch), torch.randn(3, 3, 32, 32)
    running = session(onnx_bytes(alone, x), 1)
    found = running.run(None, {running.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, alone(x), atol=1e-5)
    assert capture(alone, x).graph


def test_all_weights_of_a_member_learn() -> None:
    """No dead path: after one step every parameter but a whitening layer's kernels has a gradient that is not 0 throughout."""
    torch.manual_seed(0)
    net = fast.fast((3, 16, 16), 4, widths=(16, 16, 16))
    s, rng = choices.space_of(net), seed.rng(0, 0, "members")
    for _ in range(12):
        alone = choices.extract(net, space.sample(s, rng)).train()
        nn.functional.cross_entropy(alone(torch.randn(8, 3, 16, 16)), torch.arange(8) % 4).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in alone.parameters() if p.requires_grad)
        kept = [m for m in alone.modules() if isinstance(m, Whitening)]
        assert sum(not p.requires_grad for p in alone.parameters()) == len(kept) <= 1
        assert all(any(isinstance(n, nn.BatchNorm2d) for n in m.modules()) for m in alone.modules() if isinstance(m, fast.Stage))


DRAWN = {"first/enter=plain/enter": 0, "first/enter=patches/enter": 0, "stages": 1}
"""What is drawn beside the start: pooling, and three stages."""


def test_what_is_mixed_has_one_size_whatever_is_drawn() -> None:
    """First layers leave 15, 16 or 8 pixels; pooled and strided they are the same size, so that only the start and the number of
    stages have to be drawn."""
    torch.manual_seed(0)
    net = fast.fast((1, 16, 16), 3, widths=(16, 16, 16)).train()
    x = torch.randn(4, 1, 16, 16)
    drawn = relaxed.uneven(net, x)
    paths = [group.path for group in relaxed.groups(net)]
    assert {p for p, uneven in zip(paths, drawn, strict=True) if uneven} == {"first/enter", "first/enter=plain/enter",
                                                                             "first/enter=patches/enter", "stages"}
    for option in range(3):
        rows = [torch.full((1, len(g.labels)), 1 / len(g.labels)) for g in relaxed.groups(net)]
        for k, (path, uneven) in enumerate(zip(paths, drawn, strict=True)):
            if uneven:
                rows[k] = nn.functional.one_hot(torch.tensor([DRAWN.get(path, option)]), rows[k].shape[1]).float()
        rows = [row.requires_grad_() for row in rows]
        with relaxed.mixed(net, [relaxed.mix(row) for row in rows]):
            out = net(x)
        nn.functional.cross_entropy(out, torch.tensor([0, 1, 2, 0])).backward()
        assert all(row.grad is not None for path, row in zip(paths, rows, strict=True) if "/enter=" not in path)


@pytest.mark.parametrize("size", [16, 64])
def test_patches_are_learned_by_the_training_of_what_was_extracted(size: int) -> None:
    """Of images of 64 pixels patches of 4 are reduced to as many directions as those of 2 have."""
    torch.manual_seed(0)
    net = fast.fast((3, size, size), 2, widths=(8, 8, 8, 8))
    x = nn.functional.avg_pool2d(torch.randn(40, 3, size + 2, size + 2), 3, 1)
    data = train.Images.all(x, torch.arange(40) % 2, x.mean((0, 2, 3)), x.std((0, 2, 3)))
    parts = [fast.Part(100, "max", "plain", 1)] * fast.stage_counts((3, size, size))[0]
    alone = choices.extract(net, fast.member(net, "patches", parts, "gelu", "max", "x1"))
    (layer,) = (m for m in alone.modules() if isinstance(m, Whitening))
    train.fit(alone, data, train.Recipe(epochs=0.1, batch=4), train.Augment(), 0)
    with torch.no_grad():
        out = layer(data.normalised(slice(None))) - layer.bias[:, None, None]
    assert out.shape[1] == 24 and out.shape[2] == (15 if size == 16 else 31)
    covariance = out[:, :12].transpose(0, 1).flatten(1).cov()
    torch.testing.assert_close(covariance, torch.eye(12), atol=0.1, rtol=0)
    torch.testing.assert_close(out[:, 12:], -out[:, :12])
    (untrained,) = (m for m in net.modules() if isinstance(m, Whitening))
    assert not torch.equal(untrained.weight, layer.weight)


def test_a_member_learns() -> None:
    torch.manual_seed(0)
    y = torch.arange(256) % 4
    x = torch.randn(256, 1, 8, 8) * 0.3
    for k, label in enumerate(y):
        x[k, :, 2 * int(label):2 * int(label) + 2] += 1
    images = train.Images.all(x, y, torch.zeros(1), torch.ones(1))
    net = fast.fast((1, 8, 8), 4, widths=(16, 16))
    for arch in sandwich(choices.space_of(net), 1, 0, 0):
        alone = choices.extract(net, arch)
        train.fit(alone, images, train.Recipe(epochs=3.0, batch=32), train.Augment(), 0)
        assert train.error(alone, images) < 0.1
