"""Fronts, indicators and statistics of what a search found."""
