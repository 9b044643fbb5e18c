"""The trainer: data path, schedule, optimiser, and that it learns."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasopt.errors import InputError
from nasopt.nets import train
from nasopt.nets.averaging import EVERY, Lookahead
from nasopt.nets.checkpoint import Checkpoint, load_optimisers, optimiser_tensors
from nasopt.nets.depthwise import Depthwise
from nasopt.nets.muon import Muon, orthogonal


def images(n: int = 64, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 2, seed: int = 0) -> train.Images:
    """Images whose class is the half that is bright."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = torch.rand(n, *shape, generator=g)
    width = shape[2] // classes
    for k in range(n):
        x[k, :, :, int(y[k]) * width:(int(y[k]) + 1) * width] += 1.0
    return train.Images.all(x, y, x.mean((0, 2, 3)), x.std((0, 2, 3)))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
                         nn.Linear(128, 2))


def test_a_network_that_answers_nan_has_no_error_rate() -> None:
    data, net = images(), small().eval()
    assert 0 <= train.error(net, data) <= 1
    with torch.no_grad():
        net[5].bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match="answers NaN"):
        train.error(net, data)


def test_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(InputError, match="1 images are no batch of 2: give more"):
        next(train.batches(images(1), 2, train.Augment(), 0, 0))


def test_normalised_images_have_zero_mean_and_unit_variance() -> None:
    data = images(200, (3, 8, 8))
    x = data.normalised(slice(0, 200))
    assert x.mean((0, 2, 3)).abs().max() < 1e-5
    assert (x.std((0, 2, 3)) - 1).abs().max() < 1e-5
    assert torch.equal(data.part(torch.tensor([5, 7])).normalised(slice(0, 2)), data.normalised(torch.tensor([5, 7])))


def test_translation_takes_windows_of_the_padded_image() -> None:
    x = torch.arange(36.0).view(1, 1, 6, 6)
    padded = torch.nn.functional.pad(x, [2] * 4, mode="reflect")
    windows = [padded[:, :, i:i + 6, j:j + 6] for i in range(5) for j in range(5)]
    seen = set()
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        moved = train.Augment(translate=2)(x, torch.zeros(1, dtype=torch.bool), generator)
        seen.add(next(k for k, w in enumerate(windows) if torch.equal(w, moved)))
    assert seen == set(range(25))


def test_flips_alternate_from_epoch_to_epoch() -> None:
    data = images(40, (3, 16, 16))
    augment = train.Augment(flip=True)
    stream = train.batches(data, 40, augment, 0, 0)
    plain = {data.normalised(slice(k, k + 1)).numpy().tobytes(): k for k in range(40)}
    epochs = []
    for _ in range(3):
        x, _ = next(stream)
        epochs.append({plain[row[None].numpy().tobytes()] for row in x if row[None].numpy().tobytes() in plain})
    assert 0 < len(epochs[0]) < 40
    assert epochs[1] == set(range(40)) - epochs[0]
    assert epochs[2] == epochs[0]


def test_a_cutout_is_a_square_around_any_pixel() -> None:
    x, augment, sizes, seen = torch.ones(500, 3, 9, 7), train.Augment(cutout=4), set(), torch.zeros(9, 7)
    out = augment(x, torch.zeros(500, dtype=torch.bool), torch.Generator().manual_seed(0))
    for image in out:
        gone = image[0] == 0
        assert all(torch.equal(image[c] == 0, gone) for c in range(3))
        rows, columns = gone.any(1).nonzero()[:, 0], gone.any(0).nonzero()[:, 0]
        assert gone[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1].all()
        sizes.add((len(rows), len(columns)))
        seen += gone
    assert sizes == {(a, b) for a in (2, 3, 4) for b in (2, 3, 4)}
    assert (seen > 0).all()


def test_only_colour_photographs_are_mirrored() -> None:
    assert train.Augment.for_images((3, 32, 32)) == train.Augment(flip=True, translate=2)
    assert train.Augment.for_images((1, 28, 28)) == train.Augment(flip=False, translate=1)
    assert train.Augment.for_images((1, 8, 8)) == train.Augment(flip=False, translate=1)


