"""The first layer that is learned from patches, not trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nasopt.errors import InputError
from nasopt.nets import choices, train
from nasopt.nets.differentiable import DifferentiableSearch, Method
from nasopt.nets.hypergradient import FirstOrder, Loss, Tensors
from nasopt.nets.whitening import Whitening
from nasopt.strategies.watch import watch


def coloured(n: int = 200, seed: int = 0) -> torch.Tensor:
    """Smooth images whose channels depend on one another."""
    g = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.avg_pool2d(torch.randn(n, 3, 14, 14, generator=g), 3, 1)
    return torch.einsum("ij,njhw->nihw", torch.tensor([[2.0, 0.0, 0.0], [1.5, 1.0, 0.0], [0.5, -1.0, 0.3]]), x)


def test_outputs_are_uncorrelated_with_unit_variance_and_come_with_their_negatives() -> None:
    x = coloured()
    layer = Whitening(3, eps=1e-9)
    assert layer(x).shape == (200, 24, 11, 11)
    layer.learn(x)
    with torch.no_grad():
        out = layer(x) - layer.bias[:, None, None]
    half = out[:, :12].transpose(0, 1).flatten(1)
    torch.testing.assert_close(half.cov(), torch.eye(12), atol=1e-3, rtol=0)
    torch.testing.assert_close(out[:, 12:], -out[:, :12])


def test_eps_keeps_directions_without_variance_small() -> None:
    x = coloured()
    x[:, 2] = x[:, 1]
    layer = Whitening(3, eps=1e-2)
    layer.learn(x)
    assert layer.weight.isfinite().all()
    assert layer.weight.flatten(1).norm(dim=1).max() == pytest.approx(10.0, rel=1e-2)
    assert layer.weight[11].flatten().norm() > layer.weight[0].flatten().norm(), "falling eigenvalues"
    few = Whitening(3, directions=3, eps=1e-2)
    few.learn(x)
    assert torch.equal(few.weight, layer.weight[[0, 1, 2, 12, 13, 14]])


def test_a_training_sets_the_kernels_and_moves_only_the_bias() -> None:
    x = coloured(64)
    data = train.Images.all(x, torch.arange(64) % 2, x.mean((0, 2, 3)), x.std((0, 2, 3)))
    net = nn.Sequential(Whitening(3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 2))
    first: Whitening = net[0]  # type: ignore[assignment]
    before = first.bias.detach().clone()
    train.fit(net, data, train.Recipe(epochs=1), train.Augment(), 0)
    expected = Whitening(3)
    expected.learn(data.normalised(slice(0, 64)))
    torch.testing.assert_close(first.weight, expected.weight)
    assert not torch.equal(first.bias, before)


def test_a_gradient_search_takes_the_kernels_for_no_weights() -> None:
    x, given = coloured(80), list[int]()
    data = train.Images.all(x, torch.arange(80) % 2, x.mean((0, 2, 3)), x.std((0, 2, 3)))
    either = choices.OneOf({"gelu": nn.GELU(), "relu": nn.ReLU()})
    net = nn.Sequential(Whitening(3), either, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 2))

    def first_order(outer: Loss, inner: Loss, w: Tensors, a: Tensors) -> list[torch.Tensor]:
        given.append(len(w))
        return FirstOrder()(outer, inner, w, a)

    parts = data.part(torch.arange(40)), data.part(torch.arange(40, 80))
    search = DifferentiableSearch(net, *parts, Method(hypergradient=first_order), 1, 0, train.Augment())
    search.run(1)
    assert given == [3], "two biases and a matrix"
    assert watch(search, 0, 0, True) is not None


def test_images_smaller_than_a_patch_are_refused() -> None:
    with pytest.raises(InputError, match="images of 1 x 8 pixels have no patches of 2 x 2: leave out"):
        Whitening(1).learn(torch.zeros(4, 1, 1, 8))
