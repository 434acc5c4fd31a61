"""The end of a mirror: stop-and-copy, then the commit; after a failed attempt the target resumes."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from redirty.collector.errors import RedirtyError, why
from redirty.collector.mirror.decision import Decision
from redirty.collector.mirror.image import elf_core
from redirty.collector.mirror.manifest import make_manifest
from redirty.collector.mirror.observer import PassReport
from redirty.collector.mirror.promise import FailedStop
from redirty.collector.mirror.request import VERIFY_SENT
from redirty.collector.mirror.running import RunningMirror
from redirty.collector.mirror.sources.external_writers import writable_outside
from redirty.collector.mirror.stop_and_copy import StopAndCopy, StopAndCopyError, StopResult
from redirty.collector.mirror.transport.protocol import ConnectionLostError
from redirty.collector.mirror.verification import compare_with_sent
from redirty.collector.target.qemu import Piece, memory_of
from redirty.collector.units import show_time

MAX_ATTEMPTS = 4


class Switchover:
    """Attempts the stop-and-copy pass, up to MAX_ATTEMPTS times. failed: the attempts that failed."""

    def __init__(self, mirror: RunningMirror) -> None:
        self._mirror = mirror
        self._guest_memory: list[Piece] = []
        self.failed: list[FailedStop] = []

    def run(
        self, passes: Sequence[PassReport], decisions: Sequence[Decision]
    ) -> dict[str, Any] | None:
        """Stop the target, copy the rest and commit the mirror.

        Returns:
            The contents of mirror.json; None if the attempt failed, and other passes have to follow.

        Raises:
            RedirtyError: too many attempts failed, or the mirror cannot be completed.
        """
        mirror, sink = self._mirror, self._mirror.sink
        self._prepare()
        goal_s = mirror.request.goals.downtime_s
        sent_before = sink.sent_bytes
        attempt = StopAndCopy(mirror, goal_s)
        try:
            stopped = attempt.run()
        except StopAndCopyError as e:
            self._note_failed(attempt, e)
            self._require_attempts_left(e)
            return None
        except ConnectionLostError as e:
            self._note_failed(attempt, e)
            sink.deadline = None
            mirror.reconnect(e)
            self._require_attempts_left(e)
            return None
        finally:
            sink.deadline = None
        last = PassReport(
            number=len(passes) + 1,
            counts=stopped.counts,
            bytes=sink.sent_bytes - sent_before,
            duration_s=stopped.copy_s,
        )
        return self._finish(stopped, [*passes, last], decisions)

    def _prepare(self) -> None:
        """Do everything that can be done before the target is stopped."""
        mirror, state = self._mirror, self._mirror.state
        members = {s.pid for s in state.spaces.values()}
        try:
            state.suspect_files = writable_outside(members, state.files.by_key.values())
        except OSError as e:
            raise RedirtyError(
                f"cannot list other processes that map the target's memory: {why(e)}"
            ) from None
        if mirror.request.network is not None:
            mirror.request.network.require_own(set(mirror.living().values()))
        if mirror.request.qmp is not None:
            self._guest_memory = self._find_guest_memory(mirror.request.qmp)

    def _find_guest_memory(self, qmp: str) -> list[Piece]:
        try:
            return memory_of(qmp)
        except (OSError, ValueError) as e:
            self._mirror.observer.on_note(f"cannot get guest-physical addresses from QEMU: {e}")
            return []

    def _note_failed(self, attempt: StopAndCopy, error: Exception) -> None:
        """Report a stop after which the target was resumed, and learn from it."""
        self.failed.append(FailedStop(attempt.stood_still_s, str(error)))
        self._mirror.estimator.late_stop(attempt.fixed_s)
        self._mirror.observer.on_note(
            f"{error}; target resumed after {show_time(attempt.stood_still_s)} "
            f"(attempt {len(self.failed)} of {MAX_ATTEMPTS})"
        )

    def _require_attempts_left(self, error: Exception) -> None:
        if len(self.failed) >= MAX_ATTEMPTS:
            raise RedirtyError(
                f"{error}, {MAX_ATTEMPTS} times; the target keeps running, the mirror was discarded"
            ) from None

    def _finish(
        self, stopped: StopResult, passes: Sequence[PassReport], decisions: Sequence[Decision]
    ) -> dict[str, Any]:
        """Commit the mirror, and return the contents of mirror.json."""
        mirror = self._mirror
        if stopped.digests is not None and stopped.digests[0] != stopped.digests[1]:
            raise RedirtyError(
                "the mirror differs from the target's memory: a device or a process outside the target wrote "
                "to it untracked while the target was stopped; the mirror was discarded"
            )
        digest, verify_s = None, stopped.verify_s
        if stopped.digests is not None:
            digest = stopped.digests[0]
        elif mirror.request.verify == VERIFY_SENT:
            started = time.monotonic()
            digest = self._compare_with_sent(stopped)
            verify_s = time.monotonic() - started
        manifest = make_manifest(
            mirror.request,
            passes,
            decisions,
            stopped,
            failed=self.failed,
            digest=digest,
            verify_s=verify_s,
            sent_bytes=mirror.sink.sent_bytes,
            total_s=mirror.estimator.elapsed_s,
            unmirrored=mirror.state.unmirrored(),
            guest_memory=self._guest_memory,
        )
        try:
            mirror.sink.commit(stopped.processes, elf_core.machine(), manifest)
        except ConnectionLostError as e:
            self._resume_if_left_stopped(stopped)
            raise RedirtyError(
                f"connection lost during the commit: {e}; the mirror is complete if mirror.json exists at the "
                "receiver, otherwise it was not committed; the target keeps running"
            ) from None
        except BaseException:
            self._resume_if_left_stopped(stopped)
            raise
        return manifest

    def _compare_with_sent(self, stopped: StopResult) -> str:
        try:
            return compare_with_sent(self._mirror)
        except BaseException:
            self._resume_if_left_stopped(stopped)
            raise

    def _resume_if_left_stopped(self, stopped: StopResult) -> None:
        """Resume processes that were left stopped for a mirror that failed."""
        if self._mirror.request.leave_stopped:
            for process in stopped.processes:
                with contextlib.suppress(OSError):
                    os.kill(process.pid, signal.SIGCONT)
