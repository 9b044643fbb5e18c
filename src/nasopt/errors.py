"""The one exception for what a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input. The message, one sentence, names it and the remedy; the command line prints it and exits with 2."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> InputError:
    """The error for a name that is not among the valid ones, with the nearest of them.

    >>> str(unknown("objective", "latncy", ["error", "latency"]))
    "unknown objective 'latncy': did you mean 'latency'? Valid: error, latency."
    """
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else "it is none of the valid ones."
    return InputError(f"unknown {kind} {name!r}: {hint} Valid: {', '.join(valid)}.")
