"""What a way of arming gives to the round protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from redirty.collector.linux.maps import Mappings
from redirty.collector.pageset import PageSet

Part = Callable[[Mappings], Mappings]


def whole(mappings: Mappings) -> Mappings:
    """The part that is all of it."""
    return mappings


class Armed(Protocol):
    """One address space that is write-protected again and again.

    stopped_s: for how long the target stood still, once, so that it could be armed.
    unarmed: how many of its writable mappings cannot be write-protected (a map of BPF's, memory
    under another userfaultfd and such).
    one_step: whether reading and protecting a page is one step, which no write comes between.
    moved_looks_written: whether memory that mremap has moved looks written.
    """

    stopped_s: float
    unarmed: int
    one_step: bool
    moved_looks_written: bool

    def arm(self, mappings: Mappings, present: PageSet | None = None) -> PageSet:
        """Write-protects every page. present: those known to be there, which makes it quicker.
        Returns candidates: every page that the page tables say was written since the arm before,
        and maybe some that were only mapped or read.

        Errors: GoneError.
        """

    def settle(self, candidates: PageSet, mappings: Mappings) -> tuple[PageSet, PageSet]:
        """Of the candidates: (those written, those that are present or swapped out).

        Errors: GoneError.
        """

    def doubt(self, mappings: Mappings) -> PageSet:
        """After an arm during which the log may lack a write: more candidates. None where reading
        and protecting a page is one step; else every page that can have been written between.

        Errors: GoneError.
        """

    def present(self, mappings: Mappings, first: int, last: int) -> PageSet:
        """Pages present or swapped out, of page numbers first to last exclusive.

        Errors: GoneError.
        """

    def close(self) -> None:
        """Lifts the write protection and lets go of the target."""
