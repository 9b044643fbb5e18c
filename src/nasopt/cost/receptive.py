"""How much of an image a network sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nasopt.cost.forward import batch_of, frozen


def seen(net: nn.Module, example: Tensor) -> float:
    """The share of the image, between 0 and 1, on which the centre of the last feature map depends: the area of the
    receptive field's bounding box, by one gradient of random weights.

    A network whose receptive field is smaller than the image wastes what its layers could learn of the whole
    (Richter et al., "(Input) size matters for CNN classifiers", ICANN 2021). Where no layer gives a map (N, C, H, W) of more
    than one position, everything is taken to be seen.

    Args:
        net: its weights must not be all zero.
        example: images (N, C, H, W); their values do not matter.
    """
    maps: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, out: object) -> None:
        if isinstance(out, Tensor) and out.ndim == 4 and min(out.shape[2:]) > 1:
            maps[:] = [out]

    twin = frozen(net)
    noise = torch.randn(batch_of(example, 1).shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    hooks = [m.register_forward_hook(keep) for m in twin.modules() if not any(m.children())]
    try:
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            twin(noise)
    finally:
        for hook in hooks:
            hook.remove()
    if not maps or not maps[0].requires_grad:
        return 1.0
    height, width = maps[0].shape[2:]
    (slope,) = torch.autograd.grad(maps[0][0, :, height // 2, width // 2].sum(), noise)
    rows, columns = slope[0].abs().sum(0).nonzero(as_tuple=True)
    if not len(rows):
        return 0.0
    area = float((rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1))
    return area / (noise.shape[2] * noise.shape[3])
