"""Replays a recording: play, pause, seek, at any speed. Needs no root."""

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

MIN_SPEED, MAX_SPEED = 1 / 16, 1024.0
_TO_DRAW_S = 0.5  # two busy threads would draw later than one
_TICK_S = 0.1  # the screen is not drawn more often than that, at any speed


class Replay(TargetReader):
    """Replays a recording. It starts at the last round, paused, so that the whole recording is visible at a
    glance; playing from there starts at the first round."""

    def __init__(self, directory: Path, question: ConvergenceQuestion) -> None:
        super().__init__(question)
        self.directory = directory
        self.about = TargetInfo(f"recording {directory}", directory=str(directory))
        self._recorded: LoadedRecording | None = None
        self._playing = False
        self._speed = 1.0
        self._position_s = np.inf  # in the recording; rounds that have ended by then are shown
        self._message = ""

    # ---- from the screen ----

    def toggle(self) -> None:
        """Play or pause."""
        with self._wake:
            self._playing = not self._playing
            if self._playing and self._recorded is not None and self._at_end(self._recorded):
                self._position_s = float(self._recorded.ends_s[0])
            self._changed()

    def seek(self, rounds: int) -> None:
        """Move by a number of rounds, backward if negative, within the recording."""
        with self._wake:
            if self._recorded is not None:
                ends = self._recorded.ends_s
                at = min(max(self._index(self._recorded) + rounds, 0), len(ends) - 1)
                self._position_s = float(ends[at])
                self._changed()

    def scale_speed(self, factor: float) -> None:
        """Multiply the speed, within MIN_SPEED and MAX_SPEED."""
        with self._wake:
            self._speed = min(max(self._speed * factor, MIN_SPEED), MAX_SPEED)
            self._changed()

    # ---- in the thread ----

    def work(self) -> None:
        """See Reader."""
        self._publish_rates()
        recorded = LoadedRecording(self.directory)
        meta, target = recorded.meta, recorded.meta["target"]
        self.about = TargetInfo(
            title=one_line(f"{target['description']}: {target['comm']}"),
            probe=str(meta["probe"]),
            arm=str(meta["arm"]),
            interval_s=float(meta["interval_s"]),
            directory=str(self.directory),
        )
        if not meta.get("complete"):
            self._message = "the recording ended early; its complete rounds are shown"
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

    def _publish_rates(self) -> None:
        """Publish the rates, and let the screen show them, before the rest is read."""
        found = first_rounds(self.directory)
        if found:
            self.publish(self.common(History(found[-KEPT:]), ReaderState.STARTING))
            self.drawn.wait(_TO_DRAW_S)

    def _publish(self, recorded: LoadedRecording) -> None:
        with self._wake:
            at, playing, speed = self._index(recorded), self._playing, self._speed
        history = History(recorded.rounds[max(0, at + 1 - KEPT) : at + 1])
        start_s, ends = recorded.start_s, recorded.ends_s
        playback = Playback(
            playing=playing,
            speed=speed,
            position=at,
            rounds=len(ends),
            position_s=float(ends[at]) - start_s,
            length_s=float(ends[-1]) - start_s,
        )
        shown = self.snapshot(
            history,
            ReaderState.REPLAY,
            self._message,
            force=not playing,
            observe=lambda: recorded.observed.until(at + 1),
        )
        self.publish(
            replace(
                shown,
                playback=playback,
                writers=history.writers() if recorded.has_events else None,
                heat_estimated=not recorded.has_events,
            )
        )

    def _index(self, recorded: LoadedRecording) -> int:
        """Return the index of the last round that has ended at the current position."""
        at = int(np.searchsorted(recorded.ends_s, self._position_s, side="right")) - 1
        return min(max(at, 0), len(recorded.ends_s) - 1)

    def _at_end(self, recorded: LoadedRecording) -> bool:
        return self._index(recorded) == len(recorded.ends_s) - 1

    def _until_next(self, recorded: LoadedRecording) -> float | None:
        """Return the seconds until the next round is due; None: wait for a key."""
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