def test_an_epoch_sees_every_image_once_and_is_reproducible() -> None:
    data = images(60)
    a, b = (train.batches(data, 20, train.Augment(), 3, 1) for _ in range(2))
    first = [next(a) for _ in range(3)]
    assert sorted(float(x.sum()) for batch, _ in first for x in batch) == pytest.approx(
        sorted(float(x.sum()) for x in data.normalised(slice(0, 60))), abs=1e-3)
    for (x, y), (x2, y2) in zip(first, [next(b) for _ in range(3)], strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    other = next(train.batches(data, 20, train.Augment(), 4, 1))
    assert not torch.equal(other[0], first[0][0])


@given(st.integers(1, 500), st.floats(0.0, 0.9))
def test_the_learning_rate_is_a_triangle(steps: int, warmup: float) -> None:
    rates = [train.triangle(k, steps, warmup) for k in range(steps)]
    assert all(0 < r <= 1 + 1e-12 for r in rates)
    top = int(np.argmax(rates))
    assert all(a <= b + 1e-12 for a, b in pairwise(rates[:top + 1]))
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[top:]))
    assert train.triangle(steps, steps, warmup) == 0


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 1000))
def test_orthogonal_keeps_the_singular_vectors_and_levels_the_values(m: int, n: int, seed: int) -> None:
    matrix = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonal(matrix, steps=5) @ vt.T
    off = inside - torch.diag(inside.diag())
    assert off.abs().max() < 1e-8
    big = s / matrix.norm() > 0.05
    assert (inside.diag()[big] > 0.3).all()
    assert (inside.diag() < 1.3).all()


def test_muon_keeps_the_norm_before_its_step_and_moves_by_the_learning_rate() -> None:
    p = nn.Parameter(torch.randn(6, 4, 3, 3))
    p.grad = torch.randn_like(p)
    direction = p.detach() * (6 ** 0.5 / p.detach().norm())
    Muon([p], lr=0.1, momentum=0.6).step()
    moved = (p.detach() - direction).norm()
    assert moved == pytest.approx(0.1 * 6 ** 0.5, rel=0.25)


def test_kernels_go_to_muon_and_everything_else_to_sgd_once() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Linear(8, 2))
    sgd, muon = train.optimisers(net, train.Recipe())
    held = [p for g in muon.param_groups for p in g["params"]]
    assert [tuple(p.shape) for p in held] == [(8, 3, 3, 3)]
    rest = [p for g in sgd.param_groups for p in g["params"]]
    assert {id(p) for p in held + rest} == {id(p) for p in net.parameters()}
    assert len(held + rest) == len(list(net.parameters()))
    assert all(g["weight_decay"] == 0 for g in sgd.param_groups if g["params"][0].ndim == 1)
    assert len(train.optimisers(net, train.Recipe(kernel_lr=None))) == 1


def test_training_learns_and_is_reproducible() -> None:
    data = images(128)
    recipe = train.Recipe(epochs=8)
    nets = [small(), small()]
    before = train.error(nets[0].eval(), data)
    fits = [train.fit(net, data, recipe, train.Augment(), 0) for net in nets]
    assert train.error(nets[0], data) < min(before, 0.05)
    assert fits[0].steps == train.steps_of(data, recipe)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert not nets[0].training


# --------------------------------------------------------------------------------------------------------- checkpoints
FULL = train.Recipe(epochs=3, batch=12, average=0.9)


def trained(resume: Checkpoint | None = None,
            recipe: train.Recipe = FULL) -> tuple[list[torch.Tensor], train.Fitted, list[Checkpoint]]:
    """The weights and statistics after a training with everything in it that is random or has a state."""
    torch.manual_seed(0)
    net = nn.Sequential(*small(), nn.Dropout(0.2))
    data, augment, points = images(60, (1, 8, 8)), train.Augment(flip=True, translate=1, cutout=2), list[Checkpoint]()
    fitted = train.fit(net, data, recipe, augment, 5, 2, resume=resume, keep=lambda make: points.append(make()),
                       judge=lambda net: {"first": float(next(net.parameters()).detach().sum())})
    return list(net.state_dict().values()), fitted, points


