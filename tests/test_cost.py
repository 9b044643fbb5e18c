"""Counts against closed forms, memory against the allocator, the latency protocol against a clock of our own."""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nasopt.cost.clock import Latency, Timing, clock, clocks, torch_threads
from nasopt.cost.count import Count, flops, params, size_mb
from nasopt.cost.forward import capture
from nasopt.cost.layers import Layers, forward_ms
from nasopt.cost.memory import Memory, measured_peak_mb, peak_mb
from nasopt.cost.receptive import seen
from nasopt.errors import InputError
from nasopt.pipeline.warm import step_ms
from nasopt.testing.cost import check_cost_model


class Block(nn.Module):
    """x + conv(relu(norm(conv(x)))), optionally depthwise."""

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False),
                                  nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class Dag(nn.Module):
    """A cell of four nodes, each the sum of functions of all before it, in the end concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleDict({f"{i}{j}": nn.Conv2d(channels, channels, 1 + 2 * (i % 2), padding=i % 2)
                                    for j in range(1, 4) for i in range(j)})

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for j in range(1, 4):
            nodes.append(sum((self.edges[f"{i}{j}"](nodes[i]) for i in range(j)), torch.zeros(())))
        return torch.cat(nodes, 1)


class Vit(nn.Module):
    """Patches and one block of attention."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, d, 4, 4)
        self.block = nn.TransformerEncoderLayer(d, 2, 4 * d, batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(self.patch(x).flatten(2).transpose(1, 2)).mean(1)
        return out


def nets() -> dict[str, Callable[[], nn.Module]]:
    stem = lambda c: [nn.Conv2d(3, c, 3, padding=1), nn.ReLU(inplace=True)]  # noqa: E731
    head = lambda c: [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10)]  # noqa: E731
    return {
        "plain": lambda: nn.Sequential(*stem(16), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.MaxPool2d(2), *head(32)),
        "residual": lambda: nn.Sequential(*stem(16), Block(16), nn.ReLU(), Block(16), *head(16)),
        "depthwise": lambda: nn.Sequential(*stem(16), Block(16, 16), Block(16, 16), *head(16)),
        "dag": lambda: nn.Sequential(*stem(8), Dag(8), *head(32)),
        "vit": lambda: Vit(32),
    }


# counts

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3]), st.integers(1, 2),
       st.booleans())
def test_flops_of_a_convolution_are_the_closed_form(groups: int, i: int, o: int, kernel: int, stride: int,
                                                    bias: bool) -> None:
    conv = nn.Conv2d(i * groups, o * groups, kernel, stride, kernel // 2, groups=groups, bias=bias)
    x = torch.zeros(4, i * groups, 9, 7)
    positions = -(-9 // stride) * -(-7 // stride)
    products = positions * kernel * kernel * i * o * groups
    assert flops(conv, x) == products + bias * positions * o * groups
    assert params(conv) == kernel * kernel * i * o * groups + bias * o * groups
    with FlopCounterMode(display=False) as torchs:
        conv(x[:1])
    assert torchs.get_total_flops() == 2 * products


def test_flops_of_linear_layers_functions_and_repeated_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)
            self.w = nn.Parameter(torch.zeros(5, 6))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.fc(self.fc(x)), self.w)

    assert flops(Twice(), torch.zeros(3, 6)) == 2 * (36 + 6) + 30
    assert params(Twice()) == 42 + 30


@pytest.mark.parametrize("transposed", [False, True])
def test_flops_of_a_linear_layer_on_a_sequence_include_its_bias_whatever_the_strides(transposed: bool) -> None:
    class OnSequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x.transpose(1, 2) if transposed else x)
            return out

    assert flops(OnSequence(), torch.zeros(2, 4, 7) if transposed else torch.zeros(2, 7, 4)) == 7 * (12 + 3)


def test_flops_of_attention() -> None:
    d, n = 8, 5
    layer = nn.TransformerEncoderLayer(d, 2, 16, batch_first=True)
    linear = n * (3 * d * d + 3 * d) + n * (d * d + d) + n * (d * 16 + 16) + n * (16 * d + d)
    assert flops(layer, torch.zeros(3, n, d)) == linear + 2 * n * n * d
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize("mkldnn", [True, False])
def test_flops_of_a_recurrent_layer(mkldnn: bool) -> None:
    with torch.backends.mkldnn.flags(enabled=mkldnn):
        assert flops(nn.LSTM(3, 4, batch_first=True), torch.zeros(2, 6, 3)) == 6 * 4 * (4 * (3 + 4) + 2 * 4)


