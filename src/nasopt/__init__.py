"""nasopt: multi-objective neural architecture search, from data to a Pareto front of trained, exported networks."""
