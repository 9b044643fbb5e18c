"""What a network costs: counts, latency, memory. Every cost model is a `nasopt.protocols.CostModel`."""