def test_flops_of_the_largest_nas_bench_201_network_are_the_published_ones() -> None:
    def conv(i: int, o: int, k: int = 3, s: int = 1) -> nn.Module:
        return nn.Sequential(nn.ReLU(), nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o))

    class Cell(nn.Module):
        def __init__(self, c: int) -> None:
            super().__init__()
            self.edges = nn.ModuleList(conv(c, c) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            a = self.edges[0](x)
            b = self.edges[1](x) + self.edges[2](a)
            out: Tensor = self.edges[3](x) + self.edges[4](a) + self.edges[5](b)
            return out

    class Reduce(nn.Module):
        def __init__(self, c: int) -> None:
            super().__init__()
            self.body = nn.Sequential(conv(c, 2 * c, 3, 2), conv(2 * c, 2 * c))
            self.skip = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(c, 2 * c, 1, bias=False))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.body(x) + self.skip(x)
            return out

    def stage(c: int) -> list[nn.Module]:
        return [Cell(c) for _ in range(5)]

    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), *stage(16), Reduce(16),
                        *stage(32), Reduce(32), *stage(64), nn.BatchNorm2d(64), nn.ReLU(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    counted = Count()(net, torch.zeros(1, 3, 32, 32))
    assert round(counted["flops"] / 1e6, 2) == 220.12  # Dong & Yang, ICLR 2020: 220.119690 MFLOPs
    assert round(counted["params"] / 1e6, 2) == 1.53


def test_size_counts_buffers_and_stores_floats_in_32_bits() -> None:
    norm = nn.BatchNorm2d(10)  # 4 vectors of floats and a 64-bit counter
    assert size_mb(norm) == size_mb(norm.half()) == (4 * 10 * 4 + 8) / 1e6


def test_shared_weights_are_counted_once() -> None:
    layer = nn.Linear(3, 3)
    assert params(nn.Sequential(layer, layer)) == 12


# memory

def test_memory_of_a_chain_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
    pixels = 4 * 100  # bytes of a channel
    weights = (4 + 8) * 4
    assert peak_mb(net, torch.zeros(1, 1, 10, 10)) == pytest.approx((weights + (1 + 4 + 4) * pixels) / 1e6, rel=1e-12)
    net[1] = nn.ReLU(inplace=True)
    assert peak_mb(net, torch.zeros(1, 1, 10, 10)) == pytest.approx((weights + (1 + 4 + 2) * pixels) / 1e6, rel=1e-12)


def test_memory_of_views_constants_and_held_branches_by_hand() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = [torch.zeros(100)]  # neither parameter nor buffer, yet there all the time

        def forward(self, x: Tensor) -> Tensor:
            a = x + self.table[0]
            b = a.view(-1, 10).t()[1:]
            c = torch.exp(a)
            return (c.view(-1, 10).t()[1:] + b).sum()

    # input, table, a and its view b, c, and the sum of 9/10 of their size; the scalar comes when a and c have gone
    assert peak_mb(Views(), torch.zeros(1, 100)) == pytest.approx(4 * (100 * 4 + 90) / 1e6, rel=1e-12)


@pytest.mark.parametrize("name", nets())
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_memory_agrees_with_the_allocator_within_two_per_cent(name: str) -> None:
    torch.manual_seed(0)
    net, x = nets()[name]().eval(), torch.rand(32, 3, 32, 32)
    exported = capture(net, x).module()  # frees after the last use, as the analysis assumes
    last = torch.channels_last  # a layout in which convolutions need no copy of an activation
    measured = measured_peak_mb(exported.to(memory_format=last), x.to(memory_format=last))
    assert peak_mb(net, x) == pytest.approx(measured, rel=0.02)
    assert peak_mb(net, x) <= measured_peak_mb(net, x) * 1.0001


def test_memory_is_for_the_batch_asked_for() -> None:
    net, x = nets()["residual"](), torch.rand(3, 3, 32, 32)
    weights = sum(t.numel() * t.element_size() for t in [*net.parameters(), *net.buffers()]) / 1e6
    one, five = (Memory(batch)(net, x)["memory_mb"] for batch in (1, 5))
    assert five - weights == pytest.approx(5 * (one - weights), rel=1e-9)


# latency

class Clock:
    """Ticks as told: call k takes ``seconds[k]``, the last for ever."""

    def __init__(self, seconds: list[float]) -> None:
        self.durations: Iterator[float] = itertools.chain(seconds, itertools.repeat(seconds[-1]))
        self.now, self.calls, self.timing = 0.0, 0, False

    def call(self) -> None:
        self.calls += 1
        self.now += next(self.durations)
        self.timing |= gc.isenabled() and self.calls > 3

    def __call__(self) -> float:
        return self.now


def test_clock_leaves_out_the_warm_up_and_gives_median_and_quartiles() -> None:
    timer = Clock([100.0] * 3 + [1.0, 2.0, 3.0, 4.0, 5.0])
    assert clock(timer.call, 3, 5, timer) == Timing(3000.0, 2000.0, 5)
    assert timer.calls == 8
    assert not timer.timing
    assert gc.isenabled()


def test_clock_defaults_to_ten_warm_ups_and_fifty_runs() -> None:
    timer = Clock([1.0])
    assert clock(timer.call, timer=timer).runs == 50
    assert timer.calls == 60


def test_clocks_goes_round_so_that_a_slower_machine_slows_all() -> None:
    now, order = [0.0], list[str]()

    def call(name: str, seconds: float) -> None:
        order.append(name)
        now[0] += seconds * (1 + 9 * (len(order) > 36))  # the machine is ten times slower after 36 calls

    calls = [partial(call, name, seconds) for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 1.0))]
    a, b, c = clocks(calls, warmup=1, runs=20, timer=lambda: now[0])
    assert (a, b.median_ms, a.runs) == (c, 2 * a.median_ms, 20)
    assert order[3:36] == ["a"] * 11 + ["b"] * 11 + ["c"] * 11
    assert a.median_ms > clock(partial(call, "a", 0.1), warmup=1, runs=20, timer=lambda: now[0]).median_ms


