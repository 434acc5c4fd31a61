"""The target's processes as they come and go: each gets a slot, is armed, and is let go of."""

from __future__ import annotations

import contextlib
import errno
import logging
import os

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
_LOOKS = 10  # for a tree that grows while it is looked at
_TRIES = 3  # to arm a newcomer


class Members:
    """spaces: by the kernel side's number. stopped_s: for how long processes stood still to be
    armed, in all. by_log_only: how many could not be armed."""

    def __init__(self, tracer: Tracer, targets: TargetSet, way: str, injector: Injector) -> None:
        self.tracer = tracer
        self.targets = targets
        self.way = way
        self.injector = injector
        self.spaces: dict[int, AddressSpace] = {}
        self.stopped_s = 0.0
        self.by_log_only = 0
        # of spaces let go of
        self._pinned_kib: dict[int, int] = {}
        self._unarmed: dict[int, int] = {}
        self._moved_pages: dict[int, int] = {}
        self._failures: dict[int, int] = {}  # by the kernel side's number
        self._free_slots = list(range(tracer.options.slots - 1, 0, -1))
        self._slots_to_free: list[int] = []

    def adopt(
        self, pid: int, descriptor: int | None = None, *, required: bool = True
    ) -> AddressSpace:
        """Traces a process from now on. descriptor: a userfaultfd of it, if there is one already.

        Errors: GoneError and NoProcessError when it is no more; ArmError when it cannot be armed
        and that is required, else it is traced by its faults alone.
        """
        process = Process(pid)
        slot = self._free_slots.pop() if self._free_slots else 0
        armed: Armed | None = None
        number = self._number(pid)
        try:
            self._trace(process, number, slot)
            armed = self._open_armed(pid, number, descriptor, required=required)
            if not required and self.tracer.target_space(pid) != number:
                raise GoneError  # it runs another program since: that one is taken in next
            space = AddressSpace(number, slot, process, armed, self.targets)
        except BaseException as e:
            if armed is not None:
                armed.close()
            self._give_slot_back(process, number, slot)
            process.close()
            if not isinstance(e, OSError):
                raise
            if e.errno in RESOURCE_ERRNOS:
                raise RedirtyError(f"cannot look at process {pid}: {why(e)}") from None
            raise GoneError from None  # its files in /proc went away
        self.spaces[number] = space
        return space

    def _trace(self, process: Process, number: int, slot: int) -> None:
        """Errors: GoneError when it has ended: its number must not stay a target."""
        self.tracer.set_target(process.pid, number, slot)
        if not process.alive():
            self.tracer.drop_target(process.pid)
            raise GoneError

    def _give_slot_back(self, process: Process, number: int, slot: int) -> None:
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
            # Our giving it a slot overwrote what the exec hook counted: count the exec here.
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
                armed = open_armed(self.way, pid, self.injector, timeout_s, self.targets.part)
        except ArmError as e:
            if required:
                raise
            if e.code == errno.ETIMEDOUT:
                # Waiting in the kernel, for its vfork child, say: its faults are logged meanwhile,
                # and it is tried again at the next boundary.
                raise GoneError from None
            # In the middle of its exec or of its end the kernel refuses it for no other reason.
            self._failures[number] = self._failures.get(number, 0) + 1
            if self._failures[number] < _TRIES:
                raise GoneError from None
            log.info("process %d is traced by its faults alone: %s", pid, e)
            self.by_log_only += 1
            return None
        self._failures.pop(number, None)
        self.stopped_s += armed.stopped_s
        return armed

    def adopt_all(self) -> None:
        """The target as it is now. A tree may grow meanwhile: looked at until nothing is new.

        Errors: ArmError; TargetEndedError when nothing is there.
        """
        for _ in range(_LOOKS):
            have = {space.pid for space in self.spaces.values()}
            new = [pid for pid in self.targets.members() if pid not in have]
            for pid in new:
                self._try_adopt(pid, required=self.targets.required)
            if not new or not self.targets.follow_fork:
                break
        if not self.spaces:
            raise TargetEndedError(f"{self.targets.description} ended before it could be traced")

    def adopt_newcomers(self) -> None:
        """Processes that forked, ran another program, joined or left since the last look."""
        have = {space.pid for space in self.spaces.values() if not space.gone}
        known = self.tracer.targets()
        wanted = {}
        if self.targets.may_join:
            # Looked at after the kernel side was: a process it knows that is not here has left.
            wanted = dict.fromkeys(self.targets.members())
            for pid in (have | known.keys()) - wanted.keys():
                self._let_go(pid)
            known = {tgid: target for tgid, target in known.items() if tgid in wanted}
        numbers = {number for number, _ in known.values()}
        self._failures = {n: c for n, c in self._failures.items() if n in numbers}
        for tgid, (number, _) in known.items():
            if abi.tgid_of(number) == tgid:  # else a vfork child in its parent's memory
                wanted[tgid] = None
        for pid in wanted:
            if pid not in have and pid != os.getpid():
                self._try_adopt(pid, required=False)

    def _let_go(self, pid: int) -> None:
        """A process that left the target; what it wrote until now still counts."""
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
        """Whether the kernel side knows of a process of the target that lives."""
        targets = self.tracer.targets().items()
        return any(abi.tgid_of(number) == tgid and lives(tgid) for tgid, (number, _) in targets)

    def bury(self) -> None:
        """Lets go of memory that is gone. Its slot is free one round later, when its last counts
        were taken."""
        self._free_slots += self._slots_to_free
        self._slots_to_free = []
        for number in [n for n, s in self.spaces.items() if s.gone]:
            space = self.spaces.pop(number)
            if space.slot:
                self._slots_to_free.append(space.slot)
            self._pinned_kib[number], self._unarmed[number] = space.pinned_kib, space.unarmed
            self._moved_pages[number] = space.moved_pages
            space.close()

    def unarmed(self) -> int:
        """How many writable mappings could not be armed: the most of each process."""
        living = {number: space.unarmed for number, space in self.spaces.items()}
        return sum((self._unarmed | living).values())

    def moved_pages(self) -> int:
        """Pages that counted as dirty, in all rounds, as all around them looked written at once and
        no write was logged."""
        living = {number: space.moved_pages for number, space in self.spaces.items()}
        return sum((self._moved_pages | living).values())

    def pinned_kib(self) -> int:
        """How much memory was pinned, and could be written unseen: the most of each process."""
        living = {number: space.pinned_kib for number, space in self.spaces.items()}
        return sum((self._pinned_kib | living).values())

    def close(self) -> None:
        """Unprotects all memory and lets go of all processes."""
        for number, space in self.spaces.items():
            if not space.gone and space.process.alive():
                space.look_at_pinned()
            self._pinned_kib[number], self._unarmed[number] = space.pinned_kib, space.unarmed
            self._moved_pages[number] = space.moved_pages
            space.close()
        self.spaces = {}
