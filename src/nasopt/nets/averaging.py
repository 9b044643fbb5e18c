"""Weights that are averaged while they are trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nasopt.errors import InputError

EVERY = 5
"""Steps between two averages."""


class Lookahead:
    """Slow weights that follow the trained ones, to which these return every `EVERY` steps (Zhang et al., NeurIPS 2019, arXiv
    1907.08610) with a share that falls in the course of the training (Jordan, arXiv 2404.00498, §3.4): slow += s (fast - slow),
    fast = slow, where s = 1 - decay^EVERY · progress³.

    The running statistics of batch normalisations are averaged as the weights are, so that both belong to the same network.

    Args:
        net: its parameters and buffers are changed in place.
        decay: of the slow weights at the end of the training, a step.

    Raises:
        InputError: the decay is not between 0 and 1.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise InputError(f"the decay of averaged weights must be between 0 and 1, got {decay:g}: give e.g. 0.95.")
        self.decay = decay
        self._fast = [t for t in net.state_dict().values() if t.is_floating_point()]
        self.slow = [t.clone() for t in self._fast]

    @torch.no_grad()
    def step(self, done: int, steps: int) -> None:
        """After ``done`` of ``steps`` steps of the optimisers. At the last one the network becomes the slow one."""
        if done % EVERY == 0 or done == steps:
            share = 1 - self.decay**EVERY * (done / steps) ** 3
            for slow, fast in zip(self.slow, self._fast, strict=True):
                slow.lerp_(fast, share)
                fast.copy_(slow)

    def load(self, slow: list[Tensor]) -> None:
        """Sets the slow weights."""
        for old, new in zip(self.slow, slow, strict=True):
            old.copy_(new)
