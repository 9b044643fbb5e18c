"""Costs of a mixture that gradients can follow: an expectation where a cost adds up, a smooth maximum where it peaks."""

from __future__ import annotations

import math

from torch import Tensor

from nasopt.errors import InputError


def expected(weights: Tensor, table: Tensor) -> Tensor:
    """Σ_e Σ_o p_eo · c_eo, scalar: the mean cost of the architectures whose options are drawn independently with probabilities p.

    Exact for a cost that is the sum of its parts, and for no other (Cai et al., ProxylessNAS, ICLR 2019).

    Args:
        weights: p, (..., options).
        table: the cost of every option in its place, of the same shape.

    Raises:
        InputError: the shapes differ.
    """
    if weights.shape != table.shape:
        raise InputError(f"weights have the shape {tuple(weights.shape)}, costs {tuple(table.shape)}: give every option a cost.")
    return (weights * table).sum()


def smooth_peak(values: Tensor, temperature: float) -> Tensor:
    """τ · ln Σ_t exp(m_t / τ), scalar: at least the maximum of the T values and at most τ ln T above it, such as the peak of
    memory over the times t.

    Args:
        values: m, (T,).
        temperature: τ, above 0, in the unit of the values.

    Raises:
        InputError: a temperature that is not above 0.
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"the temperature of a smooth peak is {temperature}: give a number above 0, in the unit of the values.")
    return temperature * (values / temperature).logsumexp(0)
