"""Tracks the target's processes as they come and go: assigns each a slot, arms it, releases it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass

from redirty.collector.arming.base import Armed
from redirty.collector.arming.methods import open_armed
from redirty.collector.arming.uffd import UffdArmed
from redirty.collector.bpf import abi
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.errors import (
    RESOURCE_ERRNOS,
    ArmError,
    GoneError,
    NoProcessError,
    RedirtyError,
    TargetEndedError,
    why,
)
from redirty.collector.linux.process import Process, lives
from redirty.collector.ptrace.injector_client import Injector
from redirty.collector.target.targets import TargetSet
from redirty.collector.tracking.address_space import AddressSpace

log = logging.getLogger(__name__)

_STOP_TIMEOUT_S, _NEWCOMER_STOP_TIMEOUT_S = 2.0, 0.05
_MAX_SCANS = 10  # of a tree that grows meanwhile
_MAX_TRIES = 3  # to arm a newcomer


@dataclass(frozen=True)
class Member:
    """Figures of an address space that are reported also after its release; see AddressSpace."""

    pinned_kib: int
    unarmed: int
    moved_pages: int

    @classmethod
    def of(cls, space: AddressSpace) -> Member:
        """Take the current figures of an address space."""
        return cls(space.pinned_kib, space.unarmed, space.moved_pages)


class Members:
    """The processes of a target.

    Attributes:
        method: how they are armed.
        spaces: address spaces by their numbers.
        stopped_s: for how long processes were stopped to be armed, in all.
        by_log_only: number of processes that could not be armed.
    """

    def __init__(self, tracer: Tracer, targets: TargetSet, method: str, injector: Injector) -> None:
        self.tracer = tracer
        self.targets = targets
        self.method = method
        self.injector = injector
        self.spaces: dict[int, AddressSpace] = {}
        self.stopped_s = 0.0
        self.by_log_only = 0
        self._released: dict[int, Member] = {}  # by number
        self._failures: dict[int, int] = {}  # failed attempts to arm, by number
        self._free_slots = list(range(tracer.options.slots - 1, 0, -1))
        self._slots_to_free: list[int] = []

    def adopt(
        self, pid: int, descriptor: int | None = None, *, required: bool = True
    ) -> AddressSpace:
        """Trace a process from now on.

        Args:
            pid: the process.
            descriptor: a userfaultfd of the process, if there is one already.
            required: whether it must be armed; otherwise it is traced by its faults alone if arming fails.

        Raises: GoneError and NoProcessError when it has ended; ArmError when it cannot be armed.
        """
        process = Process(pid)
        slot = self._free_slots.pop() if self._free_slots else 0
        armed: Armed | None = None
        number = self._number(pid)
        try:
            self._trace(process, number, slot)
            armed = self._open_armed(pid, number, descriptor, required=required)
            if not required and self.tracer.target_space(pid) != number:
                raise GoneError  # it has executed another program: that one is adopted next
            space = AddressSpace(number, slot, process, armed, self.targets)
        except BaseException as e:
            if armed is not None:
                armed.close()
            self._return_slot(process, number, slot)
            process.close()
            if not isinstance(e, OSError):
                raise
            if e.errno in RESOURCE_ERRNOS:
                raise RedirtyError(f"cannot trace process {pid}: {why(e)}") from None
            raise GoneError from None  # its files in /proc have disappeared
        self.spaces[number] = space
        return space

    def _trace(self, process: Process, number: int, slot: int) -> None:
        """Make a process a target of the tracer.

        Raises: GoneError when it has ended: its process ID must not stay a target.
        """
        self.tracer.set_target(process.pid, number, slot)
        if not process.alive():
            self.tracer.drop_target(process.pid)
            raise GoneError

    def _return_slot(self, process: Process, number: int, slot: int) -> None:
        if not slot:
            return
        self._slots_to_free.append(slot)
        if self.tracer.target_space(process.pid) == number:
            with contextlib.suppress(GoneError):
                self._trace(process, number, 0)

    def _number(self, pid: int) -> int:
        number = self.tracer.target_space(pid)
        if number is None:
            return pid
        if number in {s.number for s in self.spaces.values() if s.gone}:
            # Assigning a slot overwrote what the exec hook counted: count the exec here.
            return (number + (1 << abi.TGID_BITS)) & ((1 << (64 - abi.REGION_BITS)) - 1)
        return number

    def _open_armed(
        self, pid: int, number: int, descriptor: int | None, *, required: bool
    ) -> Armed | None:
        try:
            if descriptor is not None:
                armed: Armed = UffdArmed(pid, descriptor, 0.0)
            else:
                timeout_s = _STOP_TIMEOUT_S if required else _NEWCOMER_STOP_TIMEOUT_S
                armed = open_armed(self.method, pid, self.injector, timeout_s, self.targets.part)
        except ArmError as e:
            if required:
                raise
            if e.code == errno.ETIMEDOUT:
                # The process waits in the kernel, e.g. for its vfork child: its faults are logged meanwhile, and
                # arming is tried again at the next boundary.
                raise GoneError from None
            # During an exec or exit the kernel may refuse for that reason alone.
            self._failures[number] = self._failures.get(number, 0) + 1
            if self._failures[number] < _MAX_TRIES:
                raise GoneError from None
            log.info("process %d is traced by its faults alone: %s", pid, e)
            self.by_log_only += 1
            return None
        self._failures.pop(number, None)
        self.stopped_s += armed.stopped_s
        return armed

    def adopt_all(self) -> None:
        """Adopt all current processes. A tree may grow meanwhile: it is scanned until nothing is new.

        Raises: ArmError; TargetEndedError when no process is left.
        """
        for _ in range(_MAX_SCANS):
            known = {space.pid for space in self.spaces.values()}
            new = [pid for pid in self.targets.members() if pid not in known]
            for pid in new:
                self._try_adopt(pid, required=self.targets.required)
            if not new or not self.targets.follow_fork:
                break
        if not self.spaces:
            raise TargetEndedError(f"{self.targets.description} ended before it could be traced")

    def adopt_newcomers(self) -> None:
        """Adopt processes that forked, executed another program or joined since the last call.

        Processes that left the target are released.
        """
        adopted = {space.pid for space in self.spaces.values() if not space.gone}
        traced = self.tracer.targets()
        current = {}
        if self.targets.may_join:
            # Read after the kernel side's list: a process that is only in that list has left.
            current = dict.fromkeys(self.targets.members())
            for pid in (adopted | traced.keys()) - current.keys():
                self._release(pid)
            traced = {tgid: target for tgid, target in traced.items() if tgid in current}
        numbers = {number for number, _ in traced.values()}
        self._failures = {n: c for n, c in self._failures.items() if n in numbers}
        for tgid, (number, _) in traced.items():
            if abi.tgid_of(number) == tgid:  # else a vfork child in its parent's memory
                current[tgid] = None
        for pid in current:
            if pid not in adopted and pid != os.getpid():
                self._try_adopt(pid, required=False)

    def _release(self, pid: int) -> None:
        """Stop tracing a process that left the target; its writes until now still count."""
        self.tracer.drop_target(pid)
        for space in self.spaces.values():
            if space.pid == pid:
                space.gone = True

    def _try_adopt(self, pid: int, *, required: bool) -> None:
        try:
            self.adopt(pid, required=required)
        except (GoneError, NoProcessError, TargetEndedError):
            pass

    def others_alive(self) -> bool:
        """Return whether the kernel side knows a living process of the target."""
        targets = self.tracer.targets().items()
        return any(abi.tgid_of(number) == tgid and lives(tgid) for tgid, (number, _) in targets)

    def reap(self) -> None:
        """Release address spaces that no longer exist.

        A slot is free one round later, when its last counts have been read.
        """
        self._free_slots += self._slots_to_free
        self._slots_to_free = []
        for number in [n for n, s in self.spaces.items() if s.gone]:
            space = self.spaces.pop(number)
            if space.slot:
                self._slots_to_free.append(space.slot)
            self._released[number] = Member.of(space)
            space.close()

    def _all(self) -> Iterable[Member]:
        """Return the figures of all address spaces that belonged to the target."""
        current = {number: Member.of(space) for number, space in self.spaces.items()}
        return (self._released | current).values()

    def unarmed(self) -> int:
        """Return the number of writable mappings that could not be armed: the sum of each process's maximum."""
        return sum(member.unarmed for member in self._all())

    def moved_pages(self) -> int:
        """Return the pages that count as dirty, in all rounds, only because they were moved.

        All pages around such a page looked written at once, and no write was logged.
        """
        return sum(member.moved_pages for member in self._all())

    def pinned_kib(self) -> int:
        """Return the KiB of pinned memory, where writes are not tracked: the sum of each process's maximum."""
        return sum(member.pinned_kib for member in self._all())

    def close(self) -> None:
        """Unprotect all memory and release all processes."""
        for number, space in self.spaces.items():
            if not space.gone and space.process.alive():
                space.update_pinned()
            self._released[number] = Member.of(space)
            space.close()
        self.spaces = {}
