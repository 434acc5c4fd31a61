"""Relocates page tables: all threads of a target are stopped, and one of them moves memory away and back.

Both moves fill new page tables, which lie where that thread's memory policy says. From the first
move to the last the target depends on no other process: see relocation_stub.S. Run by the injector
with the bare library.
"""

import ctypes
import errno
import fcntl
import gc
import io
import os
import struct
import time
from collections.abc import Callable

from . import borrowed, procfs, relocation_stub, tracee
from .arch import Architecture
from .borrowed import DISPATCHED, BorrowedThread
from .code_search import Code
from .errors import TraceeError
from .relocation_layout import PAGE_SIZE, clipped, free_place, layout
from .thread_group import StoppedThreads
from .tracee import Tracee

_MMAP, _MUNMAP = 9, 11
_PROTECTION = 7
_MAP_FLAGS = 0x100022  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
_REGION = 1 << 21
_SPARE_MAPPINGS = 16
_POLL_S = 0.00005
_SLOW_AFTER_S, _SLOW_POLL_S = 2.0, 0.02
_SCAN = 0xC0606610  # as in linux/pagemap.py, which needs more than the bare library


def read_all(maps: "io.FileIO") -> bytes:
    """Read an open maps file again from its start."""
    maps.seek(0)
    return maps.readall()


class InUseError(TraceeError):
    """Memory that must not be moved, as the kernel itself uses it on a thread's return to user space.

    Attributes:
        addresses: Addresses of such memory of all threads.
    """

    def __init__(self, addresses: "list[int]") -> None:
        super().__init__(errno.EADDRINUSE, "the kernel keeps a thread's rseq area in use")
        self.addresses = addresses


def require_unused(areas: "list[int]", segments: "list[tuple[int, int, int]]") -> None:
    """Check that no rseq area lies in the memory to move.

    The kernel kills a thread that returns from it while its rseq area is away (SIGSEGV): the mover
    and, once the injector is gone, the parked ones.

    Args:
        areas: Addresses of the threads' areas; -1: not known.
        segments: (address, transit address, bytes) each.

    Raises:
        InUseError: An area lies there.
        TraceeError: The kernel does not report where they are (ENOSYS).
    """
    if -1 in areas:
        raise TraceeError(
            errno.ENOSYS, "the kernel (before 5.13) does not report where rseq areas are"
        )
    if any(start <= area < start + size for area in areas for start, _, size in segments):
        raise InUseError(areas)


def require_unarmed(pid: int, segments: "list[tuple[int, int, int]]") -> None:
    """Check that no memory to move is registered with a userfaultfd for asynchronous write protection.

    A move would lose the registration, and a recording would miss writes. The plan leaves such mappings
    out; this check finds one that has been registered since.

    Raises:
        TraceeError: Some memory is registered (EAGAIN).
    """
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for start, _, _ in segments:
            # PAGEMAP_SCAN of one page, which succeeds only where asynchronous write protection is on
            argument = bytearray(
                struct.pack("<12Q", 96, 2, start, start + PAGE_SIZE, 0, 0, 0, 0, 0, 0, 0, 0)
            )
            try:
                fcntl.ioctl(pagemap, _SCAN, argument, True)
            except OSError as e:
                if e.errno == errno.EPERM:
                    continue
                return  # before Linux 6.7: there is no such protection
            raise TraceeError(errno.EAGAIN, "a recording of it has started")


