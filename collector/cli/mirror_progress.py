"""Show the progress of a mirror."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from redirty.collector.units import (
    show_bits,
    show_bytes,
    show_pages,
    show_time,
)

if TYPE_CHECKING:
    from redirty.collector.mirror.decision import Decision
    from redirty.collector.mirror.observer import PassReport, ProgressReport
    from redirty.collector.mirror.state import MirrorState
    from redirty.collector.tracking.rounds import Round


class MirrorProgressLine:
    """A line a pass, and on a terminal one that is rewritten while a pass goes on."""

    def __init__(self, *, quiet: bool) -> None:
        self._on = not quiet
        self._terminal = self._on and sys.stderr.isatty()
        self._shown = False

    def _line(self, text: str) -> None:
        if self._on:
            self.end()
            print(text, file=sys.stderr, flush=True)

    def passed(self, done: PassReport, state: MirrorState, result: Round) -> None:
        """See MirrorObserver."""
        c = done.counts
        rate = done.bytes / done.duration_s if done.duration_s > 0 else 0.0
        dirty = done.dirty_pages / result.duration_s if result.duration_s > 0 else 0.0
        kept = f", {show_pages(done.held_pages)} kept for the end" if done.held_pages else ""
        self._line(
            f"pass {done.number}: {show_pages(c.sent_pages)} in {show_time(done.duration_s)} "
            f"({show_bits(rate)}), zero {show_pages(c.zero_pages)}, unchanged "
            f"{show_pages(c.unchanged_pages)}{kept}; dirty {show_pages(dirty)}/s"
        )

    def decided(self, decision: Decision) -> None:
        """See MirrorObserver."""
        words = {"pass": "another pass", "quiesce": "stop it now", "give up": "give up"}
        self._line(f"  {words[decision.action]}: {decision.reason}")

    def said(self, text: str) -> None:
        """See MirrorObserver."""
        self._line(f"  {text}")

    def going(self, now: ProgressReport) -> None:
        """See MirrorObserver."""
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{going_line(now)[:width]:<{width}}", end="", file=sys.stderr, flush=True)
            self._shown = True

    def end(self) -> None:
        """Leaves the line as it is."""
        if self._shown:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{'':<{width}}\r", end="", file=sys.stderr)
            self._shown = False


def going_line(now: ProgressReport) -> str:
    """How a pass goes on, in words; the most important ones first."""
    share = now.done_pages / now.pages if now.pages else 1.0
    words = [f"pass {now.number}: {share:.0%} of {show_pages(now.pages)}", show_bits(now.rate)]
    if now.dirty_per_s is not None:
        words.append(f"dirty {show_bytes(now.dirty_per_s)}/s")
    if now.left_s is not None and now.downtime_s is not None:
        words.append(f"{show_time(now.left_s)} left, downtime {show_time(now.downtime_s)}")
    return ", ".join(words)
