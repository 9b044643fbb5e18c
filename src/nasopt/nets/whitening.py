"""A first layer that is not trained: the whitened patches of the training images (Jordan, arXiv 2404.00498, §3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nasopt.errors import InputError


class Whitening(nn.Conv2d):
    """A convolution (n, channels, h, w) -> (n, 2·directions, ⌊(h - size) / stride⌋ + 1, ⌊(w - size) / stride⌋ + 1) with kernels
    that stay as they are: the first eigenvectors of the covariance of all patches, each divided by the root of its eigenvalue,
    and their negatives, so that a non-linearity after it loses nothing. The bias is trained.

    Until `learn` has seen images the kernels are random; every training calls it (`nasopt.nets.train.whiten`).

    Args:
        channels: of the images.
        size: side of a patch in pixels.
        stride: pixels from one patch to the next.
        directions: eigenvectors, those of the largest eigenvalues; None: all channels·size².
        eps: added to the eigenvalues, in units of the images' variance.
    """

    def __init__(self, channels: int, size: int = 2, stride: int = 1, directions: int | None = None, eps: float = 5e-4) -> None:
        super().__init__(channels, 2 * (directions or channels * size * size), size, stride)
        self.eps = eps
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def learn(self, images: Tensor) -> None:
        """Sets the kernels from normalised images (n, channels, h, w), in the order of falling eigenvalues.

        Raises:
            InputError: the images are smaller than a patch.
        """
        size = self.kernel_size[0]
        if min(images.shape[2:]) < size:
            raise InputError(f"images of {images.shape[2]} x {images.shape[3]} pixels have no patches of {size} x {size}: leave "
                             "out the whitening layer.")
        patches = functional.unfold(images.float(), size, stride=self.stride).transpose(1, 2).flatten(0, 1)
        values, vectors = torch.linalg.eigh(patches.T.cov().cpu())
        kernels = (vectors / (values.clamp(min=0) + self.eps).sqrt()).T.flip(0)[:self.out_channels // 2]
        self.weight.copy_(torch.cat([kernels, -kernels]).view_as(self.weight))
