"""ONNX and ONNX Runtime: the one file that imports them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from nasopt.cost.forward import batch_of, capture, quiet
from nasopt.errors import ExportError, InputError, one_line

try:
    import onnx
    import onnxruntime
    import onnxscript  # noqa: F401  torch's exporter needs it
except ImportError as missing:
    raise InputError(f"ONNX needs the package {missing.name!r}, which is not installed: "
                     "run pip install 'nasopt[onnx]'.") from missing


def onnx_bytes(model: nn.Module | ExportedProgram, example: Tensor) -> bytes:
    """The model as one ONNX file: input ``input`` with a first dimension ``batch`` of any size, output ``logits``.

    Args:
        model: a module, or the graph that `nasopt.cost.forward.capture` made of it.
        example: an input, batch first.

    Raises:
        ExportError: the module cannot be exported for a batch of any size, or the file breaks the ONNX specification.
    """
    program = capture(model, example) if isinstance(model, nn.Module) else model
    try:
        with quiet():
            made = torch.onnx.export(program, (batch_of(example, 2),), dynamo=True, verbose=False, external_data=False,
                                     input_names=["input"], output_names=["logits"], dynamic_shapes=({0: "batch"},))
        if made is None:
            raise RuntimeError("torch.onnx.export returned no program.")
        proto = made.model_proto
        onnx.checker.check_model(proto, full_check=True)
    except Exception as problem:  # the exporter's errors share no base
        raise ExportError(f"the network cannot be exported to ONNX: {one_line(problem)}; replace that operation.") from problem
    return bytes(proto.SerializeToString())


def session(model: bytes | Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU for a file, or its bytes, with ``threads`` threads within an operation and none across.

    Raises:
        InputError: ONNX Runtime cannot load the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base but this one
        name = "the ONNX model" if isinstance(model, bytes) else f"the ONNX file {model}"
        raise InputError(f"{name} cannot be loaded, give one that nasopt exported: {error}") from error


def onnx_logits(path: Path, x: NDArray[np.generic], batch: int = 256, threads: int = 1) -> NDArray[np.float32]:
    """What an ONNX file answers to ``x`` (n, ...): logits (n, classes), computed ``batch`` rows at a time."""
    ready = session(path, threads)
    name = ready.get_inputs()[0].name
    return np.concatenate([ready.run(None, {name: x[k:k + batch]})[0] for k in range(0, len(x), batch)])
