"""A recording as it went: played, paused, sought in, at any speed. Needs no root."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from redirty.collector.errors import one_line
from redirty.tui.readers.recording import LoadedRecording, first_rounds
from redirty.tui.readers.target import TargetReader
from redirty.tui.snapshots.convergence import ConvergenceQuestion
from redirty.tui.snapshots.history import KEPT, History
from redirty.tui.snapshots.snapshot import Playback, ReaderState, TargetInfo

SLOWEST, FASTEST = 1 / 16, 1024.0
_TO_DRAW_S = 0.5  # two threads at once draw later than one
_TICK_S = 0.1  # a screen is not drawn more often than that, however fast it is played


class Replay(TargetReader):
    """Begins at the last round, paused: the whole recording at a glance. Playing from the last round
    begins anew."""

    def __init__(self, directory: Path, asked: ConvergenceQuestion) -> None:
        super().__init__(asked)
        self.directory = directory
        self.about = TargetInfo(f"recording {directory}", directory=str(directory))
        self._recorded: LoadedRecording | None = None
        self._playing = False
        self._speed = 1.0
        self._position_s = np.inf  # in the recording; what has ended by then is shown
        self._message = ""

    # ---- from the screen ----

    def toggle(self) -> None:
        """Plays, or pauses."""
        with self._wake:
            self._playing = not self._playing
            if self._playing and self._recorded is not None and self._at_end(self._recorded):
                self._position_s = float(self._recorded.ends_s[0])
            self._changed()

    def seek(self, rounds: int) -> None:
        """So many rounds on, or back; to the ends at most."""
        with self._wake:
            if self._recorded is not None:
                ends = self._recorded.ends_s
                at = min(max(self._index(self._recorded) + rounds, 0), len(ends) - 1)
                self._position_s = float(ends[at])
                self._changed()

    def faster(self, factor: float) -> None:
        """Another speed."""
        with self._wake:
            self._speed = min(max(self._speed * factor, SLOWEST), FASTEST)
            self._changed()

    # ---- in the thread ----

    def work(self) -> None:
        """See Reader."""
        self._first()
        recorded = LoadedRecording(self.directory)
        meta, target = recorded.meta, recorded.meta["target"]
        self.about = TargetInfo(
            one_line(f"{target['description']}: {target['comm']}"),
            str(meta["probe"]),
            str(meta["arm"]),
            float(meta["interval_s"]),
            str(self.directory),
        )
        if not meta.get("complete"):
            self._message = "the recording ended early: its complete rounds are shown"
        self.model.layout = recorded.layout
        with self._wake:
            self._recorded = recorded
            self._position_s = float(recorded.ends_s[-1])
        then = time.monotonic()
        while not self.stopping:
            self._publish(recorded)
            with self._wake:
                if not self.changed and not self.stopping:
                    self._wake.wait(self._until_next(recorded))
                self.changed = False
                now = time.monotonic()
                self._advance(recorded, now - then)
                then = now

    def _first(self) -> None:
        """Rates, on the screen before the rest is read."""
        found = first_rounds(self.directory)
        if found:
            self.publish(self.common(History(found[-KEPT:]), ReaderState.STARTING))
            self.drawn.wait(_TO_DRAW_S)

    def _publish(self, recorded: LoadedRecording) -> None:
        with self._wake:
            at, playing, speed = self._index(recorded), self._playing, self._speed
        history = History(recorded.facts[max(0, at + 1 - KEPT) : at + 1])
        begin_s, ends = recorded.begin_s, recorded.ends_s
        playback = Playback(
            playing,
            speed,
            at,
            len(ends),
            float(ends[at]) - begin_s,
            float(ends[-1]) - begin_s,
        )
        shown = self.snapshot(history, ReaderState.REPLAY, self._message, force=not playing)
        self.publish(
            replace(
                shown,
                playback=playback,
                writers=history.writers() if recorded.writers else None,
                heat_estimated=recorded.estimated,
            )
        )

    def _index(self, recorded: LoadedRecording) -> int:
        """Of the last round that has ended by now."""
        at = int(np.searchsorted(recorded.ends_s, self._position_s, side="right")) - 1
        return min(max(at, 0), len(recorded.ends_s) - 1)

    def _at_end(self, recorded: LoadedRecording) -> bool:
        return self._index(recorded) == len(recorded.ends_s) - 1

    def _until_next(self, recorded: LoadedRecording) -> float | None:
        """Seconds until there is something new to show; None: only when a key is pressed."""
        if not self._playing:
            return None
        at = self._index(recorded)
        if at + 1 >= len(recorded.ends_s):
            self._playing = False
            return 0.0
        return max((float(recorded.ends_s[at + 1]) - self._position_s) / self._speed, _TICK_S)

    def _advance(self, recorded: LoadedRecording, passed_s: float) -> None:
        if self._playing:
            last = float(recorded.ends_s[-1])
            self._position_s = min(self._position_s + passed_s * self._speed, last)
