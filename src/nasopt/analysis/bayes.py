"""Practical equivalence by the Bayesian signed-rank test: the one file that imports baycomp."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from nasopt import seed as seeds
from nasopt.errors import InputError

try:
    import baycomp
except ImportError as missing:
    raise InputError(f"a region of practical equivalence needs the package {missing.name!r}, which is not installed: "
                     "run pip install 'nasopt[compare]'.") from missing


def signed_rank(a: ArrayLike, b: ArrayLike, rope: float, seed: int = 0, samples: int = 10_000) -> tuple[float, float, float]:
    """The posterior probabilities that a is above b by more than ``rope``, that neither is above the other by more, and that b is
    above a by more (Benavoli et al., ICML 2014; Benavoli et al., JMLR 18:77, 2017).

    Args:
        a, b: paired values, (n,) each.
        rope: above 0, in their unit.
        samples: from the posterior; the probabilities have a standard error of at most 1 / (2 sqrt(samples)).
    """
    test = baycomp.SignedRankTest
    left, middle, right = test.probs(np.asarray(a, dtype=float), np.asarray(b, dtype=float), rope, nsamples=samples,
                                     random_state=seeds.integer(seed, 0, "bayes") % 2**32)
    return float(left), float(middle), float(right)
