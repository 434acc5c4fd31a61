"""The round protocol: nothing is lost, nobody is frozen.

At each boundary, in this order (docs in CONTRIBUTING.md; tests/integration proves it):
1. flip: BPF records into the other set of maps from now on;
2. arm: write-protect every mapped page, which also tells what was written (the scan);
3. grace: no BPF program that began before the flip is still running;
4. drain: what was recorded before the flip, and the scan, are the round's dirty set.
Only after that may a page be copied. A write between 1 and 2 to a page not yet protected is in
the ending round's set; one to a page just protected faults again and is in the next.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.errors import TargetEndedError
from redirty.collector.linux.maps import Mappings
from redirty.collector.pageset import PageSet, empty
from redirty.collector.ptrace.injector_client import Injector
from redirty.collector.target.targets import TargetSet
from redirty.collector.tracking.address_space import AddressSpace
from redirty.collector.tracking.members import Members

_PEEK_REGIONS = 4096  # of a system call each


@dataclass(frozen=True, eq=False)
class SpaceRound:
    """What one address space did in one round. present_pages: when the round began.

    dirty = log | missed; redirtied: those of them present when the round began.
    stats: (1,) abi.STATS of its slot, (0,) when it has none of its own.
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


@dataclass(frozen=True, eq=False)
class Round:
    """One complete round. start_s: since the recording's start; arm_s: how long arming took; boundary_s:
    from the look at the target that ended it until its dirty pages were known.

    stats: (slots used,) abi.STATS, all targets' and, in slot 0, those that had no slot yet.
    """

    number: int
    start_s: float
    duration_s: float
    arm_s: float
    spaces: tuple[SpaceRound, ...]
    stats: npt.NDArray[np.void]
    boundary_s: float = 0.0


