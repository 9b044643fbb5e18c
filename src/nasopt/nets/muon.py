"""Muon: momentum whose matrix is replaced by the nearest orthogonal one (Jordan et al., 2024, "Muon: an optimizer for hidden
layers in neural networks"), in the form that trains convolutional networks in few epochs (arXiv 2404.00498, appendix)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd quintic a·x + b·x³ + c·x⁵ that drives all singular values towards 1."""


def orthogonal(matrix: Tensor, steps: int = 3) -> Tensor:
    """Nearly the orthogonal factor of the polar decomposition of ``matrix`` (m, n), by Newton-Schulz iteration.

    Every singular value ends near 1 (between about 0.5 and 1.2) if it was not tiny compared with the largest.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16() if matrix.dtype == torch.float32 else matrix
    x = x / (x.norm() + 1e-7)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # a·x + (b·gram + c·gram²)·x
    out: Tensor = x if wide else x.T
    return out.to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum for kernels, each kept at the norm √(output channels).

    Kernels that a normalisation follows do not mind the fixed norm; it turns the learning rate into an angle per step.

    Args:
        params: kernels or matrices, (out, in, ...), flattened to (out, in·...).
        lr: step length; an update has about the norm √min(out, in·...) times this.
        momentum: decay of the running sum of gradients.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group["lr"], group["momentum"])

    def _update(self, p: nn.Parameter, grad: Tensor, lr: float, momentum: float) -> None:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(grad)
        total = state["momentum"].mul_(momentum).add_(grad)
        direction = grad.add(total, alpha=momentum)
        p.mul_(len(p) ** 0.5 / (p.norm() + 1e-7))
        p.add_(orthogonal(direction.flatten(1)).view_as(direction), alpha=-lr)