def test_a_training_resumes_at_every_epoch_bit_for_bit() -> None:
    whole, fitted, points = trained()
    assert [p.step for p in points] == [20, 40, 60]
    for point in points:
        torch.manual_seed(7)
        again, refitted, later = trained(Checkpoint.from_bytes(point.to_bytes()))
        assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
        assert (refitted.steps, refitted.loss) == (fitted.steps, fitted.loss)
        assert [{**p, "seconds": 0} for p in refitted.curve] == [{**p, "seconds": 0} for p in fitted.curve]
        assert refitted.seconds > point.seconds
        assert [p.step for p in later] == [p.step for p in points if p.step > point.step]


def test_a_learning_curve_has_points_after_epochs_and_at_the_end() -> None:
    """To look does not change the training."""
    data, modes = images(60, (1, 8, 8)), list[bool]()

    def judge(net: nn.Module) -> dict[str, float]:
        modes.append(net.training)
        return {"error": 1 / len(modes)}

    watched, alone = small(), small()
    fitted = train.fit(watched, data, train.Recipe(epochs=12.5), train.Augment(), 0, judge=judge)
    plain = train.fit(alone, data, train.Recipe(epochs=12.5), train.Augment(), 0)
    assert [p["epochs"] for p in fitted.curve] == [2, 4, 5, 7, 8, 10, 11, 12.5] == [p["epochs"] for p in plain.curve]
    assert [p["error"] for p in fitted.curve] == [1 / k for k in range(1, 9)] and modes == [False] * 8
    assert fitted.curve[-1]["loss"] == fitted.loss < fitted.curve[0]["loss"]
    seconds = [p["seconds"] for p in fitted.curve]
    assert seconds[0] > 0 and seconds == sorted(seconds)
    assert all(torch.equal(a, b) for a, b in zip(watched.state_dict().values(), alone.state_dict().values(), strict=True))


@pytest.mark.parametrize(("pace", "seconds", "steps"), [
    (lambda done: 1.0, 240.0, 240),  # as planned
    (lambda done: 1.5, 240.0, 160), (lambda done: 0.5, 240.0, 400),  # no more than 20 epochs of 20 steps
    (lambda done: 1.0 + (done > 100), 240.0, 176), (lambda done: 2.0 - (done > 60), 240.0, 169),  # 170 and 180 would be exact
    (lambda done: 3.0, 40.0, 22),  # a tenth more than when it was seen
])
def test_a_training_with_a_time_takes_that_whatever_the_machine_does(pace: Callable[[int], float], seconds: float, steps: int,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """240 steps of a second were planned. Going on from a checkpoint comes to the same weights."""
    def fit(resume: Checkpoint | None = None) -> tuple[train.Fitted, list[torch.Tensor], list[Checkpoint]]:
        now, points, net = [0.0], list[Checkpoint](), small()

        def watch(done: int, planned: int) -> None:
            now[0] += pace(done)
            rates.append(train.triangle(done - 1, planned, 0.05))

        monkeypatch.setattr(train.time, "perf_counter", lambda: now[0])
        fitted = train.fit(net, images(60), train.Recipe(epochs=12), train.Augment(translate=1), 5, 2, watch, resume=resume,
                           keep=lambda make: points.append(make()), within=(seconds, 20.0))
        return fitted, list(net.state_dict().values()), points

    rates = list[float]()
    fitted, whole, points = fit()
    assert fitted.steps == pytest.approx(steps, abs=2)
    assert fitted.curve[-1]["epochs"] == fitted.steps / 20
    assert steps == 22 or fitted.seconds <= seconds + 20
    assert max(rates) == 1 and rates[-1] < 0.05
    again, weights, _ = fit(points[len(points) // 2])
    assert again.steps == fitted.steps
    assert all(torch.equal(a, b) for a, b in zip(whole, weights, strict=True))


def test_batches_can_begin_anywhere() -> None:
    data, augment = images(50, (3, 16, 16)), train.Augment(flip=True, translate=1, cutout=3)
    stream = train.batches(data, 16, augment, 0, 0)
    known = [next(stream) for _ in range(8)]
    for first, (x, y) in enumerate(known):
        found, labels = next(train.batches(data, 16, augment, 0, 0, first))
        assert torch.equal(x, found)
        assert torch.equal(y, labels)


def test_a_checkpoint_of_another_training_is_refused() -> None:
    point = trained()[2][0]
    with pytest.raises(InputError, match=r"belongs to another training .*it has 60 steps, not 40"):
        trained(point, replace(FULL, epochs=2))
    with pytest.raises(InputError, match="belongs to another training"):
        trained(trained(recipe=replace(FULL, average=0.0))[2][0])
    with pytest.raises(InputError, match="belongs to another training"):
        train.fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), images(60), FULL, train.Augment(), 0, resume=point)
    with pytest.raises(InputError, match="cannot be read"):
        Checkpoint.from_bytes(b"nothing")


def test_what_layers_draw_follows_from_the_seed() -> None:
    """Whatever was drawn in the process before."""
    data, found = images(40), list[list[torch.Tensor]]()
    for number, before in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2))
        torch.manual_seed(before)
        train.fit(net, data, train.Recipe(epochs=1, kernel_lr=None), train.Augment(), 0, number)
        found.append([p.detach() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))


