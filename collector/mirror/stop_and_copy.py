"""The last pass: the target stands still, what is left is copied, then it is let go of.

Whatever fails, the target is let go of first, and only then is the reason told. What was not copied is
still pending, so that another pass can follow.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from redirty.collector.bpf import abi
from redirty.collector.errors import GoneError, RedirtyError
from redirty.collector.mirror.image.commit import PlacedProcess
from redirty.collector.mirror.image.core_notes import notes_of, ns_pid, see
from redirty.collector.mirror.image.digest import digest_of
from redirty.collector.mirror.pipeline import PassCounts, Pipeline, batches
from redirty.collector.mirror.state import MirrorState
from redirty.collector.mirror.transport.sink import PageSink
from redirty.collector.ptrace.freezer_client import FreezeError, Freezer
from redirty.collector.tracking.rounds import Recorder
from redirty.collector.units import show_time

_LONGEST_S = 60.0  # where no downtime was asked for
_TO_STOP_S = 1.0
_VERIFY_S = 600.0
_LOOKS = 10


class StopAndCopyError(RedirtyError):
    """The target runs again, and is as it was."""


@dataclass(frozen=True)
class StopResult:
    """What the last pass gave. ns_pids: in the processes' own namespaces. uptime_s: of the machine, when
    the target was stopped. digests: the target's and the mirror's, with verify."""

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
        """For mirror.json."""
        return {
            "downtime_s": self.downtime_s,
            "stop_s": self.stop_s,
            "boundary_s": self.boundary_s,
            "copy_s": self.copy_s,
            "verify_s": self.verify_s,
            "threads": self.threads,
            "uptime_s": self.uptime_s,
        }


class StopAndCopy:
    """One try. limit_s: for how long the target may stand still, without the comparison of verify. qmp: the
    socket of the QEMU that the target is: its guest is stopped first. network: what it sends is held, too."""

    def __init__(
        self,
        recorder: Recorder,
        state: MirrorState,
        engine: Pipeline,
        sink: PageSink,
        holding: Freezer,
        limit_s: float | None,
        qmp: str | None = None,
        *,
        network: bool = False,
    ) -> None:
        self._qmp, self._network = qmp, network
        self._recorder, self._state, self._engine = recorder, state, engine
        self._sink, self._holding = sink, holding
        self._limit_s = _LONGEST_S if limit_s is None else limit_s

    def run(
        self,
        living: Callable[[], dict[int, int]],
        *,
        verify: bool,
        leave_stopped: bool,
    ) -> StopResult:
        """Stops the target, copies, lets it go. living: process by number of its space.

        Errors: StopAndCopyError, BrokenError, TargetEndedError, RedirtyError; the target runs in each case.
        """
        begun = time.monotonic()
        # Looking for garbage can take longer than all that is done here.
        collects = gc.isenabled()
        gc.disable()
        try:
            deadline = begun + self._limit_s
            threads = self._stop()
            self._sink.deadline = deadline
            stopped = time.monotonic()
            self._holding.ask_states()  # read while this arms and copies
            self._arm(living)
            armed = time.monotonic()
            counts = self._engine.copy(
                [(s, s.pending) for s in self._state.sources()], lambda: _in_time(deadline)
            )
            states = self._holding.states()
            if not all(s.there() for s in self._state.spaces.values()):
                raise GoneError  # killed: what was read of it then is nothing
            seen = {s.pid: see(s.pid, s.vmas) for s in self._state.spaces.values()}
            self._sink.flush()
            _in_time(deadline)
            copied = time.monotonic()
            self._sink.deadline = None
            digests = self._compare() if verify else None
            verified = time.monotonic()
            good = digests is None or digests[0] == digests[1]
            downtime_s = self._holding.release(stop=leave_stopped and good)
        except FreezeError as e:
            raise StopAndCopyError(f"the target could not be held still: {e}") from None
        except GoneError:
            raise StopAndCopyError("a process ended while it was held still") from None
        except OSError as e:
            raise StopAndCopyError(f"a process could not be looked at: {e}") from None
        finally:
            if self._holding.holds:
                self._let_go()
            if collects:
                gc.enable()
        threads_of = states.by_process()
        return StopResult(
            counts=counts,
            downtime_s=downtime_s,
            stop_s=stopped - begun,
            boundary_s=armed - stopped,
            copy_s=copied - armed,
            verify_s=verified - copied,
            threads=threads,
            ns_pids=tuple(ns_pid(p, threads_of.get(p, ())) for p in seen),
            uptime_s=time.clock_gettime(time.CLOCK_BOOTTIME) - (time.monotonic() - stopped),
            processes=tuple(
                self._state.placed(
                    lambda s: notes_of(seen[s.pid], threads_of.get(s.pid, ()), s.have)
                )
            ),
            digests=digests,
        )

    def _arm(self, living: Callable[[], dict[int, int]]) -> None:
        """What it wrote until it was stopped becomes pending. An error in between would lose some of it,
        so it is no StopAndCopyError."""
        try:
            result = self._recorder.end_round(stopped=True)
            self._state.follow(self._with_newcomers(living()), result, last=True)
        except OSError as e:
            raise RedirtyError(
                f"the target could not be looked at: {e}; there is no mirror"
            ) from None

    def _let_go(self) -> None:
        try:
            self._holding.release()
        except FreezeError:
            pass  # it runs already

    def _stop(self) -> int:
        """All threads of all processes, also of those that are born meanwhile; how many."""
        wait_s = min(self._limit_s, _TO_STOP_S)
        if self._qmp is not None:
            self._holding.stop_machine(self._qmp, self._limit_s, wait_s)
        held: set[int] = set()
        threads = 0
        for _ in range(_LOOKS):
            new = self._members() - held
            if not new:
                self._hold_networks(sorted(held))
                return threads
            threads = self._holding.stop(sorted(new), self._limit_s, wait_s)
            held |= new
        raise FreezeError("processes are born faster than they can be stopped")

    def _hold_networks(self, pids: list[int]) -> None:
        if self._network:
            try:
                self._holding.hold_networks(pids)
            except FreezeError as e:
                raise FreezeError(f"what it sends could not be held: {e}") from None

    def _members(self) -> set[int]:
        pids = {s.pid for s in self._recorder.spaces.values() if not s.gone}
        pids |= self._recorder.tracer.targets().keys()
        if self._recorder.targets.may_join:
            pids |= set(self._recorder.targets.members())
        return pids

    def _with_newcomers(self, living: dict[int, int]) -> dict[int, int]:
        """Those that were born since the last arm are not armed, and need not be: they stand still."""
        for tgid, (number, _) in self._recorder.tracer.targets().items():
            if abi.tgid_of(number) == tgid:
                living.setdefault(number, tgid)
        return living

    def _compare(self) -> tuple[str, str]:
        self._holding.more(_VERIFY_S)
        parts = batches(self._state.parts())
        ours = digest_of((source.number, numbers, source.read) for source, numbers in parts)
        return ours, self._sink.digest()


def _in_time(deadline: float) -> None:
    late = time.monotonic() - deadline
    if late > 0:
        raise StopAndCopyError(f"the last pass took longer than was allowed, by {show_time(late)}")
