"""nasopt: multi-objective neural architecture search, from a data set to a Pareto front of trained, exported networks."""
