"""Relaxations against definitions, quantiles and laws; regularisers, schedules and expected costs against closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import optimize, special
from scipy import stats as scipy_stats
from torch import Generator, Tensor

from nasopt.errors import InputError
from nasopt.nets.expected import expected, smooth_peak
from nasopt.nets.relax import (
    RELAXATIONS,
    Regulariser,
    anchor,
    beta_decay,
    concentration,
    constant,
    dirichlet,
    entropy,
    exponential,
    fairness,
    gumbel,
    gumbel_hard,
    linear,
    pair,
    sawtooth,
    sigmoid,
    softmax,
    sparsemax,
)

F64 = torch.float64
DETERMINISTIC = {"softmax", "sparsemax", "sigmoid"}
SUM_TO_ONE = {"softmax", "sparsemax", "gumbel", "gumbel_hard", "pair", "dirichlet"}


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 1, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=seeded(seed)).to(dtype)


def difference(f: Callable[[Tensor], Tensor], x: Tensor, h: float = 1e-5) -> Tensor:
    """The gradient of a scalar function by central differences."""
    steps = h * torch.eye(x.numel(), dtype=x.dtype).reshape(-1, *x.shape)
    return torch.stack([(f(x + s) - f(x - s)) / (2 * h) for s in steps]).reshape(x.shape)


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


# ---------------------------------------------------------------------------------------------------------- relaxations
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", RELAXATIONS)
def test_weights_are_what_the_table_says(name: str, dtype: torch.dtype) -> None:
    alpha = drawn(50, 3, 4, dtype=dtype)
    for temperature in (0.1, 1.0, 10.0):
        weights = RELAXATIONS[name](alpha, temperature, seeded())
        assert weights.shape == alpha.shape and weights.dtype == dtype and bool((weights >= 0).all())
        sums = weights.sum(-1)
        assert bool(((sums - 1).abs() < 1e-6).all()) == (name in SUM_TO_ONE)
        generator = seeded()
        again = RELAXATIONS[name](alpha, temperature, generator)
        assert torch.equal(weights, again)
        assert torch.equal(generator.get_state(), seeded().get_state()) == (name in DETERMINISTIC)
        assert torch.equal(RELAXATIONS[name](alpha, temperature, generator), weights) == (name in DETERMINISTIC)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="give a number above 0"):
            RELAXATIONS[name](alpha, temperature, seeded())


@pytest.mark.parametrize("name", ["softmax", "sparsemax", "sigmoid", "gumbel", "pair"])
def test_gradients_are_central_differences(name: str) -> None:
    alpha, into = drawn(3, 4), drawn(3, 4, seed=2)
    for temperature in (0.5, 1.0, 2.0):
        def f(x: Tensor, t: float = temperature) -> Tensor:
            return (into * RELAXATIONS[name](x, t, seeded(5)) ** 2).sum()

        assert float((gradient(f, alpha) - difference(f, alpha)).abs().max()) <= 1e-6


def test_deterministic_relaxations_are_their_formulas() -> None:
    alpha = drawn(3, 4)
    assert torch.allclose(softmax(alpha, 0.5, seeded()), (2 * alpha).exp() / (2 * alpha).exp().sum(-1, keepdim=True), atol=1e-15)
    assert torch.allclose(sigmoid(alpha, 0.5, seeded()), 1 / (1 + (-2 * alpha).exp()), atol=1e-15)


def test_sparsemax_is_the_nearest_point_of_the_simplex() -> None:
    """Against the threshold found by bisection, with no, some and all options in the support."""
    supports = set()
    for alpha in drawn(60, 5) * torch.logspace(-2, 1, 60, dtype=F64)[:, None]:
        z = alpha.numpy() / 0.7
        threshold = optimize.brentq(lambda t, z=z: np.maximum(z - t, 0).sum() - 1, z.min() - 1, z.max(), xtol=1e-14)
        found = sparsemax(alpha, 0.7, seeded()).numpy()
        np.testing.assert_allclose(found, np.maximum(z - threshold, 0), atol=1e-12)
        supports.add(int((found > 0).sum()))
    assert supports == {1, 2, 3, 4, 5}


def test_gumbel_draws_the_categorical_law_and_hard_is_its_winner() -> None:
    alpha = torch.tensor([0.0, 1.0, -1.0, 0.5], dtype=F64)
    many = alpha.expand(20_000, 4)
    for temperature in (0.1, 3.0):
        soft, hard = gumbel(many, temperature, seeded()), gumbel_hard(many, temperature, seeded())
        assert set(hard.unique().tolist()) == {0.0, 1.0} and bool((hard.sum(-1) == 1).all())
        assert torch.equal(hard.argmax(-1), soft.argmax(-1))
        assert scipy_stats.chisquare(hard.sum(0).numpy(), 20_000 * alpha.softmax(0).numpy()).pvalue > 1e-3
    cold, hot = (gumbel(many, t, seeded()).max(-1).values.mean() for t in (0.1, 3.0))
    assert float(cold) > float(hot) + 0.3


def test_gumbel_hard_has_the_gradient_of_gumbel() -> None:
    alpha, into = drawn(3, 4), drawn(3, 4, seed=2)
    hard, soft = (gradient(lambda x, f=f: (into * f(x, 0.7, seeded(5))).sum(), alpha) for f in (gumbel_hard, gumbel))
    assert torch.equal(hard, soft) and float(soft.abs().max()) > 0.01


def test_pair_draws_two_without_replacement_and_weighs_them_by_their_probabilities() -> None:
    """The first with its probability, the second with its probability among the others."""
    alpha = torch.tensor([0.0, 1.0, -1.0, 0.5], dtype=F64)
    p = (alpha / 2).softmax(0).numpy()
    found = pair(alpha.expand(20_000, 4), 2.0, seeded())
    assert bool(((found > 0).sum(-1) == 2).all())
    pairs = [(i, j) for i in range(4) for j in range(i)]
    chances = [p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]) for i, j in pairs]
    counts = [int(((found[:, i] > 0) & (found[:, j] > 0)).sum()) for i, j in pairs]
    assert scipy_stats.chisquare(counts, 20_000 * np.array(chances)).pvalue > 1e-3
    for i, j in pairs:
        here = found[(found[:, i] > 0) & (found[:, j] > 0)]
        assert torch.allclose(here[:, i], torch.tensor(p[i] / (p[i] + p[j]), dtype=F64), rtol=1e-12)
    two, one = drawn(3, 2), drawn(3, 1)
    assert torch.allclose(pair(two, 0.5, seeded()), softmax(two, 0.5, seeded()), rtol=1e-12)
    assert torch.equal(pair(one, 0.5, seeded()), torch.ones_like(one))


def test_dirichlet_draws_its_law() -> None:
    alpha = torch.tensor([0.5, -1.0, 1.5], dtype=F64)
    c = torch.where(alpha > 0, alpha + 1, alpha.exp()).numpy()
    np.testing.assert_allclose(concentration(alpha).numpy(), c, rtol=1e-15)
    for temperature in (0.3, 1.0, 5.0):
        found = dirichlet(alpha.expand(20_000, 3), temperature, seeded()).numpy()
        law = scipy_stats.dirichlet(temperature * c)
        assert (np.abs(found.mean(0) - law.mean()) <= 4 * np.sqrt(law.var() / 20_000)).all()
        for column, own in zip(found.T, temperature * c, strict=True):
            assert scipy_stats.kstest(column, scipy_stats.beta(own, temperature * c.sum() - own).cdf).pvalue > 1e-3


def test_a_concentration_does_not_cancel_and_has_slope_one_at_its_start() -> None:
    alpha = torch.tensor([-30.0, 0.0, 2.0], requires_grad=True)
    c = concentration(alpha)
    assert c.tolist() == pytest.approx([math.exp(-30), 1.0, 3.0], rel=1e-6, abs=0)
    assert torch.autograd.grad(c.sum(), alpha)[0].tolist() == pytest.approx([math.exp(-30), 1.0, 1.0], rel=1e-6, abs=0)


def test_small_concentrations_do_not_all_draw_the_least_number() -> None:
    """Then all weights of a row would be alike, in single precision in 4 % of these rows."""
    weights = dirichlet(torch.full((2000, 4), -4.0), 0.5, seeded())
    assert bool((weights.max(-1).values > weights.min(-1).values).all())


def test_the_gradient_of_a_dirichlet_draw_moves_along_its_gamma_quantiles() -> None:
    """Sample by sample: the same quantiles at other concentrations, by scipy; torch's kernel is a fit."""
    alpha, into = drawn(200, 3), drawn(200, 3, seed=2).numpy()
    c = concentration(alpha).numpy()
    draws = torch._standard_gamma(torch.as_tensor(c), generator=seeded(5)).numpy()
    quantile = special.gammainc(c, draws)

    def moved(c: np.ndarray) -> np.ndarray:
        g = special.gammaincinv(c, quantile)
        return np.asarray((into * g / g.sum(-1, keepdims=True)).sum(-1))

    np.testing.assert_allclose(moved(c), (torch.as_tensor(into) * dirichlet(alpha, 1.0, seeded(5))).sum(-1).numpy(), rtol=1e-8)
    found, h = gradient(lambda x: (torch.as_tensor(into) * dirichlet(x, 1.0, seeded(5))).sum(), alpha).numpy(), 1e-5
    slope = torch.where(alpha > 0, 1.0, alpha.exp()).numpy()
    exact = np.stack([(moved(c + h * e) - moved(c - h * e)) / (2 * h) for e in np.eye(3)], axis=-1) * slope
    assert np.linalg.norm(found - exact) <= 1e-4 * np.linalg.norm(exact)


