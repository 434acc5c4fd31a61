"""The end of a mirror: the target is stopped, the last pass made, and the mirror committed, or it runs on."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redirty.collector.errors import RedirtyError, why
from redirty.collector.mirror.decision import Decision
from redirty.collector.mirror.estimator import Estimator
from redirty.collector.mirror.image import elf_core
from redirty.collector.mirror.manifest import information_of
from redirty.collector.mirror.observer import MirrorObserver, PassReport
from redirty.collector.mirror.pipeline import Pipeline
from redirty.collector.mirror.request import MirrorRequest
from redirty.collector.mirror.sources.external_writers import mapped_outside
from redirty.collector.mirror.state import MirrorState
from redirty.collector.mirror.stop_and_copy import StopAndCopy, StopAndCopyError, StopResult
from redirty.collector.mirror.transport.sink import BrokenError, PageSink
from redirty.collector.ptrace.freezer_client import Freezer
from redirty.collector.target.qemu import Piece, memory_of
from redirty.collector.tracking.rounds import Recorder

TRIES = 4


@dataclass(frozen=True)
class Means:
    """What a mirror is made with, from its first pass to its end."""

    wish: MirrorRequest
    listener: MirrorObserver
    outlook: Estimator
    recorder: Recorder
    state: MirrorState
    engine: Pipeline
    sink: PageSink


class Switchover:
    """failed: stops that did not end well."""

    def __init__(self, means: Means, holding: Freezer) -> None:
        self._wish, self._listener, self._outlook = means.wish, means.listener, means.outlook
        self._recorder, self._state, self._engine = means.recorder, means.state, means.engine
        self._sink, self._holding = means.sink, holding
        self._guest_memory: list[Piece] = []
        self.failed = 0

    def run(
        self, passes: Sequence[PassReport], decisions: Sequence[Decision]
    ) -> dict[str, Any] | None:
        """What mirror.json says; None when it did not go well, and other passes are to follow.

        Errors: RedirtyError when it went wrong too often.
        """
        state, sink = self._state, self._sink
        goal = self._wish.goals.downtime_s
        limit = None if goal is None else 2 * goal
        members = {s.pid for s in state.spaces.values()}
        try:
            state.doubtful = mapped_outside(members, state.files.by_key.values())
        except OSError as e:
            raise RedirtyError(f"cannot look for who else maps its memory: {why(e)}") from None
        if self._wish.network is not None:
            self._wish.network.require_own(set(living(self._recorder).values()))
        if self._wish.qmp is not None:
            self._guest_memory = self._ask_where_guest_memory_is(self._wish.qmp)
        held = self._wish.network is not None
        quiesce = StopAndCopy(
            *(self._recorder, state, self._engine, sink, self._holding, limit, self._wish.qmp),
            network=held,
        )
        before = sink.sent_bytes
        try:
            stopped = quiesce.run(
                lambda: living(self._recorder),
                verify=self._wish.verify,
                leave_stopped=self._wish.leave_stopped,
            )
        except StopAndCopyError as e:
            self.failed += 1
            self._listener.said(f"{e}; it runs on (try {self.failed} of {TRIES})")
            if self.failed >= TRIES:
                raise RedirtyError(
                    f"{e}, {TRIES} times; the target runs on, there is no mirror"
                ) from None
            return None
        except BrokenError as e:
            self.failed += 1
            sink.deadline = None
            reconnect(self._listener, state, sink, e)
            if self.failed >= TRIES:
                raise RedirtyError(
                    f"{e}, {TRIES} times; the target runs on, there is no mirror"
                ) from None
            return None
        finally:
            sink.deadline = None
        last = PassReport(len(passes) + 1, stopped.counts, sink.sent_bytes - before, stopped.copy_s)
        return self._finish(stopped, [*passes, last], decisions)

    def _ask_where_guest_memory_is(self, qmp: str) -> list[Piece]:
        try:
            return memory_of(qmp)
        except (OSError, ValueError) as e:
            self._listener.said(f"QEMU does not tell where in the guest its memory is: {e}")
            return []

    def _finish(
        self, stopped: StopResult, passes: Sequence[PassReport], decisions: Sequence[Decision]
    ) -> dict[str, Any]:
        digests = stopped.digests
        if digests is not None and digests[0] != digests[1]:
            raise RedirtyError(
                "the mirror is not what the target's memory is: something wrote to it unseen while it "
                "stood still (a device, or a process outside the target); there is no mirror"
            )
        information = information_of(
            self._wish,
            passes,
            decisions,
            stopped,
            sent_bytes=self._sink.sent_bytes,
            total_s=self._outlook.elapsed_s,
            unmirrored=self._state.unmirrored(),
            guest_memory=self._guest_memory,
        )
        try:
            self._sink.commit(stopped.processes, elf_core.machine(), information)
        except BrokenError as e:
            if self._wish.leave_stopped:
                _continue([p.pid for p in stopped.processes])
            raise RedirtyError(
                f"the connection broke at the commit ({e}): there is a mirror if mirror.json is there, "
                "else there is none; the target runs on"
            ) from None
        except BaseException:
            if self._wish.leave_stopped:
                _continue([p.pid for p in stopped.processes])
            raise
        return information


def reconnect(
    listener: MirrorObserver, state: MirrorState, sink: PageSink, error: BrokenError
) -> None:
    """What was not acknowledged is dirty again. Errors: RedirtyError when nobody comes back."""
    listener.said(f"the connection broke ({error}): trying again")
    state.lost(sink.reconnect())
    listener.said("connected again, going on")


def _continue(pids: Sequence[int]) -> None:
    """There is no mirror: what was left stopped for it runs."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)


def living(recorder: Recorder) -> dict[int, int]:
    """Process by number of its address space."""
    return {number: s.pid for number, s in recorder.spaces.items() if not s.gone}
