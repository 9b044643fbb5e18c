"""nasopt: multi-objective neural architecture search, from data to a Pareto front of trained, exported networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["resume", "search", "tune"]

if TYPE_CHECKING:
    from nasopt.job import resume, search, tune


def __getattr__(name: str) -> object:
    """Loads the main job, and torch with it, when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'nasopt' has no attribute {name!r}")
    from nasopt import job

    return getattr(job, name)
