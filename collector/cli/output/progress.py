"""The progress of a recording on a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from redirty.collector.units import show_pages

if TYPE_CHECKING:
    from redirty.collector.tracking.rounds import Round


class RecordProgressLine:
    """A line on stderr, rewritten each round; nothing if that is not a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._on = not quiet and sys.stderr.isatty()
        self._shown = False
        self._lost = 0
        self._percent = -1

    def show(self, result: Round) -> None:
        """Show the rates of a round."""
        if not self._on:
            return
        from redirty.collector.metrics.page_counts import rates

        dirty = sum(len(s.dirty) for s in result.spaces)
        redirtied = sum(len(s.redirtied) for s in result.spaces)
        missed = sum(len(s.missed) for s in result.spaces)
        self._lost += int(result.stats["lost"].sum() + result.stats["lost_events"].sum())
        r = rates(dirty, redirtied, 0, result.duration_s)
        line = (
            f"round {result.number}  dirty {show_pages(r.dirty_pages)}/s  "
            f"re-dirtied {show_pages(r.redirtied_pages)}/s  missed {missed}  lost {self._lost}"
        )
        print(f"\r{line:<78}", end="", file=sys.stderr, flush=True)
        self._shown = True

    def show_counting(self, share: float) -> None:
        """Show the share of the memory that has been searched for zero pages."""
        if self._on and int(share * 100) != self._percent:
            self._percent = int(share * 100)
            line = f"counting zero pages: {self._percent} %"
            print(f"\r{line:<78}", end="", file=sys.stderr, flush=True)
            self._shown = True

    def end(self) -> None:
        """Leave the line on the screen and start a new one."""
        if self._shown:
            print(file=sys.stderr)
            self._shown = False
