"""The seams. Everything plugs into one of these; each is as narrow as it can be, and `nasopt.testing` checks each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from nasopt.trial import Ask, Metrics, Trial


@runtime_checkable
class Strategy(Protocol):
    """Proposes architectures. Its whole state follows from its constructor's arguments and the calls made to it."""

    def ask(self, n: int, first: int) -> Sequence[Ask]:
        """Up to ``n`` asks, numbered ``first``, ``first + 1``, ... An empty answer means "tell me something first"
        (or, when nothing is pending, "the space is exhausted") and leaves the state unchanged."""
        ...

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes trials in any order, failed ones and those of other strategies included."""
        ...


class Estimator(Protocol):
    """Measures an architecture. May raise anything: the loop turns it into a trial with an error."""

    def __call__(self, ask: Ask, /) -> Metrics: ...


class Executor(Protocol):
    """Runs an estimator on asks, here or elsewhere. Never raises for what a candidate does."""

    def free(self) -> int:
        """How many asks can be submitted now without waiting."""
        ...

    def submit(self, ask: Ask, estimate: Estimator) -> None:
        """Starts one evaluation."""
        ...

    def wait(self) -> list[Trial]:
        """Blocks until at least one evaluation has ended and returns all that have; [] if none is under way."""
        ...

    def close(self) -> None:
        """Ends what is running and frees what it held."""
        ...


Event: TypeAlias = tuple[str, dict[str, Any]]
"""A kind and a JSON body."""


class Storage(Protocol):
    """An append-only log of events and a small table of blobs. What `append` returned from survives the process."""

    def append(self, events: Sequence[Event]) -> None:
        """Adds events durably, all or none."""
        ...

    def events(self) -> Iterator[Event]:
        """All events in the order of their appending."""
        ...

    def put(self, name: str, blob: bytes) -> None:
        """Stores a blob durably, replacing an earlier one of that name."""
        ...

    def get(self, name: str) -> bytes | None:
        """The blob of that name, or None."""
        ...

    def close(self) -> None:
        """Releases the storage."""
        ...


class CostModel(Protocol):
    """Measures a network (a ``torch.nn.Module`` in evaluation mode) on an example input (batch first)."""

    def __call__(self, net: Any, example: Any, /) -> Metrics: ...
