"""The destination of pages: a receiver at the other end of a connection, or a local directory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from redirty.collector.mirror.image.process_image import PlacedProcess
from redirty.collector.pageset import U64, PageSet


class PageSink(Protocol):
    """Takes the pages of a mirror, and commits it.

    Attributes:
        deadline: CLOCK_MONOTONIC in seconds after which no method waits any longer; None: no deadline.
    """

    deadline: float | None

    @property
    def hashes(self) -> bool:
        """Whether digest() takes a seed."""

    @property
    def sent_bytes(self) -> int:
        """All bytes sent."""

    def declare(self, number: int, kind: str) -> None:
        """Declare a source (SPACE or FILE), before its first pages."""

    def write(
        self, number: int, firsts: U64, lengths: U64, data: memoryview, raw_bytes: int
    ) -> None:
        """Store the contents of runs of pages.

        Args:
            number: the source.
            firsts: (n,) the first page of each run.
            lengths: (n,) pages of each run.
            data: the contents, which are compressed if their size differs from `raw_bytes`.
            raw_bytes: the size of the pages.

        Raises:
            ConnectionLostError: the connection is lost.
            RedirtyError: the contents cannot be stored.
        """

    def zero(self, number: int, firsts: U64, lengths: U64) -> None:
        """Note that runs of pages are zero, or not mapped any more."""

    def flush(self) -> None:
        """Wait until everything is at the other end.

        Raises:
            ConnectionLostError: the connection is lost.
        """

    def reconnect(self) -> list[tuple[int, PageSet]]:
        """Connect again after a loss, and return by source the pages that were not acknowledged.

        Raises:
            RedirtyError: the connection cannot be re-established.
        """

    def digest(self, seed: int | None = None) -> str:
        """Return the digest of all contents at the other end, or with a seed that of the hashes of all pages.

        Raises:
            ConnectionLostError: the connection is lost.
        """

    def commit(
        self, processes: Sequence[PlacedProcess], machine: int, information: dict[str, Any]
    ) -> None:
        """Commit the mirror.

        Args:
            processes: the processes of the mirror, with their mappings and notes.
            machine: the ELF machine number.
            information: the contents of mirror.json but for its state.

        Raises:
            RedirtyError: the commit failed: the mirror was discarded.
            ConnectionLostError: the connection is lost, and the outcome unknown.
        """

    def close(self) -> None:
        """Release everything; without a commit the mirror is discarded."""
