"""The estimator of zero-cost proxies: cheap objectives, a cheap first stage, or features of a surrogate model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nasopt import seed as seeds
from nasopt.errors import InputError, unknown
from nasopt.nets import choices, proxies, train
from nasopt.space import Arch
from nasopt.trial import Ask, Metrics


@dataclass(frozen=True)
class ZeroCost:
    """Proxies of the extracted, untrained network on one mini-batch (`nasopt.nets.proxies`): as objectives they are to be
    maximised.

    All architectures of a run see the same images and the same random draws, so that they differ by themselves alone. A proxy
    that is not finite for a network (of one that ignores its input, say) is left out of its metrics.

    Attributes:
        net: the network with choices before any training.
        data: the images of which a mini-batch is drawn; those that training may use.
        names: which proxies, of `nasopt.nets.proxies.PROXIES`.
        batch: images, at least 2; with fewer in the data all of them.

    Raises:
        InputError: an unknown name, none, or fewer than 2 images.
    """

    net: nn.Module
    data: train.Images
    names: tuple[str, ...] = tuple(proxies.PROXIES)
    batch: int = 64

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in proxies.PROXIES:
                raise unknown("zero-cost proxy", name, proxies.PROXIES)
        if not self.names or min(self.batch, len(self.data)) < 2:
            raise InputError(f"{len(self.names)} zero-cost proxies on a batch of {self.batch} of {len(self.data)} images: "
                             "give at least 1 name and 2 images.")

    def __call__(self, ask: Ask, /) -> Metrics:
        return {name: value for name, value in self._all(ask.arch, ask.seed).items() if np.isfinite(value)}

    def features(self, archs: Sequence[Arch], seed: int = 0) -> NDArray[np.float64]:
        """The proxies as a matrix (architectures, names), in the order of the names; NaN where one is not finite."""
        rows = [list(self._all(arch, seed).values()) for arch in archs]
        matrix = np.array(rows, dtype=float).reshape(len(rows), len(self.names))
        return np.where(np.isfinite(matrix), matrix, np.nan)

    def _all(self, arch: Arch, seed: int) -> dict[str, float]:
        drawn = seeds.rng(seed, 0, "zero-cost batch").permutation(len(self.data))[:self.batch]
        images = self.data.part(torch.from_numpy(drawn))
        return proxies.measure(choices.extract(self.net, arch), images.normalised(slice(None)), images.y, self.names, seed)
