"""Writes that no instruction of the program makes, or that no fault of the processor shows: found
all the same, and the column that says what the log missed tells the truth."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.host.targets import parse_mounts
from redirty.collector.rounds import SpaceRound

from tests.host.recording import NONE, assert_same, bytes_of, kernel_state, wait_idle, within
from tests.host.walk import Start, Walk, every_kind, span
from tests.tiers import require
from tests.workloads.driver import WorkloadError
from tests.workloads.pages import Area, Pages

pytestmark = pytest.mark.usefixtures("tracing")


@every_kind("kind")
def test_read_by_the_kernel(start: Start, kind: str) -> None:
    """read(2) into a buffer is seen by every kind of probe."""
    walk = start(a=(kind, 2))
    truth = walk.phases.kread("a", "range:0", count=100).pages
    walk.end(truth, again=NONE, missed=NONE)
    truth = walk.phases.kread("a", "stride:5", threads=2).pages
    walk.end(truth, again=truth[truth < walk.phases.areas["a"].first_page + 100], missed=NONE)
    truth = walk.phases.write("a", "all").pages
    walk.end(truth, missed=NONE)
    truth = walk.phases.kread("a", "random", count=64).pages
    walk.end(truth, again=truth, missed=NONE)


@every_kind("kind")
def test_direct_read(start: Start, kind: str) -> None:
    """O_DIRECT writes pages without a fault of the processor: the log of tracepoints cannot see
    it, missed_pages says so, and the pages are dirty all the same."""
    walk = start(a=(kind, 2))
    require(
        file_system(walk.phases.directory) not in ("tmpfs", "overlay"),
        "needs direct I/O to a block device in the directory for temporary files",
    )
    seen = walk.phases.write("a", "range:0", count=100).pages
    walk.end(seen, again=NONE, missed=NONE)
    for pattern, count in (("range:50", 100), ("random", 64), ("stride:3", 40)):
        truth = walk.phases.kread("a", pattern, count=count, direct=True).pages
        walk.end(truth, missed=NONE if walk.live.log_sees_all else truth)
    # seen by the processor first, then written directly: no page is missed
    truth = walk.phases.write("a", "all").pages
    walk.phases.kread("a", "all", direct=True)
    walk.end(truth, missed=NONE)


def file_system(directory: Path) -> str:
    """The type of the file system that a directory is on."""
    best = ("", "")
    for where, kind in parse_mounts(Path("/proc/self/mounts").read_bytes()):
        if directory.resolve().is_relative_to(where) and len(str(where)) >= len(best[0]):
            best = (str(where), kind)
    return best[1]


class _Span(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("length", ctypes.c_size_t))


def write_into(pid: int, pages: Pages) -> None:
    """Writes whole pages of another process, by process_vm_writev."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.process_vm_writev.restype = ctypes.c_ssize_t
    content = ctypes.create_string_buffer(b"\x5a" * 4096, 4096)
    for address, length in bytes_of(pages):
        ours = _Span(ctypes.addressof(content), length)
        theirs = _Span(address, length)
        done = libc.process_vm_writev(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
        assert done == length, os.strerror(ctypes.get_errno())


@every_kind("kind")
def test_written_from_outside(start: Start, kind: str) -> None:
    """process_vm_writev from another process: found under the address space it went to."""
    walk = start(a=(kind, 2))
    area = walk.phases.areas["a"]
    walk.phases.write("a", "range:0", count=200)
    wait_idle(walk.phases.pid)
    walk.live.end_round()
    walk = Walk(walk.phases, walk.live)
    for truth in (span(area, 10, 20), area.pages[3:150:7], span(area, 250, 40)):
        write_into(walk.phases.pid, truth)
        walk.end(truth, missed=NONE if walk.live.log_sees_all else truth)
    own = walk.phases.write("a", "range:100", count=30).pages
    other = span(area, 120, 40)
    write_into(walk.phases.pid, other)
    unseen = NONE if walk.live.log_sees_all else np.setdiff1d(other, own)
    walk.end(np.union1d(own, other), missed=unseen)


# ---- huge pages ----


def huge_kib(pid: int, area: Area) -> int:
    """How much of an area is mapped with huge pages."""
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_bytes().decode(errors="replace").split("\n"):
        head = line.split() or [":"]
        if not head[0].endswith(":"):
            inside = int(head[0].split("-")[0], 16) == area.start
        elif inside and head[0] == "AnonHugePages:":
            return int(head[1])
    return 0


def check_missed(walk: Walk, space: SpaceRound, area: Area, truth: Pages) -> None:
    """Tracepoints tell the address of a fault and no more: only the first write to a huge page."""
    log = within(space.log, area)
    if walk.live.log_sees_all:
        assert_same(log, within(space.dirty, area), "log")
    else:
        assert len(log), "nothing was logged"
        assert_same(np.setdiff1d(log, truth), NONE, "logged and not written")
    missed = np.setdiff1d(within(space.dirty, area), log)
    assert_same(within(space.missed, area), missed, "missed")


def test_huge_pages(start: Start) -> None:
    """A huge page is written as a whole; what happens to it after an arm, the kernel says itself:
    it splits the page table under one way of arming and not under another."""
    walk = start(keep=("anon_private", 2))
    phases, live = walk.phases, walk.live
    area = phases.mapnew("a", "thp", 4)
    touched = phases.write("a", "range:700", count=3).pages
    wait_idle(phases.pid)
    require(huge_kib(phases.pid, area) == 2048, "needs transparent huge pages, and a free one")
    state = kernel_state(phases.pid, area)
    assert_same(state.present, span(area, 512, 512), "mapped by the kernel")
    space = live.round_of(phases.pid)
    assert_same(within(space.dirty, area), state.written, "first touch, dirty")
    assert_same(within(space.dirty, area), span(area, 512, 512), "first touch, dirty")
    assert_same(within(space.redirtied, area), NONE, "first touch, re-dirtied")
    check_missed(walk, space, area, touched)

    for pattern, count in (("range:600", 5), ("random", 40), ("range:0", 1)):
        truth = phases.write("a", pattern, count=count).pages
        wait_idle(phases.pid)
        state = kernel_state(phases.pid, area)
        assert_same(np.setdiff1d(truth, state.written), NONE, "written and not so for the kernel")
        space = live.round_of(phases.pid)
        assert_same(within(space.dirty, area), state.written, f"{pattern}, dirty")
        check_missed(walk, space, area, truth)

    # Joined into a huge page again, if the kernel will, after the arm: the next write is found.
    with contextlib.suppress(WorkloadError):
        phases.advise("a", "collapse", 512, 512)
    truth = phases.write("a", "range:512", count=100).pages
    wait_idle(phases.pid)
    state = kernel_state(phases.pid, area)
    space = live.round_of(phases.pid)
    assert_same(np.setdiff1d(truth, within(space.dirty, area)), NONE, "after a collapse, lost")
    assert_same(within(space.dirty, area), state.written, "after a collapse, dirty")
