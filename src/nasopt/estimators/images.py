"""Estimators of image classifiers: through shared weights, or by a short training of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nasopt.nets import choices, supernet, train
from nasopt.protocols import CostModel
from nasopt.trial import Ask, Metrics


@dataclass(frozen=True)
class Costs:
    """What can be known without training: every cost model on the extracted network in evaluation mode.

    ``example`` is one normalised image, (1, C, H, W).
    """

    net: nn.Module
    models: Sequence[CostModel]
    example: Tensor

    def __call__(self, ask: Ask) -> Metrics:
        alone = choices.extract(self.net, ask.arch).eval().requires_grad_(False)  # as cost models want it: none copies it
        return {name: value for model in self.models for name, value in model(alone, self.example).items()}


def as_it_is(net: nn.Module) -> nn.Module:
    """A network that is judged as it was trained."""
    return net


@dataclass(frozen=True)
class OneShot:
    """Validation error of the sub-network with the supernet's weights, batch normalisation recalibrated, on as large a share of
    the images as the ask's fidelity.

    ``delivered`` makes of it what is judged, such as `nasopt.nets.train.Mirrored`. Returns ``error``, a fraction.
    """

    net: nn.Module
    training: train.Images
    validation: train.Images
    calibration: int = 1024
    delivered: Callable[[nn.Module], nn.Module] = as_it_is

    def __call__(self, ask: Ask) -> Metrics:
        alone = supernet.inherit(self.net, ask.arch, self.training, self.calibration)
        n = len(self.validation)
        some = torch.arange(max(1, round(ask.fidelity * n)))
        seen = self.validation.part(some * n // len(some))
        return {"error": train.error(self.delivered(alone).eval(), seen, fast=True)}


@dataclass(frozen=True)
class StandAlone:
    """Validation error after a training of its own, of ``recipe.epochs`` times the ask's fidelity.

    ``source`` is the network with choices with whose weights every candidate starts; ``delivered`` makes of it what is judged,
    such as `nasopt.nets.train.Mirrored`; ``tell`` hears when a GPU's memory is too small for a batch.
    Returns ``error``, a fraction, and ``training_seconds``.
    """

    source: nn.Module
    training: train.Images
    validation: train.Images
    recipe: train.Recipe
    augment: train.Augment
    delivered: Callable[[nn.Module], nn.Module] = as_it_is
    tell: Callable[[str], None] | None = None

    def __call__(self, ask: Ask) -> Metrics:
        alone = choices.extract(self.source, ask.arch)
        recipe = self.recipe.scaled(ask.fidelity)
        fitted = train.fit(alone, self.training, recipe, self.augment, ask.seed, ask.number, tell=self.tell)
        judged = self.delivered(alone).eval()
        return {"error": train.error(judged, self.validation, fast=True), "training_seconds": fitted.seconds}
