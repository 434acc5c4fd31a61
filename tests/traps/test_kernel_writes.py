"""Writes that no instruction of the program makes: the kernel's on its behalf (23), and those of another process
(24). The log or the scan finds them; what pinned pages hide is reported.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.linux import io_uring

from tests.support import pagemap_oracle
from tests.support.phase_walk import Start, Walk, every_kind, span
from tests.support.redirty_cli import run_redirty
from tests.support.stepped_rounds import NONE, LiveRounds, assert_same, within
from tests.support.tested_methods import METHOD_OPTIONS, arm_method
from tests.support.waiting import wait_idle
from tests.traps.common import not_applicable
from tests.traps.foreign_writes import poke, write_into, write_memory_file
from tests.traps.settings import on_disk
from tests.workloads.driver import Phases, Uring
from tests.workloads.pages import Area

pytestmark = pytest.mark.usefixtures("tracing")


# ---- 23: the kernel, for the program ----


@every_kind("kind")
def test_23_read(start: Start, kind: str) -> None:
    """Every kind of probe sees read(2) into a buffer."""
    walk = start(a=(kind, 2))
    truth = walk.phases.kread("a", "range:0", count=100).pages
    walk.end(truth, again=NONE, missed=NONE)
    truth = walk.phases.kread("a", "stride:5", threads=2).pages
    walk.end(truth, again=truth[truth < walk.phases.areas["a"].first_page + 100], missed=NONE)
    truth = walk.phases.write("a", "all").pages
    walk.end(truth, missed=NONE)
    truth = walk.phases.kread("a", "random", count=64).pages
    walk.end(truth, again=truth, missed=NONE)


@pytest.fixture(scope="module")
def disk(tracing: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a directory with direct I/O."""
    with on_disk(tmp_path_factory.mktemp("direct")) as directory:
        yield directory


@every_kind("kind")
def test_23_direct_read(tracer: Tracer, disk: Path, kind: str) -> None:
    """O_DIRECT writes pages without a processor fault: the log of tracepoints cannot see it, missed_pages
    counts it, and the pages are dirty all the same.
    """
    with (
        Phases({"a": (kind, 2)}, directory=disk) as phases,
        LiveRounds(phases.pid, tracer=tracer) as live,
    ):
        walk = Walk(phases, live.begin())
        seen = phases.write("a", "range:0", count=100).pages
        walk.end(seen, again=NONE, missed=NONE)
        for pattern, count in (("range:50", 100), ("random", 64), ("stride:3", 40)):
            truth = phases.kread("a", pattern, count=count, direct=True).pages
            walk.end(truth, missed=NONE if live.log_sees_all else truth)
        # written by the processor first, then directly: no page is missed
        truth = phases.write("a", "all").pages
        phases.kread("a", "all", direct=True)
        walk.end(truth, missed=NONE)


@pytest.fixture
def uring(tracing: None, tmp_path: Path) -> Iterator[Uring]:
    """Start a program with an io_uring."""
    with Uring(tmp_path) as program:
        if program.why:
            not_applicable(f"the kernel refuses io_uring: {program.why}")
        yield program


@pytest.mark.every_way
@pytest.mark.parametrize("how", ["plain", "async"])
def test_23_io_uring(uring: Uring, tracer: Tracer, how: str) -> None:
    """Reads by io_uring are found, whether the program's own system call or a kernel worker does them."""
    area = uring.areas["a"]
    with LiveRounds(uring.pid, tracer=tracer) as live:
        live.begin()
        before = NONE
        for first, count in ((0, 100), (50, 100), (700, 64), (0, 30)):
            truth = uring.read(first, count, how)
            wait_idle(uring.pid)
            space = live.round_of(uring.pid)
            assert_same(within(space.dirty, area), truth, f"{first}, dirty")
            assert_same(within(space.log, area), truth, f"{first}, log")
            known = np.intersect1d(truth, before)
            assert_same(within(space.redirtied, area), known, f"{first}, re-dirtied")
            before = np.union1d(before, truth)