@pytest.mark.parametrize(("shape", "most", "count"), [((100, 3, 32, 32), 256, 256), ((1, 64, 64), 512, 512),
                                                      ((1, 128, 128), 256, 64), ((5, 3, 512, 512), 512, 16),
                                                      ((9, 3, 2000, 2000), 8, 8)])
def test_fewer_of_large_images_go_through_a_network_at_once(shape: tuple[int, ...], most: int, count: int) -> None:
    assert train.at_once(shape, most) == count


def test_the_state_of_other_optimisers_is_refused() -> None:
    nets = [nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)) for _ in range(2)]
    muon, plain = (train.optimisers(net, train.Recipe(kernel_lr=lr)) for net, lr in zip(nets, (0.1, None), strict=True))
    for net, opts in zip(nets, (muon, plain), strict=True):
        net(torch.randn(5, 2, 4, 4)).sum().backward()
        for opt in opts:
            opt.step()
    load_optimisers(plain, optimiser_tensors(plain))
    with pytest.raises(ValueError, match="other parameters for optimiser 0"):
        load_optimisers(muon, optimiser_tensors(plain))
    with pytest.raises(ValueError, match="more than 1 optimisers"):
        load_optimisers(plain, optimiser_tensors(muon))


# ------------------------------------------------------------------------------------------- averages, mirrors, devices
def test_slow_weights_follow_the_fast_ones_and_draw_them_back() -> None:
    net = nn.BatchNorm2d(1)
    slow = Lookahead(net, 0.9)
    with torch.no_grad():
        for value in (net.weight, net.running_mean):
            assert value is not None
            value.fill_(3.0)
    slow.step(1, 100)
    assert net.weight.item() == 3.0
    slow.step(EVERY * 10, 100)
    share = 1 - 0.9**EVERY * 0.5**3
    assert net.weight.item() == pytest.approx(1 + share * 2)
    assert net.running_mean is not None and net.running_mean.item() == pytest.approx(share * 3)
    with pytest.raises(InputError, match="between 0 and 1, got 1: give"):
        Lookahead(net, 1.0)


def test_a_mirrored_network_does_not_see_left_and_right() -> None:
    x = torch.rand(5, 1, 8, 8)
    net = small().eval()
    both = train.Mirrored(net)
    torch.testing.assert_close(both(x), both(x.flip(3)))
    torch.testing.assert_close(both(x), (net(x) + net(x.flip(3))) / 2)
    assert not torch.allclose(net(x), net(x.flip(3)))


@pytest.mark.parametrize(("name", "says"), [("tpu", "unknown device 'tpu': give cpu"), ("mps", "unknown device 'mps'"),
                                            (f"cuda:{torch.cuda.device_count()}", "is not there, PyTorch .* GPUs: give cpu")])
