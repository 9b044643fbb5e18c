"""An exported file runs without nasopt, on raw data, for any batch, and gives the model's logits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from nasopt.cost.clock import Latency, onnx_latencies
from nasopt.cost.forward import apart, capture
from nasopt.errors import InputError
from nasopt.nets.export import (
    WithPreprocessing,
    difference,
    export_onnx,
    export_torch,
    onnx_logits,
    torch_logits,
)
from nasopt.testing.cost import check_cost_model

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]


class Net(nn.Module):
    """A little residual network with normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.deep(x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A network whose statistics are not those it was born with, in training mode, taking bytes."""
    torch.manual_seed(1)
    net = Net().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        net(torch.rand(64, 3, 8, 8).to(memory_format=torch.channels_last)).sum().backward()
    return WithPreprocessing(net, MEAN, STD, "NHWC")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def graph(model: nn.Module, images: np.ndarray) -> ExportedProgram:
    return capture(model, torch.from_numpy(images[:1]))


@pytest.fixture(scope="module")
def files(graph: ExportedProgram, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    export_torch(graph, torch.from_numpy(images[:1]), folder / "net.pt2")
    export_onnx(graph, torch.from_numpy(images[:1]), folder / "net.onnx")
    return folder


def by_hand(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """The logits, with the data normalised in numpy."""
    rows = (images.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    model.eval()
    with torch.no_grad():
        logits: np.ndarray = model.net(torch.from_numpy(rows.transpose(0, 3, 1, 2).copy())).numpy()  # type: ignore
    model.train()
    return logits


def test_both_files_give_the_logits_of_data_normalised_by_hand(model: nn.Module, images: np.ndarray,
                                                               files: Path) -> None:
    right = by_hand(model, images)
    assert np.ptp(right) > 0.1
    np.testing.assert_allclose(onnx_logits(files / "net.onnx", images), right, atol=1e-5)
    np.testing.assert_allclose(torch_logits(files / "net.pt2", images), right, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_any_batch_gives_the_same_logits(model: nn.Module, images: np.ndarray, files: Path, batch: int) -> None:
    right = by_hand(model, images)
    np.testing.assert_allclose(onnx_logits(files / "net.onnx", images, batch), right, atol=1e-5)
    np.testing.assert_allclose(torch_logits(files / "net.pt2", images, batch), right, atol=1e-5)


def test_difference_is_small_for_the_model_and_not_for_another(model: nn.Module, images: np.ndarray,
                                                               files: Path) -> None:
    other = WithPreprocessing(Net(), MEAN, STD, "NHWC")
    for name in ("net.onnx", "net.pt2"):
        assert difference(model, files / name, images) < 1e-5
        assert difference(other, files / name, images) > 1e-2
    with pytest.raises(InputError, match="unknown format"):
        difference(model, files / "net.tflite", images)


RUN = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "nasopt":
            raise ImportError("nasopt is not here")
sys.meta_path.insert(0, Block())
try:
    import nasopt
except ImportError:
    pass
else:
    sys.exit("nasopt can be imported")
import numpy, onnxruntime, torch
x = numpy.load("x.npy")
net = torch.export.load("net.pt2").module()
session = onnxruntime.InferenceSession("net.onnx")
numpy.savez("y.npz", torch=net(torch.from_numpy(x)).detach().numpy(), onnx=session.run(["logits"], {"input": x})[0])
"""


def test_files_run_where_nasopt_is_not(model: nn.Module, images: np.ndarray, files: Path, tmp_path: Path) -> None:
    for name in ("net.pt2", "net.onnx"):
        (tmp_path / name).write_bytes((files / name).read_bytes())  # one file each: nothing beside it is needed
    np.save(tmp_path / "x.npy", images)
    done = subprocess.run([sys.executable, "-c", RUN], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "y.npz") as y:
        np.testing.assert_allclose(y["torch"], by_hand(model, images), atol=1e-5)
        np.testing.assert_allclose(y["onnx"], by_hand(model, images), atol=1e-5)


def test_the_onnx_file_is_as_promised(files: Path) -> None:
    graph = onnx.load(files / "net.onnx", load_external_data=False).graph
    assert [v.name for v in graph.input] == ["input"]
    assert [v.name for v in graph.output] == ["logits"]
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert not any(w.HasField("data_location") and w.data_location for w in graph.initializer)


def test_weights_are_written_in_32_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Net().eval().bfloat16(), torch.rand(2, 3, 8, 8)
    export_onnx(net, x, tmp_path / "net.onnx")
    weights = onnx.load(tmp_path / "net.onnx").graph.initializer
    kinds = {w.data_type for w in weights}
    assert onnx.TensorProto.FLOAT in kinds
    assert not kinds & {onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT16}
    assert next(net.parameters()).dtype == torch.bfloat16
    assert difference(net, tmp_path / "net.onnx", x.numpy()) < 1e-5


def test_export_leaves_the_model_alone_and_is_silent(model: nn.Module, images: np.ndarray, tmp_path: Path,
                                                     capfd: pytest.CaptureFixture[str]) -> None:
    before = {k: v.clone() for k, v in model.state_dict().items()}
    export_torch(model, torch.from_numpy(images), tmp_path / "a.pt2")
    export_onnx(model, torch.from_numpy(images), tmp_path / "a.onnx")
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.net.stem.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr, operator]
    assert capfd.readouterr() == ("", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "a.pt2"]
    (tmp_path / "b").touch()
    assert (tmp_path / "a.onnx").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize(("layout", "shape", "dtype"), [
    ("NCHW", (2, 1, 4, 5), np.float32), ("NHWC", (2, 4, 5, 1), np.float64), ("NHW", (2, 4, 5), np.uint8)])
