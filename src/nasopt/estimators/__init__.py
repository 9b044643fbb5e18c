"""Performance estimation: what an architecture is worth."""
