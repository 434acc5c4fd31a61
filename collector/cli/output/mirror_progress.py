"""Progress of a mirror on the terminal."""

from __future__ import annotations

import shutil
import sys

from redirty.collector.mirror.decision import GIVE_UP, PASS, QUIESCE, Decision
from redirty.collector.mirror.observer import MirrorObserver, PassReport, ProgressReport
from redirty.collector.tracking.rounds import Round
from redirty.collector.units import (
    show_bits,
    show_bytes,
    show_pages,
    show_time,
)

_ACTIONS = {PASS: "another pass", QUIESCE: "stop the target now", GIVE_UP: "give up"}


class MirrorProgressLine(MirrorObserver):
    """Prints a line for each event, and on a terminal one that is updated during a pass."""

    def __init__(self, *, quiet: bool) -> None:
        self._on = not quiet
        self._terminal = self._on and sys.stderr.isatty()
        self._shown = False

    def _print(self, text: str) -> None:
        if self._on:
            self.close()
            print(text, file=sys.stderr, flush=True)

    def on_pass(self, report: PassReport, result: Round) -> None:
        """Print the counts of the pass."""
        c = report.counts
        rate = report.bytes / report.duration_s if report.duration_s > 0 else 0.0
        dirty = report.dirty_pages / result.duration_s if result.duration_s > 0 else 0.0
        deferred = ""
        if report.deferred_pages:
            deferred = f", deferred to the end {show_pages(report.deferred_pages)}"
        self._print(
            f"pass {report.number}: {show_pages(c.sent_pages)} in {show_time(report.duration_s)} "
            f"({show_bits(rate)}), zero {show_pages(c.zero_pages)}, unchanged "
            f"{show_pages(c.unchanged_pages)}{deferred}; dirty {show_pages(dirty)}/s"
        )

    def on_decision(self, decision: Decision) -> None:
        """Print the decision and its reason."""
        self._print(f"  {_ACTIONS[decision.action]}: {decision.reason}")

    def on_note(self, text: str) -> None:
        """Print the note."""
        self._print(f"  {text}")

    def on_progress(self, progress: ProgressReport) -> None:
        """Update the line on a terminal."""
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            line = progress_line(progress)[:width]
            print(f"\r{line:<{width}}", end="", file=sys.stderr, flush=True)
            self._shown = True

    def close(self) -> None:
        """Erase the line that is updated."""
        if self._shown:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{'':<{width}}\r", end="", file=sys.stderr)
            self._shown = False


def progress_line(progress: ProgressReport) -> str:
    """Describe the progress of a pass in one line, with the most important values first."""
    share = progress.done_pages / progress.pages if progress.pages else 1.0
    parts = [
        f"pass {progress.number}: {share:.0%} of {show_pages(progress.pages)}",
        show_bits(progress.rate),
    ]
    if progress.dirty_per_s is not None:
        parts.append(f"dirty {show_bytes(progress.dirty_per_s)}/s")
    if progress.left_s is not None and progress.downtime_s is not None:
        parts.append(
            f"{show_time(progress.left_s)} left, downtime {show_time(progress.downtime_s)}"
        )
    return ", ".join(parts)
