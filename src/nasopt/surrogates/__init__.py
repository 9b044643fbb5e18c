"""Models that predict what was not evaluated: features of architectures, Gaussian processes, acquisition functions."""
