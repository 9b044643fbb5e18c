"""A network leaves as a file that needs neither nasopt nor the class it was built from."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from nasopt.cost.forward import apart, capture, plain, quiet
from nasopt.errors import InputError, unknown
from nasopt.files import write_whole

_TO_NCHW: dict[str, Callable[[Tensor], Tensor]] = {
    "NCHW": lambda x: x,
    "NHWC": lambda x: x.permute(0, 3, 1, 2),
    "NHW": lambda x: x.unsqueeze(1),
}


def nchw(x: Tensor, layout: str) -> Tensor:
    """Raw images in a layout (``"NCHW"``, ``"NHWC"`` or ``"NHW"``) as a view (n, channels, h, w)."""
    return _TO_NCHW[layout](x)


class WithPreprocessing(nn.Module):
    """A network that takes images as the user has them: ``net((x - mean) / std)``.

    Args:
        net: takes float32 (n, channels, height, width), returns logits (n, classes).
        mean: one number a channel, in the units of the raw data (0 ... 255 for bytes).
        std: one positive number a channel, in the same units.
        layout: of the raw data: ``"NCHW"``, ``"NHWC"`` or ``"NHW"`` (one channel). Any real dtype.

    Raises:
        InputError: an unknown layout, or mean and std that do not fit together or are not usable.
    """

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float], layout: str = "NCHW") -> None:
        super().__init__()
        if layout not in _TO_NCHW:
            raise unknown("layout", layout, _TO_NCHW)
        if len(mean) != len(std) or not np.isfinite([*mean, *std]).all() or min(std, default=0) <= 0:
            raise InputError(f"mean and std need one finite number a channel and std > 0, "
                             f"got {list(mean)} and {list(std)}.")
        if layout == "NHW" and len(mean) != 1:
            raise InputError(f"layout NHW has one channel, but mean has {len(mean)} numbers: give one.")
        self.net = net
        self.layout = layout
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of raw data in the layout given."""
        logits: Tensor = self.net((nchw(x, self.layout).float() - self.mean) / self.std)
        return logits


def export_torch(model: nn.Module | ExportedProgram, example: Tensor, path: Path) -> None:
    """Writes a ``.pt2`` file: ``torch.export.load(path).module()`` runs it on a batch of any size, without nasopt.

    Args:
        model: a module, or the graph that `nasopt.cost.forward.capture` made of it (if both formats
            are wanted, one graph serves both).
        example: an input, batch first.
        path: the file, replaced at once or not at all.

    Raises:
        ExportError: the model cannot be exported.
        InputError: the file cannot be written.
    """
    program = capture(model, example) if isinstance(model, nn.Module) else model
    content = io.BytesIO()
    with quiet():
        torch.export.save(program, content)
    _write(path, content.getvalue())


def export_onnx(model: nn.Module | ExportedProgram, example: Tensor, path: Path) -> None:
    """Writes one self-contained ``.onnx`` file: input ``input``, output ``logits``, a batch of any size.

    Arguments and errors as for `export_torch`; also an InputError where ONNX is not installed.
    """
    from nasopt.cost.runtimes import onnx_bytes

    content = onnx_bytes(model, example)
    _write(path, content)


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}; free space there or give another folder.") from error


def onnx_logits(path: Path, x: NDArray[np.generic], batch: int = 256, threads: int = 1) -> NDArray[np.float32]:
    """What an ONNX file answers to ``x`` (n, ...): logits (n, classes), computed ``batch`` rows at a time.

    Raises:
        InputError: ONNX Runtime is not installed, or cannot load the file.
    """
    from nasopt.cost import runtimes

    return runtimes.onnx_logits(path, x, batch, threads)


def torch_logits(path: Path, x: NDArray[np.generic], batch: int = 256) -> NDArray[np.float32]:
    """What a ``.pt2`` file answers to ``x`` (n, ...): logits (n, classes), computed ``batch`` rows at a time.

    Raises:
        InputError: the file cannot be loaded.
    """
    try:
        with quiet():
            net = torch.export.load(path).module()
    except Exception as error:  # the loader raises whatever a broken file leads it into
        raise InputError(f"{path} cannot be loaded, give a .pt2 file that nasopt exported: {error}") from error
    return _logits(net, x, batch)


def _logits(net: nn.Module, x: NDArray[np.generic], batch: int) -> NDArray[np.float32]:
    """Logits of a module, computed ``batch`` rows at a time."""
    with plain():
        parts = [net(torch.from_numpy(x[k:k + batch])) for k in range(0, len(x), batch)]
    return np.asarray(torch.cat(parts).float().numpy(force=True))


def difference(model: nn.Module, path: Path, x: NDArray[np.generic], batch: int = 256) -> float:
    """The largest absolute difference between the logits of the model and of its ``.onnx`` or ``.pt2`` file on ``x``.

    Raises:
        InputError: neither of the two formats, or a file that cannot be loaded.
    """
    readers: dict[str, Callable[..., NDArray[np.float32]]] = {".onnx": onnx_logits, ".pt2": torch_logits}
    if path.suffix not in readers:
        raise unknown("format", path.suffix, readers)
    return float(np.abs(readers[path.suffix](path, x, batch) - _logits(apart(model).float(), x, batch)).max())