def test_the_gradient_of_dirichlet_is_that_of_its_mean_square() -> None:
    """E x_i² = c_i (c_i + 1) / (s (s + 1)), s = Σc: the mean of 100,000 gradients within 4 standard errors."""
    alpha, into, n = torch.tensor([0.5, -1.0, 1.5], dtype=F64), torch.tensor([1.0, -2.0, 0.5], dtype=F64), 100_000

    def mean(x: Tensor) -> Tensor:
        c = 2 * concentration(x)
        return (into * c * (c + 1)).sum() / (c.sum() * (c.sum() + 1))

    draws = gradient(lambda x: (into * dirichlet(x, 2.0, seeded()) ** 2).sum(), alpha.expand(n, 3))
    error = draws.std(0) / math.sqrt(n)
    assert bool(((draws.mean(0) - gradient(mean, alpha)).abs() <= 4 * error).all()) and float(error.max()) < 2e-3


# --------------------------------------------------------------------------------------------------------- regularisers
@pytest.mark.parametrize("regulariser", [beta_decay, fairness, entropy, anchor])
def test_regularisers_are_means_with_gradients_of_central_differences(regulariser: Regulariser) -> None:
    alpha = drawn(3, 4)
    value = regulariser(alpha)
    assert value.ndim == 0
    assert float(value) == pytest.approx(float(sum(regulariser(row) for row in alpha) / 3), rel=1e-14)
    assert float(value) == pytest.approx(float(regulariser(alpha.repeat(2, 1, 1))), rel=1e-14)
    assert float((gradient(regulariser, alpha) - difference(regulariser, alpha)).abs().max()) <= 1e-6


