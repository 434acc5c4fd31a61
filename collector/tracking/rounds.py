"""The round protocol: no write is lost, and no process is frozen.

At each boundary, in this order (docs in CONTRIBUTING.md; tests/integration proves it):
1. flip: BPF records into the other set of maps from now on;
2. arm: write-protect every mapped page, which also returns what was written (the scan);
3. grace: wait until no BPF program that started before the flip is running;
4. drain: what was recorded before the flip, and the scan, are the round's dirty set.
Only after that may a page be copied. A write between 1 and 2 to a page not yet protected is in
the ending round's set; one to a page just protected faults again and is in the next.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from redirty.collector.arming.protection import Protection
from redirty.collector.bpf import abi
from redirty.collector.bpf.arm_log import ArmWrites
from redirty.collector.bpf.kernel_clock import offset_ns
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.errors import TargetEndedError
from redirty.collector.linux.maps import Mappings
from redirty.collector.pageset import PageSet, empty
from redirty.collector.ptrace.injector_client import Injector
from redirty.collector.target.targets import TargetSet
from redirty.collector.tracking.address_space import AddressSpace
from redirty.collector.tracking.first_writes import NOT_KNOWN, FirstWrites, first_writes
from redirty.collector.tracking.members import Members

_HIST_EDGES_S = abi.hist_edges_ns()[:-1] / 1e9
_PEEK_REGIONS = 4096  # of a system call each


@dataclass(frozen=True, eq=False)
class SpaceRound:
    """Pages that an address space wrote in a round.

    Attributes:
        pid: the process.
        space: number of the address space.
        mappings: its mappings; empty when they were never read.
        present: pages present when the round started.
        log: pages in the write-fault log.
        missed: pages that only the scan found.
        dirty: log | missed.
        redirtied: dirty pages that were present when the round started.
        scanned_pages: number of pages that the scan found; None when there was no scan.
        stats: (1,) abi.STATS of its slot, (0,) when it has none of its own.
        first_writes: Times that are not in the histogram of stats.
        unowned: present pages that are not its own: see arming.base.Presence.
    """

    pid: int
    space: int
    mappings: Mappings
    present: PageSet
    log: PageSet
    missed: PageSet
    dirty: PageSet
    redirtied: PageSet
    scanned_pages: int | None
    stats: npt.NDArray[np.void]
    first_writes: FirstWrites = NOT_KNOWN
    unowned: PageSet = field(default_factory=empty)

    @property
    def hist(self) -> npt.NDArray[np.uint64]:
        """(abi.HIST,) pages by the time of their first write, those around the arm included."""
        counts: npt.NDArray[np.uint64] = self.stats["hist"].sum(axis=0, dtype=np.uint64)
        slots = np.searchsorted(_HIST_EDGES_S, self.first_writes.elapsed_s, side="right")
        counts += np.bincount(slots, minlength=abi.HIST).astype(np.uint64)
        return counts

    @classmethod
    def of_log(cls, number: int, log: PageSet, stats: npt.NDArray[np.void]) -> SpaceRound:
        """Build the round of an address space from its log alone."""
        return cls(
            pid=abi.tgid_of(number),
            space=number,
            mappings=Mappings.of(()),
            present=empty(),
            log=log,
            missed=empty(),
            dirty=log,
            redirtied=empty(),
            scanned_pages=None,
            stats=stats[:0].copy(),
        )


@dataclass(frozen=True, eq=False)
class Round:
    """A complete round.

    Attributes:
        number: from 0.
        start_s: seconds since the start of the recording.
        duration_s: its length.
        arm_s: how long its arm took.
        spaces: address spaces that it saw.
        stats: (slots used,) abi.STATS, of all targets; slot 0: of those that had no slot yet.
        boundary_s: from the start of its end until its dirty pages were known.
    """

    number: int
    start_s: float
    duration_s: float
    arm_s: float
    spaces: tuple[SpaceRound, ...]
    stats: npt.NDArray[np.void]
    boundary_s: float = 0.0


@dataclass(frozen=True, eq=False)
class _Ended:
    """A round that ends: what is known of it, by number of the address space or for all.

    Attributes:
        candidates: What the arm that ends it returned.
        protections: The arm that began it.
        stats: (slots,) abi.STATS.
        arm_writes: Writes around the arm that began it; None: the kernel cannot log them.
    """

    candidates: dict[int, PageSet]
    protections: dict[int, Protection | None]
    stats: npt.NDArray[np.void]
    arm_writes: ArmWrites | None

    def first_writes(self, space: AddressSpace, dirty: PageSet) -> FirstWrites:
        """Return the first writes of an address space that are not in its histogram."""
        if self.arm_writes is None or not space.slot:
            return NOT_KNOWN
        ref_ns = int(self.stats["ref_ns"][space.slot]) + offset_ns()
        protection = self.protections.get(space.number)
        return first_writes(self.arm_writes.of_slot(space.slot), protection, ref_ns, dirty)


class Recorder:
    """Runs rounds over a target. Use: begin(), then end_round() repeatedly, then close()."""

    def __init__(self, tracer: Tracer, targets: TargetSet, method: str, injector: Injector) -> None:
        self.tracer = tracer
        self.targets = targets
        self.members = Members(tracer, targets, method, injector)
        self._round = 0
        self._arm_s = 0.0
        # By space, pages logged in memory that was not armed since: further writes to them do not fault.
        self._open: dict[int, PageSet] = {}

    @property
    def spaces(self) -> dict[int, AddressSpace]:
        """The target's current address spaces, by number."""
        return self.members.spaces

    # ---- rounds ----

    def begin(self) -> None:
        """Adopt the target and arm it for the first time: round 0 starts.

        Raises: RedirtyError; TargetEndedError when no process of the target is left.
        """
        self.members.adopt_all()
        for space in self.spaces.values():
            space.refresh()
        self._restrict()
        self.started_ns = self._round_ns = self.tracer.flip()
        candidates = self._arm()
        drained = self.tracer.drain()
        self.tracer.drain_mprotected()
        self.tracer.take_stats()
        self.tracer.take_arm_writes()
        for space in self.spaces.values():
            space.resolve(drained.get(space.number, empty()), candidates[space.number])

    def _restrict(self) -> None:
        """Restrict the kernel side to armed memory, where the target is a part of a process's memory."""
        if self.targets.partial:
            for space in self.spaces.values():
                self.tracer.add_ranges([(m.start, m.end) for m in space.mappings.items])

    def _arm(self, *, stopped: bool = False) -> dict[int, PageSet]:
        """Arm, wait for the grace period, and return by address space the pages that may have been written."""
        started = time.monotonic()
        skipped = self.tracer.skipped()
        candidates = {}
        for number, space in self.spaces.items():
            self.tracer.arming(space.slot)
            candidates[number] = empty() if space.gone else space.arm()
            self.tracer.armed(space.slot)
        self._arm_s = time.monotonic() - started
        if not (stopped and all(s.armed and s.armed.one_step for s in self.spaces.values())):
            self.tracer.wait_grace()
        if self.tracer.skipped() != skipped:
            for number, space in self.spaces.items():
                candidates[number] = candidates[number] | space.assume_dirty()
        return candidates

    def end_round(self, *, stopped: bool = False) -> Round:
        """End the round at this moment and start the next one.

        stopped: no thread of the target runs. What its threads wrote is logged, and what others write to memory
        that is armed in one step is in the scan: there is no need to wait for running BPF programs then.

        Raises: TargetEndedError when no process of the target is left; the round it ended in is not
            complete and has no result.
        """
        started = time.monotonic()
        for space in self.spaces.values():
            if not space.gone:
                space.refresh(stopped=stopped)
        self.members.adopt_newcomers()
        for space in self.spaces.values():
            if not space.gone and not space.mappings.items:
                space.refresh()
        if all(space.gone for space in self.spaces.values()) and not self.members.others_alive():
            raise TargetEndedError(f"{self.targets.description} ended")
        # Others may be in the middle of an exec. They are logged, and armed next time.
        return self._turn(started, stopped=stopped)

    def last_round(self) -> Round:
        """Return the round in which the target ended: pages logged until then, without a scan."""
        for space in self.spaces.values():
            space.gone = True
        return self._turn(time.monotonic())

    def _turn(self, started: float, *, stopped: bool = False) -> Round:
        arm_s = self._arm_s
        protections = {number: space.protection for number, space in self.spaces.items()}
        self._restrict()
        flipped = self.tracer.flip()
        candidates = self._arm(stopped=stopped)
        drained = self.tracer.drain()
        for number, pages in self.tracer.drain_mprotected().items():
            if number in self.spaces:  # a page that was not present faults when it is written
                known = pages & self.spaces[number].present
                drained[number] = drained.get(number, empty()) | known
        ended = _Ended(
            candidates, protections, self.tracer.take_stats(), self.tracer.take_arm_writes()
        )
        spaces = self._results(drained, ended)
        result = Round(
            number=self._round,
            start_s=(self._round_ns - self.started_ns) / 1e9,
            duration_s=(flipped - self._round_ns) / 1e9,
            arm_s=arm_s,
            spaces=spaces,
            stats=ended.stats,
            boundary_s=time.monotonic() - started,
        )
        self._round += 1
        self._round_ns = flipped
        self.members.reap()
        return result

    def _results(self, drained: dict[int, PageSet], ended: _Ended) -> tuple[SpaceRound, ...]:
        found = []
        for number, space in self.spaces.items():
            logged = drained.pop(number, empty()) | self._open.pop(number, empty())
            found.append(self._of_known(space, logged, ended))
        unseen = drained.keys() | self._open.keys()
        alive = {n for n, _ in self.tracer.targets().values()} if unseen else set()
        for number in unseen:
            logged = drained.get(number, empty()) | self._open.pop(number, empty())
            if number in alive:
                self._open[number] = logged
            # Started and ended within the round, or not armed yet: its mappings were never read.
            found.append(SpaceRound.of_log(number, logged, ended.stats))
        return tuple(found)

    def _of_known(self, space: AddressSpace, logged: PageSet, ended: _Ended) -> SpaceRound:
        """Build the round of an address space whose mappings are known."""
        scanned = ended.candidates[space.number]
        present, unowned = space.present, space.unowned
        logged, missed = self._without_raced(space.number, logged, space.resolve(logged, scanned))
        dirty = logged | missed
        has_scan = space.armed is not None and not space.gone
        return SpaceRound(
            pid=space.pid,
            space=space.number,
            mappings=space.mappings,
            present=present,
            log=logged,
            missed=missed,
            dirty=dirty,
            redirtied=dirty & present,
            scanned_pages=len(scanned & logged) + len(missed) if has_scan else None,
            stats=ended.stats[space.slot : space.slot + 1 if space.slot else 0].copy(),
            first_writes=ended.first_writes(space, dirty),
            unowned=unowned,
        )

    def _without_raced(
        self, number: int, logged: PageSet, missed: PageSet
    ) -> tuple[PageSet, PageSet]:
        """Return (logged, missed), counting pages that raced with the arm as logged.

        A first write between flip and arm is in the scan of the round that ends and in the log of the one
        that starts: it was logged, not missed.
        """
        if not 0 < len(missed.keys) <= _PEEK_REGIONS:
            return logged, missed
        raced = missed & self.tracer.peek(number, missed.keys)
        return logged | raced, missed - raced

    def wait(self, until: float, tick: Callable[[], None], tick_s: float) -> bool:
        """Sleep until CLOCK_MONOTONIC reaches `until` (seconds), calling tick() every tick_s.

        Return False when all known processes of the target have ended before.
        """
        poll = select.poll()
        waiting = {}
        for space in self.spaces.values():
            if not space.gone:
                poll.register(space.process.fileno(), select.POLLIN)
                waiting[space.process.fileno()] = space
        while True:
            left = until - time.monotonic()
            if left <= 0:
                return True
            for fd, _ in poll.poll(max(0.0, min(left, tick_s)) * 1000):
                poll.unregister(fd)
                waiting.pop(fd, None)
            tick()
            if not waiting and not self.members.others_alive():
                return False

    def close(self) -> None:
        """Unprotect all memory and release all processes; the caller closes the tracer."""
        self.members.close()
