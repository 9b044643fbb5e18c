"""What users write for metrics, objectives, constraints and durations."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasopt import goals
from nasopt.errors import InputError
from nasopt.trial import Constraint, Objective

NAMES = [m.name for m in goals.METRICS if m.choosable]
POSITIVE = st.floats(1e-6, 1e6, allow_nan=False)


def test_objectives_become_keys_and_units_in_the_order_given() -> None:
    assert goals.parse_objectives("memory, Error,latency_onnx") == (
        Objective("memory_mb", "MB"), Objective("error"), Objective("latency_onnx_ms", "ms"))


@pytest.mark.parametrize(("text", "part"), [
    ("", "name no metric"), (" , ", "name no metric"), ("error,error", "twice"), ("latency,latency_ms", "twice"),
    ("errr", "did you mean 'error'"), ("test_error", "Valid: error, flops"), ("latency_iqr", "Valid: error, flops"),
])
def test_bad_objectives_are_refused_with_a_remedy(text: str, part: str) -> None:
    with pytest.raises(InputError, match=part):
        goals.parse_objectives(text)


# Worked by hand: 200 us = 0.2 ms; 1 MB = 1e6 bytes = 1000 KB; 5 % = 0.05.
@pytest.mark.parametrize(("text", "key", "upper"), [
    ("latency<=2ms", "latency_ms", 2.0), ("latency < 200 us", "latency_ms", 0.2), ("latency≤0.5s", "latency_ms", 500.0),
    ("latency_ms <= 2 MS", "latency_ms", 2.0), ("latency_onnx<=2µs", "latency_onnx_ms", 0.002),
    ("memory<=800KB", "memory_mb", 0.8), ("memory<=1gb", "memory_mb", 1000.0), ("size<=500B", "size_mb", 0.0005),
    ("params<=1.5M", "params", 1.5e6), ("params<=1500", "params", 1500.0), ("flops<=2G", "flops", 2e9),
    ("flops<=3k", "flops", 3e3), ("error<=5%", "error", 0.05), ("error<=.5", "error", 0.5),
    ("error<=100 %", "error", 1.0),
])
def test_constraints(text: str, key: str, upper: float) -> None:
    c = goals.parse_constraint(text)
    assert (c.name, c.upper) == (key, pytest.approx(upper, rel=1e-12))


@pytest.mark.parametrize(("text", "part"), [
    ("", "not an upper bound"), ("latency", "not an upper bound"), ("latency>=2ms", "not an upper bound"),
    ("latency<=-2ms", "above 0"), ("latency<=nan", "above 0"), ("latency<=inf", "above 0"), ("latency<=0ms", "above 0"),
    ("latency<=1e400ms", "above 0"), ("latency<=2", "no unit.*latency<=2ms"), ("memory<=2", "no unit.*memory<=4MB"),
    ("latency<=2MB", "'MB', but 'latency' has us, ms, s"), ("params<=2ms", "'ms', but 'params' has K, M, G"),
    ("latncy<=2ms", "did you mean 'latency'"), ("test_error<=5%", "Valid: error"), ("error<=5", "'error<=5%'"),
    ("error<=101%", "more than 100%"), ("latency<=2ms<=3ms", "not an upper bound"),
    ("2ms<=latency", "not an upper bound"),
])
def test_bad_constraints_are_refused_with_a_remedy(text: str, part: str) -> None:
    with pytest.raises(InputError, match=part):
        goals.parse_constraint(text)


@given(st.text())
def test_any_text_is_a_bound_above_zero_or_refused(text: str) -> None:
    try:
        bound = goals.parse_constraint(text)
    except InputError:
        return
    assert bound.upper > 0


@given(st.sampled_from(NAMES), POSITIVE)
def test_a_printed_constraint_reads_back(name: str, upper: float) -> None:
    m = goals.metric(name)
    bound = min(upper, 1.0) if m.kind == "share" else upper
    back = goals.parse_constraint(str(Constraint(m.key, bound, m.unit)))
    assert (back.name, back.unit) == (m.key, m.unit)
    assert back.upper == pytest.approx(bound, rel=1e-5)  # it prints six digits


@given(st.sampled_from(NAMES), st.floats(1e-4, 1e12))
def test_a_printed_value_reads_back(name: str, value: float) -> None:
    m = goals.metric(name)
    exact = min(value, 1.0) if m.kind == "share" else value
    printed = goals.format_metric(name, exact)
    if printed in ("0.00 %", "0.01 %"):  # a percentage has two digits behind the point
        assert exact < 1.5e-4 + 1e-12
        return
    if m.kind == "count" and exact < 1e-3:
        return
    slack = 5e-5 / exact if m.kind == "share" else 0.0
    assert goals.parse_constraint(f"{name} <= {printed}").upper == pytest.approx(exact, rel=6e-3 + slack)


@pytest.mark.parametrize(("name", "value", "text"), [
    ("latency", 1.2345, "1.23 ms"), ("latency_ms", 1234.5, "1.23 s"), ("latency", 0.0012, "1.2 us"),
    ("params", 450_000, "0.45 M"), ("params", 45_321, "45.3 K"), ("params", 7, "7"), ("flops", 3.2e9, "3.2 G"),
    ("flops", 0, "0"), ("error", 0.04173, "4.17 %"), ("test_error", 1.0, "100.00 %"), ("size", 0.0005, "500 B"),
    ("memory_mb", 12.34, "12.3 MB"), ("size", 1500, "1.5 GB"), ("latency", None, "–"), ("latency", math.nan, "–"),
    ("latency", math.inf, "inf"), ("energy", 3.14159, "3.14"), ("energy", 12345.6, "12346"), ("energy", 999.6, "1000"),
])
def test_values_are_printed_with_units_and_three_digits(name: str, value: float | None, text: str) -> None:
    assert goals.format_metric(name, value) == text


@pytest.mark.parametrize(("text", "seconds"), [
    ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("1H 30M", 5400), ("240", 240), (" 2.5 ", 2.5), ("1.5h", 5400),
    ("2d", 172800), ("1d1s", 86401),
])
def test_durations(text: str, seconds: float) -> None:
    assert goals.parse_duration(text) == seconds


@pytest.mark.parametrize("text", [
    "", "0", "0s", "-3", "-3s", "nan", "inf", "h", "30m1h", "1h30", "5 parsecs", "1s1s", "9" * 400,
])
def test_bad_durations_are_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(InputError, match="above 0: write for example '90s'"):
        goals.parse_duration(text)


@given(*(st.integers(0, 99) for _ in range(4)))
def test_a_duration_is_the_sum_of_its_parts(d: int, h: int, m: int, s: int) -> None:
    text = f"{d}d{h}h{m}m{s}s"
    total = ((d * 24 + h) * 60 + m) * 60 + s
    if total:
        assert goals.parse_duration(text) == total
    else:
        with pytest.raises(InputError):
            goals.parse_duration(text)


@pytest.mark.parametrize(("text", "size"), [("64", (64, 64)), ("48x64", (48, 64)), (" 8X6 ", (8, 6))])
def test_image_sizes(text: str, size: tuple[int, int]) -> None:
    assert goals.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "0", "64x", "x64", "64x0", "3x4x5", "-8", "6.5", "large", "²"])
def test_bad_image_sizes_are_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(InputError, match="is not in pixels: write for example '64', or '48x64'"):
        goals.parse_size(text)


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.5 %", 0.005), ("0.25", 0.25), (" 12.5%", 0.125)])
def test_shares(text: str, share: float) -> None:
    assert goals.parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "0", "1", "100%", "-1%", "nan", "a few", "inf"])
def test_bad_shares_are_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(InputError, match="between 0 and 1: write for example"):
        goals.parse_share(text)
