"""The only source of randomness: a generator for every (seed, number, stream), so that no stream is ever saved."""

from __future__ import annotations

import zlib

import numpy as np


def rng(seed: int, number: int, stream: str) -> np.random.Generator:
    """A numpy generator that depends on its three arguments alone (counter based: Philox, Salmon et al., SC 2011).

    Args:
        seed: the run's seed, at least 0.
        number: what is counted within the stream (an ask, an epoch, a generation), at least 0.
        stream: what the numbers are for, e.g. ``"mutation"``.
    """
    return np.random.Generator(np.random.Philox(key=integer(seed, number, stream)))


def integer(seed: int, number: int, stream: str) -> int:
    """A 63-bit integer for libraries that take a seed, from the same three arguments."""
    if seed < 0 or number < 0:
        raise ValueError(f"seed and number must be at least 0, got {seed} and {number}.")
    entropy = np.random.SeedSequence([seed, number, zlib.crc32(stream.encode())])
    return int(entropy.generate_state(1, np.uint64)[0] >> 1)