@pytest.mark.parametrize(("seconds", "runs"), [(5e-4, 100), (1e-9, 1000), (1e-3, 50)])
def test_clock_times_short_calls_more_often(seconds: float, runs: int) -> None:
    timer = Clock([seconds])
    assert clock(timer.call, timer=timer).runs == pytest.approx(runs, abs=1)


def test_clock_keeps_garbage_collection_as_it_was() -> None:
    gc.disable()
    try:
        clock(lambda: None, 0, 1)
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(ZeroDivisionError):
        clock(lambda: 1 // 0, 0, 1)
    assert gc.isenabled()


def test_latency_runs_the_batch_in_evaluation_mode_with_the_threads_asked_for() -> None:
    seen: list[tuple[object, ...]] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((len(x), self.training, torch.get_num_threads(), torch.is_inference_mode_enabled()))
            return x

    before = torch.get_num_threads()
    timer = itertools.count()
    metrics = Latency(threads=before + 1, batch=5, runs=7, timer=lambda: float(next(timer)))(Spy(), torch.rand(2, 3))
    assert metrics == {"latency_ms": 1000.0, "latency_iqr_ms": 0.0}
    assert set(seen) == {(5, False, before + 1, True)}
    assert len(seen) == 17
    assert torch.get_num_threads() == before


def test_torch_threads_are_restored_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), torch_threads(before + 1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def test_bad_settings_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="did you mean 'onnxruntime'"):
        Latency("onnx_runtime")
    with pytest.raises(InputError, match="at least 1"):
        Latency(threads=0)
    with pytest.raises(InputError, match="at least 1 run"):
        clock(lambda: None, runs=0)
    with pytest.raises(InputError, match="batch must be at least 1"):
        Memory(0)(nn.Linear(1, 1), torch.zeros(1, 1))
    with pytest.raises(InputError, match="no row"):
        Memory()(nn.Linear(1, 1), torch.zeros(0, 1))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "nasopt.cost.runtimes", raising=False)
    with pytest.raises(InputError, match=r"'onnxruntime'.*pip install 'nasopt\[onnx\]'"):
        Latency("onnxruntime")


