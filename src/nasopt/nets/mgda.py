"""One direction in which several losses fall together: the shortest vector of the convex hull of their gradients.

Notation: gradients g (objectives, parameters), weights γ on the simplex, d = Σ γ_i g_i. At the shortest d, d·g_i ≥ ‖d‖² for
every i (Désidéri 2012): a short step along -d lowers every loss, and where d = 0 no direction does (Pareto stationary).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from nasopt.errors import InputError


def min_norm(gradients: Tensor) -> Tensor:
    """The weights γ (objectives,) of the shortest d (Sener & Koltun, NeurIPS 2018), up to rounding.

    With A the gradients as columns, ‖Au‖² + (Σu - 1)² over u = sγ ≥ 0 is least in s where it is N / (1 + N), N = ‖Aγ‖²: so its
    non-negative least squares are in the direction of γ (Lawson & Hanson 1974).

    Args:
        gradients: shape (objectives, parameters). γ changes if an objective is measured in another unit: see `unit`.

    Raises:
        InputError: not a matrix with at least one row.
        FloatingPointError: a gradient is not finite.
    """
    if gradients.ndim != 2 or len(gradients) < 1:
        raise InputError(f"gradients have the shape {tuple(gradients.shape)}: stack them, one row an objective.")
    g = gradients.detach().double().cpu().numpy()
    if not np.isfinite(g).all():
        raise FloatingPointError("a gradient is not finite: an objective's loss has diverged.")
    g = g / (np.linalg.norm(g, axis=1).max() or 1.0)
    matrix = np.concatenate([np.linalg.qr(g.T, mode="r"), np.ones((1, len(g)))])
    u, _ = nnls(matrix, np.eye(len(matrix))[-1])
    return torch.as_tensor(u / u.sum()).to(gradients)


def unit(gradients: Tensor) -> Tensor:
    """Every row at length 1, a row of zeros as it is: then the units of the objectives do not matter."""
    lengths = gradients.norm(dim=1, keepdim=True)
    return gradients / torch.where(lengths > 0, lengths, 1.0)