class Recorder:
    """Runs rounds over a target. Use: begin(), then end_round() again and again, then close()."""

    def __init__(self, tracer: Tracer, targets: TargetSet, way: str, injector: Injector) -> None:
        self.tracer = tracer
        self.targets = targets
        self.members = Members(tracer, targets, way, injector)
        self._round = 0
        self._arm_s = 0.0
        # By space, logged in memory that was not armed since: it can be written again unseen.
        self._open: dict[int, PageSet] = {}

    @property
    def spaces(self) -> dict[int, AddressSpace]:
        """The target's address spaces now."""
        return self.members.spaces

    # ---- rounds ----

    def begin(self) -> None:
        """Adopts the target and arms it for the first time: round 0 begins.

        Errors: RedirtyError; TargetEndedError when nothing of the target is left.
        """
        self.members.adopt_all()
        for space in self.spaces.values():
            space.look()
        self._choose()
        self.started_ns = self._round_ns = self.tracer.flip()
        candidates = self._arm()
        drained = self.tracer.drain()
        self.tracer.drain_mprotected()
        self.tracer.take_stats()
        for space in self.spaces.values():
            space.settle(drained.get(space.number, empty()), candidates[space.number])

    def _choose(self) -> None:
        """What is armed is recorded, where not all of a process's memory belongs to the target."""
        if self.targets.partial:
            for space in self.spaces.values():
                self.tracer.add_ranges([(m.start, m.end) for m in space.mappings.items])

    def _arm(self, *, still: bool = False) -> dict[int, PageSet]:
        """Arms, and waits for the grace period: by address space, what may have been written."""
        begun = time.monotonic()
        skipped = self.tracer.skipped()
        candidates = {}
        for number, space in self.spaces.items():
            self.tracer.arming(space.slot)
            candidates[number] = empty() if space.gone else space.arm()
            self.tracer.armed(space.slot)
        self._arm_s = time.monotonic() - begun
        if not (still and all(s.armed and s.armed.one_step for s in self.spaces.values())):
            self.tracer.wait_grace()
        if self.tracer.skipped() != skipped:
            for number, space in self.spaces.items():
                candidates[number] = candidates[number] | space.doubt()
        return candidates

    def end_round(self, *, still: bool = False) -> Round:
        """Ends the round at this moment and begins the next one. still: no thread of the target runs. What
        they wrote is logged, and what others write to memory that is armed in one step is in the scan:
        then nobody needs to wait for BPF programs that still run.

        Errors: TargetEndedError when nothing of the target is left; the round it ended in is
        not complete and gives no result.
        """
        begun = time.monotonic()
        for space in self.spaces.values():
            if not space.gone:
                space.look(still=still)
        self.members.adopt_newcomers()
        for space in self.spaces.values():
            if not space.gone and not space.mappings.items:
                space.look()
        if all(space.gone for space in self.spaces.values()) and not self.members.others_alive():
            raise TargetEndedError(f"{self.targets.description} ended")
        # With others: in the middle of running another program, say. They are logged, and armed next time.
        return self._turn(begun, still=still)

    def last_round(self) -> Round:
        """The round in which the target ended: what was logged until then, without a scan."""
        for space in self.spaces.values():
            space.gone = True
        return self._turn(time.monotonic())

    def _turn(self, begun: float, *, still: bool = False) -> Round:
        arm_s = self._arm_s
        self._choose()
        flipped = self.tracer.flip()
        candidates = self._arm(still=still)
        drained = self.tracer.drain()
        for number, pages in self.tracer.drain_mprotected().items():
            if number in self.spaces:  # what was not there faults when it is written
                known = pages & self.spaces[number].present
                drained[number] = drained.get(number, empty()) | known
        stats = self.tracer.take_stats()
        spaces = self._results(drained, candidates, stats)
        result = Round(
            number=self._round,
            start_s=(self._round_ns - self.started_ns) / 1e9,
            duration_s=(flipped - self._round_ns) / 1e9,
            arm_s=arm_s,
            spaces=spaces,
            stats=stats,
            boundary_s=time.monotonic() - begun,
        )
        self._round += 1
        self._round_ns = flipped
        self.members.bury()
        return result

    def _results(
        self,
        drained: dict[int, PageSet],
        candidates: dict[int, PageSet],
        stats: npt.NDArray[np.void],
    ) -> tuple[SpaceRound, ...]:
        found = []
        for number, space in self.spaces.items():
            logged = drained.pop(number, empty()) | self._open.pop(number, empty())
            scanned = candidates[number]
            present = space.present
            missed = space.settle(logged, scanned)
            if 0 < len(missed.keys) <= _PEEK_REGIONS:
                # A first write between flip and arm is in the scan of the round that ends and in
                # the log of the one that begins: logged, not missed.
                raced = missed & self.tracer.peek(number, missed.keys)
                logged, missed = logged | raced, missed - raced
            dirty = logged | missed
            by_scan = (
                None if space.armed is None or space.gone else len(scanned & logged) + len(missed)
            )
            found.append(
                SpaceRound(
                    pid=space.pid,
                    space=number,
                    mappings=space.mappings,
                    present=present,
                    log=logged,
                    missed=missed,
                    dirty=dirty,
                    redirtied=dirty & present,
                    scanned_pages=by_scan,
                    stats=stats[space.slot : space.slot + 1 if space.slot else 0].copy(),
                )
            )
        alive = {n for n, _ in self.tracer.targets().values()} if drained or self._open else set()
        for number in drained.keys() | self._open.keys():
            # Born and gone within the round, or not armed yet: its writes were logged, its mappings
            # never seen.
            logged = drained.get(number, empty()) | self._open.pop(number, empty())
            if number in alive:
                self._open[number] = logged
            found.append(
                SpaceRound(
                    pid=abi.tgid_of(number),
                    space=number,
                    mappings=Mappings.of(()),
                    present=empty(),
                    log=logged,
                    missed=empty(),
                    dirty=logged,
                    redirtied=empty(),
                    scanned_pages=None,
                    stats=stats[:0].copy(),
                )
            )
        return tuple(found)

    def wait(self, until: float, tick: Callable[[], None], tick_s: float) -> bool:
        """Sleeps until CLOCK_MONOTONIC reaches until (seconds), calling tick() every tick_s.

        Returns False when all known processes of the target have ended before.
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
        """Unprotects all memory and lets go of all processes; the tracer is the caller's."""
        self.members.close()
