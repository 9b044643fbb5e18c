"""The tests that every cost model passes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nasopt.protocols import CostModel


def _net(width: int) -> nn.Module:
    """A small network whose counts and activations grow with the width."""
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(width, 5)).eval()


def check_cost_model(model: CostModel, monotone: bool = True) -> None:
    """Passes if the cost model keeps the promises of `nasopt.protocols.CostModel`.

    Its metrics are finite, not negative and have the same names each time; the network, its mode and gradients, the
    example, PyTorch's threads, random state and gradient mode are left as they were; any number of rows will do; and,
    if ``monotone``, a network 16 times as wide costs no less by any metric (leave it out for measured time).

    Raises:
        AssertionError: a promise is broken; the message says which.
    """
    net, example = _net(2), torch.rand(3, 3, 8, 8)
    small = _checked(model, net, example)
    for rows in (1, 2):
        assert set(model(net, example[:rows])) == set(small), f"other metrics for a batch of {rows}."
    large = _checked(model, _net(32), example)
    assert set(large) == set(small), f"other metrics for another network: {sorted(large)} and {sorted(small)}."
    if monotone:
        for name in small:
            assert large[name] >= small[name], f"{name}: a wider network costs less, {large[name]} < {small[name]}."


def _checked(model: CostModel, net: nn.Module, example: Tensor) -> dict[str, float]:
    """The metrics of a network in evaluation mode with one part in training mode, and with gradients."""
    net[1].train()  # type: ignore[index]
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, ambient, rows = _state(net), _ambient(), example.clone()
    metrics = dict(model(net, example))
    assert metrics, "no metric."
    for name, value in metrics.items():
        assert isinstance(value, (int, float)) and math.isfinite(value) and value >= 0, f"{name} = {value!r}."
    after = _state(net)
    assert before.keys() == after.keys(), f"the network changed: {sorted(before.keys() ^ after.keys())}."
    for name, old in before.items():
        assert torch.equal(old, after[name]), f"the network changed: {name}."
    assert torch.equal(rows, example), "the example changed."
    for name, old in ambient.items():
        assert torch.equal(old, _ambient()[name]), f"{name} changed."
    return metrics


def _state(net: nn.Module) -> dict[str, Tensor]:
    """Everything about a network that must not change."""
    state = {f"weight {k}": v.clone() for k, v in net.state_dict().items()}
    state |= {f"mode of {k or 'the whole'}": torch.tensor(m.training) for k, m in net.named_modules()}
    state |= {f"gradient of {k}": p.grad.clone() for k, p in net.named_parameters() if p.grad is not None}
    state |= {f"requires_grad of {k}": torch.tensor(p.requires_grad) for k, p in net.named_parameters()}
    return state | {f"inference of {k}": torch.tensor(p.is_inference()) for k, p in net.named_parameters()}


def _ambient() -> dict[str, Tensor]:
    """PyTorch's own settings that must not change."""
    return {"the thread count": torch.tensor(torch.get_num_threads()), "the random state": torch.get_rng_state(),
            "the gradient mode": torch.tensor([torch.is_grad_enabled(), torch.is_inference_mode_enabled()]),
            "the attention setting": torch.tensor(torch.backends.mha.get_fastpath_enabled())}