# the kit

@pytest.mark.parametrize("model", [Count(), Memory(), Memory(3)])
def test_counting_models_conform(model: Count | Memory) -> None:
    check_cost_model(model)


def test_latency_conforms() -> None:
    check_cost_model(Latency(runs=2), monotone=False)


def _breaks(what: str) -> Callable[[nn.Module, Tensor], dict[str, float]]:
    calls = itertools.count()

    def model(net: nn.Module, example: Tensor) -> dict[str, float]:
        weight = next(net.parameters())
        match what:
            case "no metric":
                return {}
            case "latency = nan":
                return {"latency": np.nan}
            case "latency = -1":
                return {"latency": -1.0}
            case "weight":
                weight.data += 1
            case "mode":
                net.eval()
            case "gradient of":
                weight.grad = None
            case "requires_grad":
                weight.requires_grad = False
            case "example changed":
                example += 1
            case "thread count":
                torch.set_num_threads(torch.get_num_threads() + 1)
            case "random state":
                torch.rand(1)
            case "other metrics":
                return {f"latency{next(calls)}": 1.0}
            case "batch of":
                return {f"latency{len(example)}": 1.0}
            case "costs less":
                return {"latency": 1 / params(net)}
        return {"latency": 1.0}

    return model


@pytest.mark.parametrize("what", ["no metric", "latency = nan", "latency = -1", "weight", "mode", "gradient of",
                                  "requires_grad", "example changed", "thread count", "random state", "other metrics",
                                  "batch of", "costs less"])
def test_broken_models_fail_the_kit(what: str) -> None:
    with torch_threads(torch.get_num_threads()), pytest.raises(AssertionError, match=what):
        check_cost_model(_breaks(what))
    check_cost_model(_breaks("nothing"))


# -------------------------------------------------------------------------------------------- layers and receptive field
def test_layers_add_up_and_are_timed_once() -> None:
    asked: list[tuple[str, tuple[int, ...]]] = []

    def timer(layer: nn.Module, inputs: tuple[Tensor, ...], named: object) -> float:
        asked.append((type(layer).__name__, tuple(inputs[0].shape)))
        return 2.0 ** len(asked)

    model = Layers("some_ms", timer)
    net = nn.Sequential(Block(4), Block(4), nn.Conv2d(4, 8, 1)).eval()
    example = torch.rand(2, 4, 6, 6)
    assert model(net, example) == {"some_ms": 2 * (2 + 4 + 8 + 16) + 32}
    assert [name for name, _ in asked] == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "Conv2d"]
    assert model(net, example[:1]) == {"some_ms": 92.0}
    assert len(asked) == 5
    model(net, torch.rand(1, 4, 3, 3))
    assert len(asked) == 10, "another size is another layer"


def test_layers_with_named_inputs_and_several_outputs() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LSTM(4, 3), nn.Bilinear(3, 3, 2)

        def forward(self, x: Tensor) -> Tensor:
            out, (hidden, _) = self.first(x)
            return self.second(out, input2=hidden.expand_as(out))  # type: ignore[no-any-return]

    for timer in (forward_ms(), step_ms):
        assert Layers("ms", timer)(Pair().eval(), torch.rand(2, 4))["ms"] > 0


def test_layers_keep_the_promises_of_cost_models() -> None:
    check_cost_model(Layers("latency_ms", forward_ms()), monotone=False)


@pytest.mark.parametrize(("net", "expected"), [
    (nn.Conv2d(3, 16, 3, padding=1), 9),
    (nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)), 25),
    (nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1), nn.AdaptiveAvgPool2d(1)), 49),
    (nn.Sequential(nn.Conv2d(3, 16, 3, padding=2, dilation=2)), 25),
    (nn.Sequential(nn.Conv2d(3, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)), 1),
])
def test_the_receptive_field_of_the_last_map(net: nn.Module, expected: int) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert seen(net, torch.zeros(1, 3, 16, 16)) == expected / 256
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_a_network_without_maps_sees_everything() -> None:
    assert seen(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), torch.zeros(1, 3, 4, 4)) == 1.0
