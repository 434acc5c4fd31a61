"""The parts of a mirror that is being made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from redirty.collector.mirror.estimator import Estimator
from redirty.collector.mirror.observer import MirrorObserver
from redirty.collector.mirror.pipeline import Pipeline
from redirty.collector.mirror.request import MirrorRequest
from redirty.collector.mirror.state import MirrorState
from redirty.collector.mirror.transport.protocol import ConnectionLostError
from redirty.collector.mirror.transport.sink import PageSink
from redirty.collector.ptrace.freezer_client import Freezer
from redirty.collector.tracking.rounds import Recorder


@dataclass(frozen=True)
class RunningMirror:
    """The parts that pre-copy, switchover and stop-and-copy share; made and closed by MirrorSession.

    Attributes:
        request: what to mirror.
        observer: receives all events.
        estimator: rates, and predictions from them.
        recorder: runs the rounds.
        state: the pending pages.
        pipeline: reads, compares and sends pages.
        sink: takes the pages.
        freezer: stops the target.
        check: ends the mirror by an exception if it was cancelled.
    """

    request: MirrorRequest
    observer: MirrorObserver
    estimator: Estimator
    recorder: Recorder
    state: MirrorState
    pipeline: Pipeline
    sink: PageSink
    freezer: Freezer
    check: Callable[[], None]

    def living(self) -> dict[int, int]:
        """Return the PIDs of the target by the number of their address space."""
        return living(self.recorder)

    def reconnect(self, error: ConnectionLostError) -> None:
        """Connect again after a loss; pages that were not acknowledged become pending again.

        Raises:
            RedirtyError: the connection cannot be re-established.
        """
        self.observer.on_note(f"connection lost ({error}): reconnecting")
        self.state.resend(self.sink.reconnect())
        self.observer.on_note("reconnected")


def living(recorder: Recorder) -> dict[int, int]:
    """Return the PIDs of a recorder's target by the number of their address space."""
    return {number: s.pid for number, s in recorder.spaces.items() if not s.gone}
