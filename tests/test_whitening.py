"""The first layer that is learned from patches, not trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nasopt.errors import InputError
from nasopt.nets import train
from nasopt.nets.whitening import Whitening


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


def test_images_smaller_than_a_patch_are_refused() -> None:
    with pytest.raises(InputError, match="images of 1 x 8 pixels have no patches of 2 x 2: leave out"):
        Whitening(1).learn(torch.zeros(4, 1, 1, 8))
