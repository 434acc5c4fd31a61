"""The recording session of a command: its options from the command line, its progress on stderr."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from redirty.collector.arming.methods import SOFT_DIRTY_NOTE
from redirty.collector.cli.output.progress import RecordProgressLine
from redirty.collector.recording.options import RecordingOptions
from redirty.collector.recording.session import Session
from redirty.collector.target.targets import TargetSet


def recording_options(
    arguments: argparse.Namespace,
    target: TargetSet,
    directory: Path,
    *,
    interval_s: float,
    count: int = 0,
    duration_s: float = 0.0,
) -> RecordingOptions:
    """Build the options of a recording. Arguments that the command does not have are left at defaults."""
    given = vars(arguments)
    return RecordingOptions(
        target=target,
        directory=directory,
        interval_s=interval_s,
        count=count,
        duration_s=duration_s,
        arm=given.get("arm", "auto"),
        probe=given.get("probe", "auto"),
        events=given.get("events", False),
        stacks=given.get("stacks", False),
        physical=given.get("physical", False),
        zeros=given.get("zeros", False),
    )


class RecordingSession(Session):
    """A recording session that shows its progress on stderr. Signals stop it; see exit_code."""

    def __init__(
        self,
        options: RecordingOptions,
        *,
        quiet: bool = False,
        on_armed: Callable[[], None] = lambda: None,
    ) -> None:
        progress = RecordProgressLine(quiet=quiet)
        super().__init__(
            options, on_round=progress.show, on_armed=on_armed, on_counted=progress.show_counting
        )
        self._progress = progress
        self._armed = on_armed
        if not quiet:
            self.on_armed = self._note_arming

    def _note_arming(self) -> None:
        if self.method == "soft-dirty":
            print(f"redirty: {SOFT_DIRTY_NOTE}", file=sys.stderr)
        self._armed()

    def run(self) -> None:
        """Record as Session.run() does, and end the progress line."""
        try:
            super().run()
        finally:
            self._progress.end()

    @property
    def exit_code(self) -> int:
        """The exit code of a command that recorded: 130 when it was interrupted."""
        return 130 if self.interrupted else 0