def test_layouts(layout: str, shape: tuple[int, ...], dtype: type) -> None:
    x = (np.random.default_rng(0).random(shape) * 200).astype(dtype)
    net = WithPreprocessing(nn.Identity(), [10.0], [4.0], layout)
    right = ((x.astype(np.float32) - 10) / 4).reshape(2, 1, 4, 5)
    out = net(torch.from_numpy(x))
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.numpy(), right, rtol=1e-6)


def test_bad_preprocessing_names_the_remedy() -> None:
    with pytest.raises(InputError, match="did you mean 'NCHW'"):
        WithPreprocessing(nn.Identity(), [0.0], [1.0], "NCWH")
    for mean, std in [([0.0], [1.0, 1.0]), ([0.0], [0.0]), ([np.nan], [1.0]), ([], [])]:
        with pytest.raises(InputError, match="std > 0"):
            WithPreprocessing(nn.Identity(), mean, std)
    with pytest.raises(InputError, match="one channel"):
        WithPreprocessing(nn.Identity(), [0.0, 0.0], [1.0, 1.0], "NHW")


class Full:
    """A disk on which nothing more fits."""

    def __call__(self, *args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")


def test_a_full_disk_keeps_the_old_file_and_names_the_path(graph: ExportedProgram, images: np.ndarray, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.pt2"
    path.write_text("old")
    monkeypatch.setattr(Path, "write_bytes", Full())
    with pytest.raises(InputError, match=r"net\.pt2.*No space left"):
        export_torch(graph, torch.from_numpy(images), path)
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt2"]
    assert path.read_text() == "old"


def test_a_folder_that_is_not_there_is_named(graph: ExportedProgram, images: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*nowhere/net\.pt2"):
        export_torch(graph, torch.from_numpy(images), tmp_path / "nowhere" / "net.pt2")


def test_broken_files_are_named(tmp_path: Path) -> None:
    for name, read in (("a.onnx", onnx_logits), ("a.pt2", torch_logits)):
        for missing in (True, False):
            if not missing:
                (tmp_path / name).write_bytes(b"no model")
            with pytest.raises(InputError, match=name):
                read(tmp_path / name, np.zeros((1, 3), np.float32))


def test_a_network_that_looks_at_values_cannot_leave(tmp_path: Path) -> None:
    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match="cannot be exported"):
        export_torch(Looks(), torch.rand(2, 3), tmp_path / "a.pt2")


@pytest.mark.slow
def test_onnx_latency_conforms() -> None:
    check_cost_model(Latency("onnxruntime", runs=2), monotone=False)


def test_onnx_latency_of_a_file(files: Path, images: np.ndarray) -> None:
    ticks = iter(range(10**6))
    timing, = onnx_latencies([files / "net.onnx"], torch.from_numpy(images), runs=4, timer=lambda: float(next(ticks)))
    assert (timing.median_ms, timing.iqr_ms, timing.runs) == (1000.0, 0.0, 4)


def test_the_network_that_is_exported_stays_as_it_is(images: np.ndarray) -> None:
    net = WithPreprocessing(Net(), MEAN, STD, "NHWC").to(memory_format=torch.channels_last)
    net = net.bfloat16().eval().requires_grad_(False)
    capture(net, torch.from_numpy(images[:1]))
    assert all(t.dtype == torch.bfloat16 for t in net.state_dict().values() if t.is_floating_point())
    assert net.net.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert apart(net) is not net
