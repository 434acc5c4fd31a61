"""Where pages go: the other end, over a connection or in a directory of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from redirty.collector.mirror.image.commit import PlacedProcess
from redirty.collector.pageset import U64, PageSet


class BrokenError(Exception):
    """The connection broke; what was not acknowledged is to be sent again."""


class PageSink(Protocol):
    """sent_bytes: all that went out. breaks: how often the connection broke. deadline: of
    CLOCK_MONOTONIC, after which no method waits any longer; None: none."""

    sent_bytes: int
    breaks: int
    deadline: float | None

    def declare(self, number: int, kind: str) -> None:
        """A source, from which pages will come."""

    def write(self, number: int, firsts: U64, lengths: U64, data: memoryview, raw: int) -> None:
        """Contents of runs of pages. raw: their size; of compressed data it differs from the data's."""

    def zero(self, number: int, firsts: U64, lengths: U64) -> None:
        """Runs of pages are zero, or not there."""

    def flush(self) -> None:
        """Waits until all is at the other end."""

    def reconnect(self) -> list[tuple[int, PageSet]]:
        """After a BrokenError: which pages were not acknowledged, by source. Errors: RedirtyError."""

    def digest(self) -> str:
        """Of all that is there."""

    def commit(
        self, processes: Sequence[PlacedProcess], machine: int, information: dict[str, Any]
    ) -> None:
        """Makes it a mirror. Errors: RedirtyError."""

    def close(self) -> None:
        """Lets go; without a commit there is no mirror."""
