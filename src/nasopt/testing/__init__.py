"""Conformance kits, one a seam: what every strategy, estimator, storage and executor must pass, third-party ones included."""
