"""The stop-and-copy pass: the target is stopped, the rest is copied, the target is resumed.

Whatever fails, the target is resumed first, and only then is the failure reported. Pages that were not copied
are still pending, so that another pass can follow.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from redirty.collector.bpf import abi
from redirty.collector.errors import GoneError, RedirtyError
from redirty.collector.mirror.image.core_notes import (
    ProcFiles,
    make_notes,
    ns_pid,
    read_proc_files,
)
from redirty.collector.mirror.image.digest import digest_of
from redirty.collector.mirror.image.process_image import PlacedProcess
from redirty.collector.mirror.pipeline import PassCounts, batches
from redirty.collector.mirror.promise import limit_s
from redirty.collector.mirror.request import VERIFY_FULL
from redirty.collector.mirror.running import RunningMirror
from redirty.collector.mirror.stop_time import Timeline, urgent
from redirty.collector.ptrace.freezer_client import FreezeError, ThreadStates
from redirty.collector.units import show_bytes, show_time

_MAX_DOWNTIME_S = 60.0  # without a downtime goal
_MAX_STOP_S = 1.0
_VERIFY_S = 600.0
_MAX_STOP_ROUNDS = 10


class StopAndCopyError(RedirtyError):
    """An attempt failed; the target was resumed unchanged."""


@dataclass(frozen=True)
class StopResult:
    """The result of the stop-and-copy pass.

    Attributes:
        counts: pages by how they were handled.
        downtime_s: for how long the target was stopped.
        stop_s: time to stop all threads.
        boundary_s: time to arm, and to find what was written until the stop.
        copy_s: time to copy.
        verify_s: time to compare target and mirror, while the target was stopped.
        threads: number of threads stopped.
        ns_pids: PIDs of the processes in their own PID namespaces.
        uptime_s: uptime of the machine when the target was stopped.
        processes: the processes with their mappings and notes.
        digests: digests of target and mirror; None: not compared.
    """

    counts: PassCounts
    downtime_s: float
    stop_s: float
    boundary_s: float
    copy_s: float
    verify_s: float
    threads: int
    ns_pids: tuple[int, ...]
    uptime_s: float
    processes: tuple[PlacedProcess, ...]
    digests: tuple[str, str] | None

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-serializable dict for mirror.json."""
        return {
            "downtime_s": self.downtime_s,
            "stop_s": self.stop_s,
            "boundary_s": self.boundary_s,
            "copy_s": self.copy_s,
            "threads": self.threads,
            "uptime_s": self.uptime_s,
        }


@dataclass(frozen=True)
class _Copied:
    """The data obtained while the target was stopped.

    Attributes:
        threads: number of threads stopped.
        counts: pages by how they were handled.
        states: registers of all threads.
        files: files in /proc by PID.
        digests: digests of target and mirror; None: not compared.
        downtime_s: for how long the target was stopped.
    """

    threads: int
    counts: PassCounts
    states: ThreadStates
    files: dict[int, ProcFiles]
    digests: tuple[str, str] | None
    downtime_s: float