class StubRun:
    """A move of some segments, away and back, with all threads stopped.

    Attributes:
        threads: All threads of the target, the mover first.
        mover: The one that moves memory; the others are parked.
        code: Code of the target for system calls.
        memory: Descriptor of its /proc/PID/mem.
        place: Address at which the stub is mapped.
        bytes: Size of the stub's mapping.
        moved_s: How long the moves took.
        saved: TID -> registers to restore.
        masks: TID -> signal mask to restore.
    """

    def __init__(self, target: StoppedThreads, code: Code, memory: int) -> None:
        """Save the state of all threads.

        Raises:
            TraceeError: A thread cannot run the stub.
        """
        self.mover: Tracee = next(
            (t for t in target.threads if borrowed.is_on_stack(code, t.registers(), t.arch)),
            target.threads[0],
        )
        self.threads: list[Tracee] = [
            self.mover,
            *(thread for thread in target.threads if thread is not self.mover),
        ]
        self.code = code
        self.memory = memory
        self.place = 0
        self.bytes = 0
        self.moved_s = 0.0
        self.saved = {}
        self.masks = {}
        for thread in self.threads:
            words = thread.registers()
            if words[thread.arch.mode] != thread.arch.mode_value:
                raise TraceeError(errno.ENOSYS, "it is a 32-bit program")
            if tracee.catches_calls(thread):
                raise TraceeError(errno.EPERM, DISPATCHED)
            tracee.leave_critical_section(thread, words, memory)
            self.saved[thread.tid] = words
            self.masks[thread.tid] = thread.mask()

    def run(self, place: int, shared: bytes) -> bytes:
        """Map the stub at a free place, run it, unmap it.

        Args:
            place: Free addresses, a multiple of 2 MiB.
            shared: The page shared with the stub, see relocation_stub.shared().

        Returns:
            That page at the end.

        Raises:
            TraceeError: The target cannot map the stub, or has ended.
        """
        count = len(self.threads)
        self.bytes = (len(shared) + count * relocation_stub.SLOT_BYTES + PAGE_SIZE - 1) & -PAGE_SIZE
        self._map(place)
        try:
            slots = [
                relocation_stub.slot(place, self.masks[t.tid], list(self.saved[t.tid]))
                for t in self.threads
            ]
            os.pwrite(self.memory, shared + b"".join(slots), place)
            try:
                for i, thread in reversed(list(enumerate(self.threads))):
                    # the mover is set last
                    entry = relocation_stub.PARK if i else relocation_stub.MOVER
                    code = place + len(shared) + i * relocation_stub.SLOT_BYTES
                    self._enter(thread, code + entry)
                self._move()
            finally:
                self._leave()
            return self._read(0, len(shared))
        finally:
            self._unmap()

    def _read(self, offset: int, size: int) -> bytes:
        """Read from the page shared with the stub."""
        data = os.pread(self.memory, size, self.place + offset)
        if len(data) != size:
            raise TraceeError(errno.ESRCH, "the process ended")
        return data

    def _enter(self, thread: Tracee, entry: int) -> None:
        saved = self.saved[thread.tid]
        words = type(saved)(*relocation_stub.borrowed(list(saved), entry))
        # Registers first: a thread released in between restores its own signal mask.
        thread.set_registers(words)
        thread.block_signals(tracee.BLOCKED_ALL)

    def _move(self) -> None:
        """Let the mover run until it reports that it is done."""
        started = time.monotonic()
        mover = self.mover
        mover.resume(tracee.CONT)
        done = struct.pack("<I", relocation_stub.DONE)
        while self._read(relocation_stub.STATE, 4) != done:
            if status := tracee.poll_stop(mover.tid):
                if not os.WIFSTOPPED(status):
                    raise TraceeError(errno.ESRCH, "the process ended")
                mover.resume(tracee.CONT, max(mover.hold_back(status), 0))
            # A target that is frozen meanwhile takes as long as its owner wants.
            slow = time.monotonic() - started > _SLOW_AFTER_S
            time.sleep(_SLOW_POLL_S if slow else _POLL_S)
        self.moved_s = time.monotonic() - started
        mover.interrupt(None)
        now = mover.registers()
        if not self.place <= relocation_stub.instruction(list(now)) < self.place + self.bytes:
            # This process was delayed for so long that the thread has left the stub by itself.
            self.saved[mover.tid], self.masks[mover.tid] = now, mover.mask()

    def _leave(self) -> None:
        """Restore all threads, in the opposite order of _enter()."""
        for thread in self.threads:
            try:
                thread.set_mask(ctypes.create_string_buffer(self.masks[thread.tid], 8))
                thread.set_registers(self.saved[thread.tid])
            except OSError:
                pass  # killed meanwhile

    def _map(self, place: int) -> None:
        flags = _MAP_FLAGS
        got = self._call(_MMAP, place, self.bytes, _PROTECTION, flags, 0xFFFF_FFFF_FFFF_FFFF, 0)
        if got != place:
            code = -got if got < 0 else errno.EEXIST
            raise TraceeError(code, f"mmap in it: {os.strerror(code)}")
        self.place = place

    def _unmap(self) -> None:
        try:
            self._call(_MUNMAP, self.place, self.bytes)
        except OSError:
            pass  # killed meanwhile

    def _call(self, number: int, *arguments: int) -> int:
        """Run one system call in the mover and restore it; return the result, or minus errno."""
        with BorrowedThread(self.mover, self.code, self.memory) as lent:
            return lent.call(number, *arguments)