@pytest.mark.every_way
def test_23_registered_buffers(uring: Uring, tracer: Tracer) -> None:
    """Pinned pages are written through their physical address: they are found in the round in which they are
    pinned; what is read into them later shows in no page table. What is hidden lies within the pages that are
    reported as pinned, and ends with the buffer.
    """
    area = uring.areas["a"]
    uring.write(0, 128)
    pinned = uring.register(20, 64)
    with LiveRounds(uring.pid, tracer=tracer) as live:
        live.begin()
        assert live.recorder.members.pinned_kib() == 4 * len(pinned)
        (recorded,) = live.recorder.spaces.values()
        assert io_uring.registered_kib(uring.pid, recorded.mappings) == 4 * len(pinned)
        for first, count in ((20, 64), (30, 20)):
            before = pagemap_oracle.contents(uring.pid, area)
            wait_idle(uring.pid)
            live.end_round()
            by_kernel = uring.read(first, count, "fixed")
            by_program = uring.write(first + count - 5, 40)
            wait_idle(uring.pid)
            space = live.round_of(uring.pid)
            bytes_say = pagemap_oracle.changed(
                area, before, pagemap_oracle.contents(uring.pid, area)
            )
            assert_same(bytes_say, np.union1d(by_kernel, by_program), "bytes that changed")
            dirty = within(space.dirty, area)
            hidden = np.setdiff1d(bytes_say, dirty)
            assert_same(np.setdiff1d(hidden, pinned), NONE, "hidden, and not pinned")
            assert_same(np.setdiff1d(by_program, dirty), NONE, "written by the program, and lost")
            # clear_refs skips pinned pages: they stay soft-dirty, and writable without a fault.
            log = within(space.log, area)
            assert_same(np.setdiff1d(log, by_program), NONE, "logged and not written")
            unseen = np.setdiff1d(by_program, log)
            allowed = pinned if arm_method() == "soft-dirty" else NONE
            assert_same(np.setdiff1d(unseen, allowed), NONE, "written and not logged")
        uring.unregister()
        wait_idle(uring.pid)
        live.end_round()
        # pinned in the middle of a round, read into, released: all of it is in that round
        pinned = uring.register(200, 32)
        uring.read(200, 32, "fixed")
        uring.unregister()
        wait_idle(uring.pid)
        space = live.round_of(uring.pid)
        assert_same(within(space.dirty, area), pinned, "pinned in the round, dirty")
        log = pinned if live.log_sees_all else NONE
        assert_same(within(space.log, area), log, "pinned in the round, log")


def test_23_pinned_pages_are_reported(uring: Uring, tmp_path: Path) -> None:
    """Pinned pages are reported by record, in meta.json and by report."""
    uring.write(0, 64)
    uring.register(0, 48)
    directory = tmp_path / "rec"
    done = run_redirty(
        "record",
        *METHOD_OPTIONS,
        "-p",
        uring.pid,
        "100ms",
        "2",
        "-o",
        directory,
    )
    assert done.code == 0, done.err
    assert json.loads((directory / "meta.json").read_text())["pinned_kib"] == 192
    assert "192 KiB of the target are pinned" in done.err
    assert "pinned: 192 KiB" in run_redirty("report", directory).out


# ---- 24: another process ----


def known_area(start: Start, kind: str) -> tuple[Walk, Area]:
    """Start a workload with an area of 2 MiB whose first 200 pages are present, and a round after that."""
    walk = start(a=(kind, 2))
    walk.phases.write("a", "range:0", count=200)
    wait_idle(walk.phases.pid)
    walk.live.end_round()
    return Walk(walk.phases, walk.live), walk.phases.areas["a"]


@every_kind("kind")
def test_24_process_vm_writev(start: Start, kind: str) -> None:
    """A page written by another process is found under the address space it belongs to."""
    walk, area = known_area(start, kind)
    for truth in (span(area, 10, 20), area.pages[3:150:7], span(area, 250, 40)):
        write_into(walk.phases.pid, truth)
        walk.end(truth, missed=NONE if walk.live.log_sees_all else truth)
    own = walk.phases.write("a", "range:100", count=30).pages
    other = span(area, 120, 40)
    write_into(walk.phases.pid, other)
    unseen = NONE if walk.live.log_sees_all else np.setdiff1d(other, own)
    walk.end(np.union1d(own, other), missed=unseen)


@every_kind("kind")
def test_24_poked(start: Start, kind: str) -> None:
    """PTRACE_POKEDATA and /proc/PID/mem are found, in pages that are present and in pages that are not."""
    walk, area = known_area(start, kind)
    for write in (poke, write_memory_file):
        for truth in (span(area, 10, 20), area.pages[1:300:9]):
            write(walk.phases.pid, truth)
            walk.end(truth, missed=NONE if walk.live.log_sees_all else truth)


@pytest.mark.every_way
@pytest.mark.parametrize("kind", ["anon_private", "file_private"])
def test_24_poked_into_read_only_memory(start: Start, kind: str) -> None:
    """A page of read-only memory that is written as a debugger sets breakpoints becomes the process's own."""
    walk = start(a=(kind, 2))
    phases, area = walk.phases, walk.phases.areas["a"]
    phases.write("a", "range:0", count=50)
    phases.read("a", "all")
    phases.mprotect("a", False)
    wait_idle(phases.pid)
    walk.live.end_round()
    walk = Walk(phases, walk.live)
    before = pagemap_oracle.contents(phases.pid, area)
    wait_idle(phases.pid)
    walk.live.end_round()
    walk = Walk(phases, walk.live)
    written = NONE
    for write in (poke, write_memory_file):
        truth = area.pages[5:100:6]
        try:
            write(phases.pid, truth)
        except OSError as e:
            assert write is write_memory_file and e.errno == errno.EIO
            continue  # kernels that let only a debugger do so (CONFIG_PROC_MEM_RESTRICT_FORCE)
        written = np.union1d(written, truth)
        walk.end(truth, missed=NONE if walk.live.log_sees_all else truth)
    after = pagemap_oracle.contents(phases.pid, area)
    assert_same(pagemap_oracle.changed(area, before, after), written, "bytes that changed")
