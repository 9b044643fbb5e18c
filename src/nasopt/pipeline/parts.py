"""What every phase of a run works with."""

from __future__ import annotations

from dataclasses import dataclass

from nasopt.pipeline.folder import Folder
from nasopt.pipeline.ledger import Ledger
from nasopt.pipeline.progress import Display
from nasopt.pipeline.setup import Setup
from nasopt.protocols import Storage


@dataclass(frozen=True, eq=False)
class Parts:
    """The set-up, the storage, the folder and the display of one run."""

    setup: Setup
    storage: Storage
    folder: Folder
    display: Display

    @property
    def ledger(self) -> Ledger:
        """What the run remembers."""
        return Ledger(self.storage)