def test_a_device_that_is_not_there_is_told(name: str, says: str) -> None:
    assert train.device_of("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match=says):
        train.device_of(name)


class Greedy(nn.Module):
    """A network without memory for more than some images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.layer, self.most, self.seen = nn.Linear(64, 2), most, list[int]()
        nn.init.zeros_(self.layer.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        self.seen.append(len(x))
        y: torch.Tensor = self.layer(x.flatten(1))
        return y


def test_a_batch_too_large_for_the_memory_goes_in_parts() -> None:
    said, nets = list[str](), [Greedy(100), Greedy(4)]
    recipe = train.Recipe(epochs=1, batch=12, kernel_lr=None)
    for net in nets:
        torch.manual_seed(0)
        net.layer.reset_parameters()
        train.fit(net, images(240), recipe, train.Augment(), 0, tell=said.append)
    assert said == ["the memory of cpu is too small for 12 images at once: going on with 6.",
                    "the memory of cpu is too small for 6 images at once: going on with 3."]
    assert set(nets[1].seen) == {3} and sum(nets[1].seen) == sum(nets[0].seen) == 240
    torch.testing.assert_close(nets[0].layer.weight, nets[1].layer.weight, atol=0.02, rtol=0.02)  # bf16
    with pytest.raises(MemoryError, match=r"out of memory.*with 3 images at once"):
        train.fit(Greedy(1), images(240), recipe, train.Augment(), 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_sees_the_same_batches_and_learns() -> None:
    data, augment = images(128, (3, 16, 16)), train.Augment(flip=True, translate=1, cutout=3)
    there = data.to(train.device_of("cuda"))
    for (x, y), (x2, y2) in islice(zip(*(train.batches(d, 32, augment, 0, 0) for d in (data, there)), strict=True), 6):
        torch.testing.assert_close(x, x2.cpu())
        assert torch.equal(y, y2.cpu())
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 2))
    train.fit(net, there, replace(FULL, epochs=8), augment, 0, keep=lambda make: make().to_bytes())
    assert train.error(net, there, fast=True) < 0.1


def test_a_loss_that_is_not_finite_is_told() -> None:
    data = images(64)
    broken = replace(data, x=data.x * float("nan"))
    with pytest.raises(FloatingPointError, match="became nan at step 1"):
        train.fit(small(), broken, train.Recipe(epochs=1), train.Augment(), 0)


def test_a_loss_that_is_read_later_is_told_with_its_step() -> None:
    losses = [torch.tensor(v) for v in (1.0, float("inf"), 2.0)]
    with pytest.raises(FloatingPointError, match="became inf at step 9 of 20"):
        train._read(losses, 10, 20)
    assert train._read(losses[::2], 10, 20) == [1.0, 2.0]


def test_error_counts_wrong_answers() -> None:
    data = images(10)

    class First(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.ones(len(x)), torch.zeros(len(x))], 1)

    assert train.error(First(), data, batch=3) == 0.5


@pytest.mark.parametrize("options", [{"stride": 2}, {"stride": (2, 1)}, {"dilation": 2}, {"stride": 2, "dilation": 2}, {}])
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_convolutions_keep_their_values_in_training(options: dict[str, int], groups: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, 3, padding=1, groups=groups, **options)  # type: ignore[arg-type]
    for size in (8, 9):
        x = torch.randn(2, 6, size, size, requires_grad=True)
        plain = layer(x)
        with Depthwise():
            found = layer(x)
        torch.testing.assert_close(found, plain)
        gradients = [torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]) for y in (found, plain)]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)


def test_grouped_convolutions_are_trained_in_fp32() -> None:
    x = torch.randn(1, 6, 8, 8)
    layers = {(g, d): nn.Conv2d(6, 6, 3, dilation=d, groups=g) for g in (1, 3, 6) for d in (1, 2)}
    with torch.autocast("cpu", torch.bfloat16), Depthwise():
        low = {key for key, layer in layers.items() if layer(x).dtype == torch.bfloat16}
        assert low == {(1, 1), (1, 2), (3, 1)}
    with Depthwise():
        assert layers[6, 2].double()(x.double()).dtype == torch.float64


def test_no_operation_reads_memory_that_nobody_wrote() -> None:
    script = """
import torch
from nasopt.nets import train
from nasopt.nets.ops import OPERATIONS
from nasopt.nets.depthwise import Depthwise
for size in (32, 16):
    x = torch.randn(32, 16, size, size).contiguous(memory_format=torch.channels_last).requires_grad_()
    for label, make in OPERATIONS.items():
        net = train.channels_last(make(16))
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16), Depthwise():
                y = net(x)
            grads = torch.autograd.grad(y.float().sum(), [x, *net.parameters()])
            assert all(t.isfinite().all() and t.abs().max() < 1e9 for t in (y, *grads)), (label, size)
"""
    # what glibc hands out is full of huge numbers
    poisoned = {**os.environ, "MALLOC_PERTURB_": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=poisoned)