def test_regularisers_have_the_values_of_their_formulas() -> None:
    alpha = torch.tensor([[0.0, math.log(3)]], dtype=F64)
    assert float(beta_decay(alpha)) == pytest.approx(math.log(4))
    assert torch.allclose(gradient(beta_decay, alpha), alpha.softmax(-1))
    assert float(fairness(alpha)) == pytest.approx(-(0 + 0.25**2) / 2)
    assert float(entropy(alpha)) == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert float(entropy(torch.zeros(2, 5))) == pytest.approx(math.log(5))
    assert float(anchor(torch.zeros(2, 5))) == pytest.approx(0, abs=1e-6)
    c = np.array([1.0, 1 + math.log(3)])  # E ln p(x) - ln q(x), ln q = ln Γ(2) = 0
    kl = special.gammaln(c.sum()) - special.gammaln(c).sum() + ((c - 1) * (special.psi(c) - special.psi(c.sum()))).sum()
    assert float(anchor(alpha)) == pytest.approx(kl, rel=1e-12) and kl > 0.1


# ------------------------------------------------------------------------------------------------------------ schedules
def test_schedules_begin_and_end_where_they_are_told() -> None:
    assert [constant(3.0)(t) for t in (0.0, 0.5, 1.0)] == [3.0] * 3
    assert [linear(10.0, 0.1)(t) for t in (0.0, 0.5, 1.0)] == pytest.approx([10.0, 5.05, 0.1])
    assert [sawtooth(0.3, 0.6)(t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([0.3, 0.15, 0.6, 0.3, 0.0])
    assert [exponential(10.0, 0.1)(t) for t in (0.0, 0.5, 1.0)] == pytest.approx([10.0, 1.0, 0.1])
    for start, end in ((0.0, 1.0), (1.0, 0.0)):
        with pytest.raises(InputError, match="two numbers above 0"):
            exponential(start, end)


# ------------------------------------------------------------------------------------------------------- expected costs
def test_expected_cost_is_the_mean_over_all_architectures() -> None:
    p, table = drawn(5, 3).softmax(-1), drawn(5, 3, seed=2).exp()
    mean = sum(math.prod(float(p[e, o]) for e, o in enumerate(arch)) * sum(float(table[e, o]) for e, o in enumerate(arch))
               for arch in itertools.product(range(3), repeat=5))
    assert float(expected(p, table)) == pytest.approx(mean, rel=1e-12)
    assert torch.allclose(gradient(lambda x: expected(x, table), p), table)
    with pytest.raises(InputError, match="give every option a cost"):
        expected(p, table[0])


def test_a_smooth_peak_is_above_the_peak_by_at_most_its_bound() -> None:
    for seed, temperature in itertools.product(range(20), (0.01, 0.5, 20.0)):
        values = 100 * drawn(9, seed=seed)
        above = float(smooth_peak(values, temperature) - values.max())
        assert 0 <= above <= temperature * math.log(9) + 1e-12
    assert float(smooth_peak(torch.full((9,), 7.0, dtype=F64), 0.5)) == pytest.approx(7 + 0.5 * math.log(9), rel=1e-14)
    values = drawn(9)
    assert torch.allclose(gradient(lambda m: smooth_peak(m, 0.5), values), (2 * values).softmax(0))
    for temperature in (0.0, -1.0, math.inf):
        with pytest.raises(InputError, match="above 0"):
            smooth_peak(values, temperature)
