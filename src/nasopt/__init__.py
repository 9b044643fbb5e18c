"""nasopt: multi-objective neural architecture search, from data to a Pareto front of trained, exported networks."""

__version__ = "0.1.0"
