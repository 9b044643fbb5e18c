"""Zero-cost proxies: each against its formula on a network small enough to work it out, and that they leave no trace."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nasopt import seed as seeds
from nasopt.cost import count
from nasopt.errors import InputError
from nasopt.estimators.zero_cost import ZeroCost
from nasopt.nets import proxies, train
from nasopt.nets.proxies import PROXIES, grad_norm, jacov, logsynflow, measure, naswot, snip, synflow, zen
from nasopt.spaces import nb201
from nasopt.testing.estimator import check_estimator
from nasopt.trial import Ask

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 1, 0, 1, 0])


def linear(*sizes: int, bias: bool = False) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(*[nn.Linear(a, b, bias=bias) for a, b in pairwise(sizes)])


def matrices(net: nn.Module) -> list[np.ndarray]:
    return [p.detach().double().numpy() for p in net.parameters() if p.ndim == 2]


def image_net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Dropout(0.5), nn.Linear(4, 2))


def image_batch(n: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 2, 5, 5, generator=torch.Generator().manual_seed(4)), torch.arange(n) % 2


# ------------------------------------------------------------------------------------------------------------- formulas
def test_synflow_of_two_linear_layers() -> None:
    """R = 1'|W2||W1|1, and every layer holds all of it: the score is 2R. Normalisations do not count; biases flow, no more."""
    net = linear(3, 4, 2)
    first, second = (np.abs(w) for w in matrices(net))
    assert synflow(net, X, Y) == pytest.approx(2 * (second @ first).sum(), rel=1e-6)
    normed = nn.Sequential(net[0], nn.BatchNorm1d(4), net[1], nn.LayerNorm(2))
    assert synflow(normed, X, Y) == synflow(net, X, Y)
    biased = linear(3, 4, 2, bias=True)
    first, second = (np.abs(w) for w in matrices(biased))
    shift = np.abs(biased[0].bias.detach().numpy())  # type: ignore[union-attr, operator]
    assert synflow(biased, X, Y) == pytest.approx(2 * (second @ first).sum() + (second @ shift).sum(), rel=1e-6)


def test_logsynflow_of_two_linear_layers() -> None:
    """dR/dW1 is the column sum of |W2| below each of its outputs, dR/dW2 the row sum of |W1| above each of its inputs."""
    net = linear(3, 4, 2)
    first, second = (np.abs(w) for w in matrices(net))
    expected = (first * np.log1p(second.sum(axis=0))[:, None]).sum() + (second * np.log1p(first.sum(axis=1))).sum()
    assert logsynflow(net, X, Y) == pytest.approx(expected, rel=1e-6)


def test_snip_and_grad_norm_of_softmax_regression() -> None:
    """dL/dW = (p - e_y)' x / n for one layer; for two by the chain rule."""
    net, x = linear(3, 4, 2), X.double().numpy()
    first, second = matrices(net)
    logits = x @ first.T @ second.T
    residual = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(2)[Y.numpy()]
    slopes = [(residual @ second).T @ x / 6, residual.T @ (x @ first.T) / 6]
    assert grad_norm(net, X, Y) == pytest.approx(sum(np.linalg.norm(g) for g in slopes), rel=1e-5)
    assert snip(net, X, Y) == pytest.approx(np.abs(first * slopes[0]).sum() + np.abs(second * slopes[1]).sum(), rel=1e-5)


def test_naswot_of_a_network_made_by_hand() -> None:
    """Codes 101 and 110: all three units of an image agree with themselves, one with the other's. det [[3, 1], [1, 3]] = 8."""
    x = torch.tensor([[1.0, -1.0, 2.0], [3.0, 1.0, -1.0]])
    assert naswot(nn.Sequential(nn.ReLU()), x, Y) == pytest.approx(math.log(8))
    assert naswot(nn.Sequential(nn.ReLU(inplace=True), nn.LeakyReLU()), x, Y) == pytest.approx(math.log(32))  # twice the kernel
    assert naswot(nn.Sequential(nn.ReLU()), x[[0, 0]], Y) == -math.inf
    assert naswot(nn.Sequential(nn.Tanh()), x, Y) == -math.inf


