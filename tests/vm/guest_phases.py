"""The phases of the workload in the test VM, and the pages that each writes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import numpy as np

from tests.workloads.driver import PAGE_BYTES, Area, Pages, Phases

AREAS = {
    "anon": ("anon_private", 2),
    "shared": ("anon_shared", 2),
    "memfd": ("memfd", 2),
    "private_file": ("file_private", 2),
    "shared_file": ("file_shared", 2),
}
SHARED_PAGES = 200

Written = dict[str, Pages]
"""Area: page numbers that a phase wrote."""


class Truth:
    """The pages that a phase wrote, and those that are present: tracked independently of redirty.

    present: page indices by area, as of the start of the round.
    """

    def __init__(self, phases: Phases, arm: str) -> None:
        self.phases = phases
        self.arm = arm
        self.present: dict[str, set[int]] = {name: set() for name in phases.areas}
        self._read: dict[str, set[int]] = {}
        self._dropped: dict[str, set[int]] = {}

    def indices(self, name: str, pages: Pages) -> set[int]:
        """Return page numbers as indices within their area."""
        return {int(page) - self.phases.areas[name].first_page for page in pages}

    def read(self, name: str, pages: Pages) -> None:
        """Note pages that are present from the end of this phase on, though not written."""
        self._read[name] = self.indices(name, pages)

    def dropped(self, name: str, pages: Pages) -> None:
        """Note pages that are gone at the end of this phase."""
        self._dropped[name] = self.indices(name, pages)

    def end_phase(self, written: dict[str, set[int]]) -> None:
        """End the phase; the next round starts."""
        for name in self.phases.areas:
            present = self.present.get(name, set())
            present = present | written.get(name, set()) | self._read.get(name, set())
            self.present[name] = present - self._dropped.get(name, set())
        self._read, self._dropped = {}, {}


class IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def write_from_outside(phases: Phases, area: Area, first: int, count: int) -> Pages:
    """Write pages by process_vm_writev: this process is the one that runs."""
    libc = ctypes.CDLL(None, use_errno=True)
    data = ctypes.create_string_buffer(b"\x5a" * (count * PAGE_BYTES), count * PAGE_BYTES)
    local = IoVec(ctypes.addressof(data), count * PAGE_BYTES)
    remote = IoVec(area.start + first * PAGE_BYTES, count * PAGE_BYTES)
    done = libc.process_vm_writev(
        phases.pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, ctypes.c_ulong(0)
    )
    if done != count * PAGE_BYTES:
        raise OSError(ctypes.get_errno(), "process_vm_writev")
    return area.expand([[first, first + count - 1]])


def poke(phases: Phases, area: Area, first: int, count: int) -> Pages:
    """Write a word of each page through /proc/PID/mem, as a debugger does."""
    memory = os.open(f"/proc/{phases.pid}/mem", os.O_WRONLY)
    try:
        for page in range(first, first + count):
            os.pwrite(memory, b"redirty!", area.start + page * PAGE_BYTES + 64)
    finally:
        os.close(memory)
    return area.expand([[first, first + count - 1]])


def steps(truth: Truth) -> list[tuple[str, Callable[[], Written]]]:
    """Yield the phases, each ended by a boundary between rounds."""
    phases = truth.phases

    def everywhere(seed: int) -> Callable[[], Written]:
        return lambda: {
            name: phases.write(name, "random", seed=seed, count=SHARED_PAGES, threads=2).pages
            for name in AREAS
        }

    def collide() -> Written:
        names = ("anon", "memfd")
        return {n: phases.write(n, "collide:random", 5, 64, threads=2).pages for n in names}

    def read_only() -> Written:
        truth.read("anon", phases.read("anon", "range:400", 1, 60).pages)
        return {}

    def write_read_pages() -> Written:
        return {"anon": phases.write("anon", "range:410", 1, 30).pages}

    def kernel_reads(direct: bool) -> Callable[[], Written]:
        return lambda: {
            "anon": phases.kread("anon", "range:300", 1, 40, direct=direct).pages,
            "shared": phases.kread("shared", "range:300", 1, 40, direct=direct).pages,
        }

    def outside() -> Written:
        names = ("anon", "memfd", "private_file")
        return {n: write_from_outside(phases, phases.areas[n], 480, 20) for n in names}

    def debugger() -> Written:
        return {"anon": poke(phases, phases.areas["anon"], 200, 25)}

    def after_fork() -> Written:
        phases.fork()
        phases.child_write("anon", "range:0", count=50)
        written = phases.write("anon", "range:20", 1, 60).pages
        phases.child_exit()
        return {"anon": written}

    def written_back() -> Written:
        phases.msync("shared_file")
        return {"shared_file": phases.write("shared_file", "range:100", 1, 128).pages}

    def reprotected() -> Written:
        written = phases.write("anon", "range:64", 1, 32).pages
        phases.mprotect("anon", False, 64, 32)
        phases.mprotect("anon", True, 80, 16)
        more = phases.write("anon", "range:80", 1, 16).pages
        phases.mprotect("anon", True, 64, 16)
        return {"anon": np.union1d(written, more)}

    def drop_only() -> Written:
        truth.dropped("anon", phases.dontneed("anon", 0, 256))
        return {}

    def write_dropped() -> Written:
        return {"anon": phases.write("anon", "range:128", 1, 64).pages}

    def mapped_late() -> Written:
        phases.mapnew("late", "anon_private", 2)
        return {"late": phases.write("late", "random", 9, 100, threads=2).pages}

    def short_threads() -> Written:
        return {"late": phases.transient("late", 0, 8).pages}

    def huge_whole(page: int) -> Pages:
        """Return the huge page of a page: the hardware tracks writes to it as a whole."""
        return phases.areas["huge"].pages[page // 512 * 512 :][:512]

    def huge_first_touch() -> Written:
        phases.mapnew("huge", "thp", 4)
        phases.write("huge", "range:7", 1, 1)
        return {"huge": huge_whole(7)}

    def huge_second() -> Written:
        """Write memory that was not present when armed: it can still become a huge page."""
        phases.write("huge", "range:600", 1, 1)
        return {"huge": huge_whole(600)}

    def huge_armed(page: int) -> Callable[[], Written]:
        """Write an armed huge page, which the kernel splits at its first write under userfaultfd."""

        def write() -> Written:
            written = phases.write("huge", f"range:{page}", 1, 1).pages
            return {"huge": written if truth.arm == "uffd" else huge_whole(page)}

        return write

    return [
        ("first_touch", everywhere(3)),
        ("rewrite", everywhere(3)),
        ("other_pages", everywhere(4)),
        ("collide", collide),
        ("read_only", read_only),
        ("write_read_pages", write_read_pages),
        ("nothing", dict),
        ("kernel_read", kernel_reads(False)),
        ("kernel_read_direct", kernel_reads(True)),
        ("process_vm_writev", outside),
        ("proc_mem", debugger),
        ("after_fork", after_fork),
        ("written_back", written_back),
        ("reprotected", reprotected),
        ("drop_only", drop_only),
        ("write_dropped", write_dropped),
        ("mapped_late", mapped_late),
        ("short_threads", short_threads),
        ("huge_first_touch", huge_first_touch),
        ("huge_rewrite", huge_armed(9)),
        ("huge_second", huge_second),
    ]
