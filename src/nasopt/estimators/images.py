"""Estimators of image classifiers: through shared weights, or by a short training of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class OneShot:
    """Validation error of the sub-network with the supernet's weights, batch normalisation recalibrated.

    Returns ``error``, a fraction.
    """

    net: nn.Module
    training: train.Images
    validation: train.Images
    calibration: int = 1024

    def __call__(self, ask: Ask) -> Metrics:
        alone = supernet.inherit(self.net, ask.arch, self.training, self.calibration)
        return {"error": train.error(alone, self.validation, fast=True)}


@dataclass(frozen=True)
class StandAlone:
    """Validation error after a training of its own, of ``recipe.epochs`` times the ask's fidelity.

    ``source`` is the network with choices with whose weights every candidate starts.
    Returns ``error``, a fraction, and ``training_seconds``.
    """

    source: nn.Module
    training: train.Images
    validation: train.Images
    recipe: train.Recipe
    augment: train.Augment

    def __call__(self, ask: Ask) -> Metrics:
        alone = choices.extract(self.source, ask.arch)
        recipe = self.recipe.scaled(ask.fidelity)
        fitted = train.fit(alone, self.training, recipe, self.augment, ask.seed, ask.number)
        return {"error": train.error(alone, self.validation, fast=True), "training_seconds": fitted.seconds}