class StopAndCopy:
    """Makes one attempt at the stop-and-copy pass.

    Attributes:
        stood_still_s: for how long the target stood still at most, if the attempt failed.
        fixed_s: how much of that passed before anything was copied.
    """

    def __init__(self, mirror: RunningMirror, goal_s: float | None) -> None:
        """Prepare an attempt.

        Args:
            mirror: the mirror.
            goal_s: for how long the target may be stopped, not counting a full comparison; None: 60 s.
        """
        self._mirror = mirror
        self._freezer = mirror.freezer
        self._limit_s = _MAX_DOWNTIME_S if goal_s is None else limit_s(goal_s)
        self.stood_still_s = 0.0
        self.fixed_s = 0.0

    def run(self) -> StopResult:
        """Stop the target, copy the pending pages, and resume it.

        Raises:
            StopAndCopyError: the attempt failed, and another one may follow.
            ConnectionLostError: the connection was lost.
            TargetEndedError: the target ended.
            RedirtyError: the mirror cannot be completed.

        In each of these cases the target runs.
        """
        timeline = Timeline()
        with urgent():
            try:
                copied = self._stop_and_copy(timeline)
            except FreezeError as e:
                self._note_released(timeline, e)
                raise StopAndCopyError(f"cannot stop the target: {e}") from None
            except GoneError:
                raise StopAndCopyError("a process ended while it was stopped") from None
            except OSError as e:
                raise StopAndCopyError(f"cannot read a process: {e}") from None
            finally:
                self._ensure_released(timeline)  # before anything else
                self.fixed_s = timeline.duration_s("stop") + timeline.duration_s("arm")
        return self._result(timeline, copied)

    def _stop_and_copy(self, timeline: Timeline) -> _Copied:
        request, sink = self._mirror.request, self._mirror.sink
        deadline = timeline.start + self._limit_s
        threads = self._stop()
        sink.deadline = deadline
        timeline.end("stop")
        self._freezer.request_states()  # they are read while this process arms and copies
        self._arm()
        timeline.end("arm")
        self._require_possible(deadline)
        counts = self._copy(deadline)
        states, files = self._snapshot_threads()
        sink.flush()
        _require_in_time(deadline)
        timeline.end("copy")
        sink.deadline = None
        digests = self._compare() if request.verify == VERIFY_FULL else None
        timeline.end("verify")
        equal = digests is None or digests[0] == digests[1]
        downtime_s = self._freezer.release(stop=request.leave_stopped and equal)
        return _Copied(threads, counts, states, files, digests, downtime_s)

    def _stop(self) -> int:
        """Stop all threads of all processes, also of those created meanwhile, and return their number."""
        request = self._mirror.request
        wait_s = min(self._limit_s, _MAX_STOP_S)
        if request.qmp is not None:
            self._freezer.stop_machine(request.qmp, self._limit_s, wait_s)
        stopped: set[int] = set()
        threads = 0
        for _ in range(_MAX_STOP_ROUNDS):
            new = self._members() - stopped
            if not new:
                if request.network is not None:
                    self._hold_networks(sorted(stopped))
                return threads
            threads = self._freezer.stop(sorted(new), self._limit_s, wait_s)
            stopped |= new
        raise FreezeError("processes are created faster than they can be stopped")

    def _members(self) -> set[int]:
        recorder = self._mirror.recorder
        pids = {s.pid for s in recorder.spaces.values() if not s.gone}
        pids |= recorder.tracer.targets().keys()
        if recorder.targets.may_join:
            pids |= set(recorder.targets.members())
        return pids

    def _hold_networks(self, pids: list[int]) -> None:
        try:
            self._freezer.hold_networks(pids)
        except FreezeError as e:
            raise FreezeError(f"cannot hold its network traffic: {e}") from None

    def _arm(self) -> None:
        """Mark as pending what the target wrote until it was stopped.

        An error in between would lose some of it, so it is not a StopAndCopyError.
        """
        try:
            result = self._mirror.recorder.end_round(stopped=True)
            self._mirror.state.sync(self._living_with_newcomers(), result, last=True)
        except OSError as e:
            raise RedirtyError(f"cannot read the target: {e}; the mirror was discarded") from None

    def _living_with_newcomers(self) -> dict[int, int]:
        """Return PIDs by space, with processes created since the last arm.

        These are not armed, and need not be: they are stopped.
        """
        living = self._mirror.living()
        for tgid, (number, _) in self._mirror.recorder.tracer.targets().items():
            if abi.tgid_of(number) == tgid:
                living.setdefault(number, tgid)
        return living

    def _copy(self, deadline: float) -> PassCounts:
        return self._mirror.pipeline.copy(
            [(s, s.pending) for s in self._mirror.state.sources()],
            lambda: _require_in_time(deadline),
        )

    def _snapshot_threads(self) -> tuple[ThreadStates, dict[int, ProcFiles]]:
        """Read the state of threads and processes for the core files."""
        states = self._freezer.states()
        spaces = self._mirror.state.spaces.values()
        if not all(s.alive() for s in spaces):
            raise GoneError  # killed: what was read since is invalid
        return states, {s.pid: read_proc_files(s.pid, s.vmas) for s in spaces}

    def _compare(self) -> tuple[str, str]:
        """Read all memory again, and return the digests of the target and of the mirror."""
        self._freezer.extend(_VERIFY_S)
        parts = batches(self._mirror.state.all_pages())
        local = digest_of((source.number, numbers, source.read) for source, numbers in parts)
        return local, self._mirror.sink.digest()

    def _require_possible(self, deadline: float) -> None:
        """Give an attempt up as soon as it is clear that it will be late: each moment of it harms the target."""
        left, estimator = self._mirror.state.left_bytes(), self._mirror.estimator
        needed_s = estimator.least_s(left)
        if time.monotonic() + needed_s > deadline:
            raise StopAndCopyError(
                f"{show_bytes(left)} were left when the target had stopped, which would take {show_time(needed_s)} "
                "or more"
            )

    def _ensure_released(self, timeline: Timeline) -> None:
        if self._freezer.frozen:
            try:
                self.stood_still_s = self._freezer.release()
            except FreezeError as e:  # the target has resumed already
                self._note_released(timeline, e)

    def _note_released(self, timeline: Timeline, error: FreezeError) -> None:
        """Note for how long the target stood still: a freezer that has ended cannot tell, but has released it."""
        since_s = time.monotonic() - timeline.start
        self.stood_still_s = since_s if error.held_s is None else error.held_s

    def _result(self, timeline: Timeline, copied: _Copied) -> StopResult:
        threads_of, files = copied.states.by_process(), copied.files
        since_stop_s = time.monotonic() - timeline.end_of("stop")
        return StopResult(
            counts=copied.counts,
            downtime_s=copied.downtime_s,
            stop_s=timeline.duration_s("stop"),
            boundary_s=timeline.duration_s("arm"),
            copy_s=timeline.duration_s("copy"),
            verify_s=timeline.duration_s("verify"),
            threads=copied.threads,
            ns_pids=tuple(ns_pid(pid, threads_of.get(pid, ())) for pid in files),
            uptime_s=time.clock_gettime(time.CLOCK_BOOTTIME) - since_stop_s,
            processes=tuple(
                self._mirror.state.place(
                    lambda s: make_notes(files[s.pid], threads_of.get(s.pid, ()), s.have)
                )
            ),
            digests=copied.digests,
        )


def _require_in_time(deadline: float) -> None:
    late = time.monotonic() - deadline
    if late > 0:
        raise StopAndCopyError(f"the last pass exceeded its time limit by {show_time(late)}")