class RelocationRequest:
    """A move, prepared as far as possible while the target still runs.

    Attributes:
        maps: The maps file for which it was prepared.
        threads: Number of threads for which there is room.
        place: Where the stub goes.
        segments: (address, transit address, bytes) each.
        shared: The page shared with the stub.
    """

    def __init__(self, maps: bytes, request: "dict[str, object]", threads: int) -> None:
        """Prepare a request.

        Raises:
            TraceeError: The request cannot be carried out; EAGAIN: the mappings have changed.
        """
        self.maps = maps
        node = int(str(request["node"]))
        runs = [(int(a), int(b)) for a, b in request["runs"]]  # type: ignore[attr-defined]
        expected = [(int(a), int(b), str(p)) for a, b, p in request["segments"]]  # type: ignore[attr-defined]
        if len(expected) > relocation_stub.MAX_SEGMENTS or node >= relocation_stub.MAX_NODES:
            raise TraceeError(errno.E2BIG, "too many mappings for one step")
        mappings = [mapping for mapping, _ in procfs.parse_maps(maps)]
        if clipped(mappings, runs) != expected:
            raise TraceeError(errno.EAGAIN, "its mappings changed")
        with open("/proc/sys/vm/max_map_count", encoding="ascii") as limit:
            max_mappings = int(limit.read())
        if len(mappings) + 2 * len(expected) + _SPARE_MAPPINGS > max_mappings:
            why = f"it has {len(mappings)} mappings, near vm.max_map_count"
            raise TraceeError(errno.ENOMEM, why)
        self.threads = threads
        code_bytes = _REGION + threads * relocation_stub.SLOT_BYTES
        self.place = free_place(mappings, code_bytes + sum(b - a + 2 * _REGION for a, b in runs))
        if not self.place:
            raise TraceeError(errno.ENOMEM, "no free addresses to move memory to")
        beyond = (self.place + code_bytes + _REGION) & ~(_REGION - 1)
        self.segments = layout(runs, expected, beyond)
        self.shared = relocation_stub.shared(node, self.segments)


def relocate(
    request: "dict[str, object]", arch: Architecture, code: Code, overdue: "Callable[[], None]"
) -> "dict[str, object]":
    """Carry out a request and return the answer.

    Args:
        request: pid, node, runs ([start, end) multiples of 2 MiB, moved as a whole), segments (start,
            end, permissions of what is expected to be mapped there), timeout_s (for the stop).
        arch: The architecture.
        code: Code of the target for system calls.
        overdue: Called once when the target does not run on.

    Raises:
        TraceeError: The move was not done, or only in part; the target is restored in any case.
        OSError: The process is gone.
    """
    pid = int(str(request["pid"]))
    gc.disable()
    with (
        open(f"{procfs.directory(pid)}/mem", "r+b", buffering=0) as memory,
        open(f"{procfs.directory(pid)}/maps", "rb", buffering=0) as maps,
    ):
        ready = RelocationRequest(read_all(maps), request, 2 * len(procfs.living_threads(pid)) + 16)
        target = StoppedThreads(pid, arch, float(str(request["timeout_s"])), runs_calls=True)
        try:
            if not code.still_there(memory.fileno(), arch):
                raise TraceeError(errno.EAGAIN, "its mappings changed")
            now = read_all(maps)
            if now != ready.maps or len(target.threads) > ready.threads:
                ready = RelocationRequest(now, request, len(target.threads))
            areas = [tracee.rseq_area(thread) for thread in target.threads]
            require_unused([area for area in areas if area], ready.segments)
            require_unarmed(pid, ready.segments)
            stub_run = StubRun(target, code, memory.fileno())
            stub_run.mover.overdue = overdue
            shared = stub_run.run(ready.place, ready.shared)
        finally:
            target.release()
        stopped_s = time.monotonic() - target.started
    policy, refused, retries = (
        struct.unpack_from("<q", shared, o)[0]
        for o in (relocation_stub.POLICY_ERROR, relocation_stub.ERROR, relocation_stub.RETRIES)
    )
    if policy:
        raise TraceeError(-policy, f"set_mempolicy in it: {os.strerror(-policy)}")
    if refused:
        raise TraceeError(-refused, f"mremap in it: {os.strerror(-refused)}")
    return {
        "ok": True,
        "stopped_s": stopped_s,
        "moved_s": stub_run.moved_s,
        "threads": len(target.threads),
        "retries": retries,
    }
