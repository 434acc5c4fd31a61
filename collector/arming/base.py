"""The interface of an arming method to the round protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from redirty.collector.arming.protection import Protection
from redirty.collector.linux.maps import Mappings
from redirty.collector.pageset import PageSet

Part = Callable[[Mappings], Mappings]
"""A function that selects some of a process's mappings."""


def whole(mappings: Mappings) -> Mappings:
    """Select all mappings."""
    return mappings


class Presence(NamedTuple):
    """Pages that page tables show.

    Attributes:
        pages: Those present or swapped out.
        unowned: Those of them that belong to a file or to shared memory, and the kernel's zero pages. In a
            private mapping the others are the process's own.
    """

    pages: PageSet
    unowned: PageSet


class Armed(Protocol):
    """An address space that is write-protected repeatedly.

    Attributes:
        stopped_s: Seconds for which the target was stopped, once, to be armed.
        unarmed: Number of its writable mappings that cannot be write-protected (such as a BPF map, or
            memory under another userfaultfd).
        one_step: Whether reading and protecting a page is one step, with no write in between.
        moved_looks_written: Whether memory that mremap has moved looks written.
        protection: The course of the latest arm; None before the first.
    """

    stopped_s: float
    unarmed: int
    one_step: bool
    moved_looks_written: bool
    protection: Protection | None

    def arm(self, mappings: Mappings, present: PageSet | None = None) -> PageSet:
        """Write-protect every page.

        Args:
            mappings: The current mappings.
            present: Pages known to be present, which makes it quicker.

        Returns:
            Candidates: every page that the page tables show as written since the previous arm, and
            possibly some that were only mapped or read.

        Raises:
            GoneError: The memory is gone.
        """

    def resolve(self, candidates: PageSet, mappings: Mappings) -> tuple[PageSet, PageSet]:
        """Split candidates into (those written, those present or swapped out).

        Raises:
            GoneError: The memory is gone.
        """

    def assume_dirty(self, mappings: Mappings) -> PageSet:
        """Return more candidates after an arm during which the log may have missed a write.

        No page where reading and protecting a page is one step; else every page that may have been
        written in between.

        Raises:
            GoneError: The memory is gone.
        """

    def present(self, mappings: Mappings, first: int, last: int) -> Presence:
        """Read which pages are present or swapped out, of page numbers first to last exclusive.

        Raises:
            GoneError: The memory is gone.
        """

    def close(self) -> None:
        """Lift the write protection and release the target."""
