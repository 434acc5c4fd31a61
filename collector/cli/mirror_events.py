"""How a mirror goes, for programs: a line of JSON an event, on stdout."""

from __future__ import annotations

import json
import math
import os
import select
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redirty.collector.mirror.decision import Decision
    from redirty.collector.mirror.observer import PassReport, ProgressReport
    from redirty.collector.mirror.session import MirrorSession
    from redirty.collector.mirror.state import MirrorState
    from redirty.collector.tracking.rounds import Round

_EVERY_S = 0.2


class MirrorEvents:
    """A MirrorObserver. When nobody reads the lines any more the mirror is cancelled: whoever started it could
    neither see nor stop it."""

    def __init__(self) -> None:
        self.of: MirrorSession | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._out = sys.stdout.fileno()
        self._thread = threading.Thread(target=self._watch, name="lines", daemon=True)
        self._thread.start()

    def _line(self, event: str, **values: Any) -> None:
        text = json.dumps({"event": event, **values}) + "\n"
        try:
            with self._lock:
                left = memoryview(text.encode())
                while left:
                    left = left[os.write(self._out, left) :]
        except OSError:
            self._cancel()

    def _cancel(self) -> None:
        if self.of is not None:
            self.of.stop()

    def _watch(self) -> None:
        """Whether there is still a reader: asked also while nothing is written."""
        poll = select.poll()
        poll.register(self._out, 0)
        while not self._over.wait(_EVERY_S):
            if any(what & (select.POLLERR | select.POLLHUP) for _, what in poll.poll(0)):
                self._cancel()

    def passed(self, done: PassReport, state: MirrorState, result: Round) -> None:
        """See MirrorObserver."""
        self._line("pass", **done.as_json(), round_s=round(result.duration_s, 6))

    def decided(self, decision: Decision) -> None:
        """See MirrorObserver."""
        self._line("decision", **decision.as_json())

    def said(self, text: str) -> None:
        """See MirrorObserver."""
        self._line("note", text=text)

    def going(self, now: ProgressReport) -> None:
        """See MirrorObserver."""
        self._line(
            "going",
            **{"pass": now.number},
            pages=now.pages,
            done_pages=now.done_pages,
            sent_bytes=now.sent_bytes,
            rate_bytes_per_s=_rounded(now.rate),
            dirty_bytes_per_s=_rounded(now.dirty_per_s),
            left_s=_rounded(now.left_s),
            predicted_downtime_s=_rounded(now.downtime_s),
        )

    def done(self, information: dict[str, Any]) -> None:
        """The mirror is there."""
        self._line("done", mirror=information)

    def failed(self, why: str) -> None:
        """There is no mirror."""
        self._line("failed", why=why)

    def end(self) -> None:
        """Nothing comes any more."""
        self._over.set()
        self._thread.join()


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 6)
