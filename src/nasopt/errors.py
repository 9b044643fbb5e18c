"""What a user can mend (`InputError`, `ExportError`), and a failed evaluation that still knows something (`EstimateError`)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class InputError(ValueError):
    """Bad input. The message, one sentence, names it and the remedy; the command line prints it and exits with 2."""


class ExportError(InputError):
    """A network that no file can hold."""


class DiskError(InputError):
    """A disk that is full or failing."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> InputError:
    """The error for a name that is not among the valid ones, with the nearest of them.

    >>> str(unknown("objective", "latncy", ["error", "latency"]))
    "unknown objective 'latncy': did you mean 'latency'? Valid: error, latency."
    """
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else "it is none of the valid ones."
    return InputError(f"unknown {kind} {name!r}: {hint} Valid: {', '.join(valid)}.")


class EstimateError(Exception):
    """An evaluation that failed after some metrics were known: the trial keeps them beside the error."""

    def __init__(self, message: str, metrics: Mapping[str, float]) -> None:
        super().__init__(message, metrics)
        self.metrics = dict(metrics)

    def __str__(self) -> str:
        return str(self.args[0])


def one_line(error: BaseException) -> str:
    """An exception as one line of at most 500 characters, ``ValueError: what it says``.

    >>> one_line(ValueError("two\\nlines"))
    'ValueError: two lines'
    """
    text = str(error) if isinstance(error, EstimateError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split()).rstrip(":")[:500]
