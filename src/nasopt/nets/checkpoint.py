"""A training between two of its steps, as bytes and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nasopt.errors import InputError

Curve: TypeAlias = tuple[Mapping[str, float], ...]
"""A learning curve: metrics after some of the epochs."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the next steps of a training depend on; where its random numbers stand follows from the step.

    Attributes:
        step, steps: how many are done, and how many there are.
        seconds: what they took.
        losses: of the last ones.
        tensors: of the network, the optimisers, the averaged weights, and torch's own generator, by name.
        curve: the learning curve so far.
    """

    step: int
    steps: int
    seconds: float
    losses: tuple[float, ...]
    tensors: Mapping[str, Tensor]
    curve: Curve = ()

    def to_bytes(self) -> bytes:
        """In the safetensors format."""
        numbers = torch.tensor([self.step, self.steps, self.seconds, *self.losses], dtype=torch.float64)
        curve = torch.frombuffer(bytearray(json.dumps(self.curve).encode()), dtype=torch.uint8)
        return save({**self.tensors, "course": numbers, "curve": curve})

    @classmethod
    def from_bytes(cls, blob: bytes) -> Checkpoint:
        """The inverse of `to_bytes`.

        Raises:
            InputError: these are no such bytes.
        """
        try:
            tensors = load(blob)
            step, steps, seconds, *losses = tensors.pop("course").tolist()
            curve = json.loads(bytes(tensors.pop("curve").tolist()))
        except (SafetensorError, KeyError, ValueError) as problem:
            raise InputError(f"the checkpoint of a training cannot be read ({problem}): start the training anew.") from problem
        return cls(int(step), int(steps), seconds, tuple(losses), tensors, tuple(curve))


def optimiser_tensors(opts: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The state of optimisers as named tensors (not copied)."""
    return {f"opt {number} {place} {key}": torch.as_tensor(value)
            for number, opt in enumerate(opts) for place, kept in opt.state_dict()["state"].items()
            for key, value in kept.items() if value is not None}


def load_optimisers(opts: Sequence[torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Sets what `optimiser_tensors` gave; other names are passed over.

    Raises:
        ValueError: the state of other optimisers.
    """
    if any(name.startswith("opt ") and int(name.split(" ", 2)[1]) >= len(opts) for name in tensors):
        raise ValueError(f"it has the state of more than {len(opts)} optimisers")
    for number, opt in enumerate(opts):
        kept: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"opt {number} "):
                place, key = name.split(" ", 3)[2:]
                kept.setdefault(int(place), {})[key] = value.clone()
        shapes: list[torch.Size] = [p.shape for group in opt.param_groups for p in group["params"]]
        for k, values in kept.items():
            if k >= len(shapes) or any(v.ndim and v.shape != shapes[k] for v in values.values()):
                raise ValueError(f"it has the state of other parameters for optimiser {number}")
        opt.load_state_dict({**opt.state_dict(), "state": kept})
