"""The shortest vector of a convex hull against the formula for two, enumerated faces and its defining inequality."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nasopt.errors import InputError
from nasopt.nets.mgda import min_norm, unit

F64 = torch.float64


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def shortest(g: np.ndarray) -> float:
    """Least length on the hull: over all faces, the least on the face's affine hull where its weights are not negative."""
    found = []
    for k in range(1, len(g) + 1):
        for face in itertools.combinations(range(len(g)), k):
            part = g[list(face)]
            edges = part[1:] - part[0]
            t = np.linalg.lstsq(edges.T, -part[0], rcond=None)[0] if k > 1 else np.zeros(0)
            weights = np.concatenate([[1 - t.sum()], t])
            if (weights >= -1e-12).all():
                found.append(float(np.linalg.norm(weights @ part)))
    return min(found)


def test_two_gradients_by_hand() -> None:
    g = torch.tensor([[1.0, 0.0], [-0.5, 1.0]], dtype=F64)
    weights = min_norm(g)
    d = weights @ g
    assert float(weights[0]) == pytest.approx(7 / 13, abs=1e-14)
    assert [*(g @ d).tolist(), float(d @ d)] == pytest.approx([4 / 13] * 3, abs=1e-14)


def test_two_gradients_are_the_clipped_formula() -> None:
    clipped = 0
    for seed in range(200):
        g = drawn(seed, 2, 2 + seed % 3) * torch.tensor([[1.0], [3.0]], dtype=F64)
        first = float((g[1] - g[0]) @ g[1] / ((g[0] - g[1]) @ (g[0] - g[1])))
        clipped += not 0 < first < 1
        assert float(min_norm(g)[0]) == pytest.approx(min(1.0, max(0.0, first)), abs=1e-10)
    assert 20 < clipped < 180


@pytest.mark.parametrize("objectives", [1, 2, 3, 4, 5])
def test_every_objective_falls_along_the_shortest_vector(objectives: int) -> None:
    for seed in range(100):
        g = 10.0 ** (8 * (seed % 3 - 1)) * drawn(seed, objectives, (2, 4, 30)[seed % 3])
        weights = min_norm(g)
        assert bool((weights >= 0).all()) and float(weights.sum()) == pytest.approx(1, abs=1e-12)
        d, size = weights @ g, float(g.norm())
        assert float((g @ d).min()) >= float(d @ d) - 1e-12 * size**2
        assert float(d.norm()) == pytest.approx(shortest(g.numpy()), abs=1e-12 * size)


def test_repeated_opposed_and_absent_gradients() -> None:
    g = drawn(0, 1, 4)
    for rows in (g.repeat(3, 1), torch.cat([g, 2 * g])):
        assert torch.allclose(min_norm(rows) @ rows, g[0], atol=1e-12)
    for rows in (torch.cat([g, -g]), torch.cat([g, 0 * g]), torch.zeros(3, 4, dtype=F64)):
        assert float((min_norm(rows) @ rows).norm()) <= 1e-12 and float(min_norm(rows).sum()) == pytest.approx(1)
    assert min_norm(g.float()).dtype == torch.float32


def test_with_unit_gradients_the_units_of_objectives_do_not_matter() -> None:
    g = drawn(3, 3, 6)
    scaled = g * torch.tensor([[1.0], [1e3], [1e-4]], dtype=F64)
    assert torch.allclose(min_norm(unit(g)), min_norm(unit(scaled)), atol=1e-10)
    assert float((min_norm(g) - min_norm(scaled)).abs().max()) > 0.1
    assert unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist() == [pytest.approx([0.6, 0.8]), [0.0, 0.0]]


def test_what_is_no_matrix_of_numbers_is_refused() -> None:
    for shape in ((4,), (0, 4), (2, 2, 2)):
        with pytest.raises(InputError, match="one row an objective"):
            min_norm(torch.ones(shape))
    for bad in (math.nan, math.inf):
        with pytest.raises(FloatingPointError, match="not finite"):
            min_norm(torch.tensor([[1.0, bad]]))