class HalfSquare(nn.Module):
    """The gradient of its sum is its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.square() / 2


def test_jacov_is_its_formula() -> None:
    values = np.linalg.eigvalsh(np.corrcoef(X.double().numpy())).clip(min=0) + 1e-5
    assert jacov(HalfSquare(), X, Y) == pytest.approx(-(np.log(values) + 1 / values).sum(), rel=1e-3)
    apart = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
    assert jacov(HalfSquare(), apart, Y) == pytest.approx(-2 * (math.log1p(1e-5) + 1 / (1 + 1e-5)))
    assert math.isnan(jacov(linear(3, 1), torch.zeros(2, 3), Y)) is False
    assert math.isnan(jacov(HalfSquare(), torch.ones(2, 3), Y))


def test_zen_is_its_formula() -> None:
    """Worked out by functions on the same draws: the convolution's kernel, the linear layer's, the images, the step."""
    x, y = image_batch()
    generator = torch.Generator().manual_seed(seeds.integer(5, 0, "zen"))
    kernel = torch.randn(4, 2, 3, 3, generator=generator)
    torch.randn(2, 4, generator=generator)
    start, step = torch.randn(x.shape, generator=generator), torch.randn(x.shape, generator=generator)

    def parts(images: Tensor) -> tuple[Tensor, Tensor]:
        before = torch.conv2d(images, kernel, padding=1)
        spread = before.var(dim=(0, 2, 3), correction=0)
        normed = (before - before.mean(dim=(0, 2, 3), keepdim=True)) / (spread[:, None, None] + 1e-5).sqrt()
        return normed.relu(), spread

    features, spread = parts(start)
    change = (features - parts(start + 0.01 * step)[0]).square().sum(dim=(1, 2, 3)).sqrt().mean()
    expected = change.log() + spread.mean().sqrt().log()
    assert zen(image_net(), x, y, 5) == pytest.approx(float(expected), rel=1e-4)


def test_zen_of_a_linear_layer_is_the_size_of_the_step_that_comes_out() -> None:
    generator = torch.Generator().manual_seed(seeds.integer(0, 0, "zen"))
    weight = torch.randn(1, 1, generator=generator)
    torch.randn(50, 1, generator=generator)
    step = torch.randn(50, 1, generator=generator)
    expected = math.log(0.01 * abs(float(weight)) * float(step.abs().mean()))
    assert zen(nn.Linear(1, 1), torch.zeros(50, 1), Y) == pytest.approx(expected, rel=1e-3)


# --------------------------------------------------------------------------------------------------------------- manners
def test_nothing_about_the_network_changes() -> None:
    x, y = image_batch()
    net = image_net().eval()
    net[0].requires_grad_(False)
    net[6].weight.grad = torch.ones_like(net[6].weight)  # type: ignore[arg-type]
    state, flags = copy.deepcopy(net.state_dict()), [(m.training, len(m._forward_pre_hooks)) for m in net.modules()]
    wants, draws, threads = [p.requires_grad for p in net.parameters()], torch.get_rng_state(), torch.get_num_threads()
    with torch.no_grad():
        found = measure(net, x, y)
        assert not torch.is_grad_enabled()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), state.values(), strict=True))
    assert [(m.training, len(m._forward_pre_hooks)) for m in net.modules()] == flags
    assert [p.requires_grad for p in net.parameters()] == wants
    assert net[0].weight.grad is None and torch.equal(net[6].weight.grad, torch.ones_like(net[6].weight))  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), draws) and torch.get_num_threads() == threads
    assert set(found) == set(PROXIES) and all(math.isfinite(v) for v in found.values())
    assert (found["params"], found["flops"]) == (count.params(net), count.flops(net, x))


def test_the_seed_is_the_only_randomness() -> None:
    x, y = image_batch()
    one, two, other = measure(image_net(), x, y, seed=1), measure(image_net(), x, y, seed=1), measure(image_net(), x, y, seed=2)
    assert one == two
    assert {name for name in one if one[name] != other[name]} == {"snip", "grad_norm", "jacov", "zen"}  # dropout, Zen's draws


def test_what_ignores_its_input_has_no_score() -> None:
    x, y = image_batch()
    constant = nn.Sequential(nn.Flatten(), nn.Linear(50, 2))
    nn.init.zeros_(constant[1].weight)  # type: ignore[arg-type]
    assert math.isnan(jacov(constant, x, y))
    assert measure(constant, x, y, ["synflow", "snip"]) == {"synflow": 0.0, "snip": 0.0}


# ------------------------------------------------------------------------------------------------------------- estimator
def images(n: int = 40) -> train.Images:
    x = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    return train.Images.all(x, torch.arange(n) % 10, x.mean((0, 2, 3)), x.std((0, 2, 3)))


def cells() -> nn.Module:
    torch.manual_seed(7)
    return nb201.nb201(channels=4, cells=1)


def arch(*operations: str) -> dict[str, int]:
    return {f"cell/{i}-{j}": nb201.OPERATIONS.index(o) for (i, j), o in zip(nb201.CELL.edges, operations, strict=True)}


CONV = arch(*["nor_conv_3x3"] * 6)
NONE = arch(*["none"] * 6)
MIXED = arch("skip_connect", "nor_conv_1x1", "avg_pool_3x3", "none", "nor_conv_3x3", "skip_connect")


def test_the_estimator_passes_its_kit_and_leaves_out_what_is_undefined() -> None:
    estimate = ZeroCost(cells(), images(), batch=16)
    check_estimator(estimate, [Ask(0, CONV), Ask(1, MIXED, seed=3), Ask(2, NONE)])
    assert set(estimate(Ask(0, CONV))) == set(PROXIES)
    assert "naswot" not in estimate(Ask(0, NONE)) and "params" in estimate(Ask(0, NONE))


def test_features_are_the_proxies_in_order() -> None:
    names = ("naswot", "params", "synflow")
    estimate = ZeroCost(cells(), images(), names, batch=16)
    matrix = estimate.features([CONV, MIXED, NONE], seed=3)
    assert matrix.shape == (3, 3) and math.isnan(matrix[2, 0])
    assert dict(zip(names, matrix[1].tolist(), strict=True)) == estimate(Ask(9, MIXED, seed=3))
    assert estimate.features([]).shape == (0, 3)


def test_the_batch_is_drawn_from_the_data_by_the_seed() -> None:
    def found(n: int, seed: int) -> float:
        return ZeroCost(cells(), images(), ("grad_norm",), batch=n)(Ask(0, CONV, seed=seed))["grad_norm"]

    assert found(16, 0) == found(16, 0) != found(16, 1)
    assert found(40, 0) == pytest.approx(found(40, 1), rel=1e-3)  # all images, in another order
    assert found(400, 0) == found(40, 0)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="did you mean 'synflow'"):
        ZeroCost(cells(), images(), ("sinflow",))
    with pytest.raises(InputError, match="did you mean 'naswot'"):
        proxies.measure(image_net(), *image_batch(), ["nasot"])
    for more in ({"batch": 1}, {"names": ()}):
        with pytest.raises(InputError, match="at least 1 name and 2 images"):
            ZeroCost(cells(), images(), **more)  # type: ignore[arg-type]
