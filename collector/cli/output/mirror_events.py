"""Events of a mirror for programs: one line of JSON per event, on stdout."""

from __future__ import annotations

import json
import math
import os
import select
import sys
import threading
from collections.abc import Callable
from typing import Any

from redirty.collector.mirror.decision import Decision
from redirty.collector.mirror.observer import MirrorObserver, PassReport, ProgressReport
from redirty.collector.tracking.rounds import Round

_POLL_S = 0.2


class MirrorEvents(MirrorObserver):
    """Writes events as lines of JSON.

    Cancels the mirror when the reader closes the pipe, as the caller could then neither observe nor stop it.
    """

    def __init__(self) -> None:
        self._cancel: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._out = sys.stdout.fileno()
        self._thread = threading.Thread(target=self._watch_reader, name="lines", daemon=True)
        self._thread.start()

    def _emit(self, event: str, **values: Any) -> None:
        line = json.dumps({"event": event, **values}).replace("\x7f", "\\u007f") + "\n"
        try:
            with self._lock:
                left = memoryview(line.encode())
                while left:
                    left = left[os.write(self._out, left) :]  # text: JSON, in ASCII
        except OSError:
            self._cancel()

    def _watch_reader(self) -> None:
        """Cancel the mirror when the reader is gone, even while no events are written."""
        poll = select.poll()
        poll.register(self._out, 0)
        while not self._closed.wait(_POLL_S):
            if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
                self._cancel()

    def on_start(self, cancel: Callable[[], None]) -> None:
        """See MirrorObserver."""
        self._cancel = cancel

    def on_pass(self, report: PassReport, result: Round) -> None:
        """See MirrorObserver."""
        self._emit("pass", **report.as_json(), round_s=round(result.duration_s, 6))

    def on_decision(self, decision: Decision) -> None:
        """See MirrorObserver."""
        self._emit("decision", **decision.as_json())

    def on_note(self, text: str) -> None:
        """See MirrorObserver."""
        self._emit("note", text=text)

    def on_progress(self, progress: ProgressReport) -> None:
        """See MirrorObserver."""
        self._emit(
            "going",
            **{"pass": progress.number},
            pages=progress.pages,
            done_pages=progress.done_pages,
            sent_bytes=progress.sent_bytes,
            rate_bytes_per_s=_rounded(progress.rate),
            dirty_bytes_per_s=_rounded(progress.dirty_per_s),
            left_s=_rounded(progress.left_s),
            predicted_downtime_s=_rounded(progress.downtime_s),
        )

    def on_done(self, information: dict[str, Any]) -> None:
        """See MirrorObserver."""
        self._emit("done", mirror=information)

    def on_failed(self, reason: str) -> None:
        """See MirrorObserver."""
        self._emit("failed", why=reason)

    def close(self) -> None:
        """Stop watching the reader."""
        self._closed.set()
        self._thread.join()


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 6)
