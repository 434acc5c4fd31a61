"""The collector is killed (33), has maps and rings that are too small, or runs many rounds (34)."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.arming.soft_dirty import SoftDirtyArmed
from redirty.collector.bpf.loader import Options
from redirty.collector.bpf.tracer import Tracer

from tests.support import pagemap_oracle
from tests.support.phase_walk import Start, Walk
from tests.support.redirty_cli import finish, processes_with, start_redirty
from tests.support.stepped_rounds import NONE, LiveRounds, assert_same, within
from tests.support.target_state import Condition, assert_released, descriptors, tracer_of
from tests.support.tested_methods import METHOD_OPTIONS, arm_method
from tests.support.waiting import PATIENCE_S, wait_idle, wait_until
from tests.traps.common import not_applicable
from tests.workloads.driver import DEFAULT_AREAS, Phases
from tests.workloads.pages import PAGE_BYTES, Area

pytestmark = pytest.mark.usefixtures("tracing")

ROUNDS = int(os.environ.get("REDIRTY_ROUNDS", "300"))


# ---- 33: killed; tests/integration/cli/test_kill.py does it a hundred times, at random moments ----


def when_it_holds_the_target(pid: int, directory: Path, process: subprocess.Popen[str]) -> None:
    """Spin until the target is stopped, or was a moment ago."""
    while not tracer_of(pid) and not directory.exists():
        assert process.poll() is None, "redirty ended"


def when_rounds_run(_pid: int, directory: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a few rounds are complete."""
    rounds = directory / "rounds.csv"

    def some() -> bool:
        assert process.poll() is None, "redirty ended"
        return rounds.exists() and rounds.read_bytes().count(b"\n") > 3

    wait_until(some, "rounds")


MOMENTS = (when_it_holds_the_target, when_rounds_run)


def faults_of_writing(phases: Phases, areas: list[Area]) -> int:
    """Return the faults that writing every page of some areas costs."""
    before = pagemap_oracle.minor_faults(phases.pid)
    for area in areas:
        phases.write(area.name, "all", threads=2)
    return pagemap_oracle.minor_faults(phases.pid) - before


@pytest.mark.parametrize("moment", MOMENTS)
def test_33_killed(
    tmp_path: Path, moment: Callable[[int, Path, subprocess.Popen[str]], None]
) -> None:
    """After kill -9 no process of redirty is left, the target is not traced, has no descriptor left in it and
    no protected page, and a write to a page no longer costs a fault.
    """
    with Phases(DEFAULT_AREAS) as phases:
        for name in phases.areas:
            phases.write(name, "all")
        wait_idle(phases.pid)
        before = Condition.of(phases.pid)
        mark = f"REDIRTY_TEST_MARK=trap33.{os.getpid()}.{moment.__name__}"
        directory = tmp_path / "rec"
        words = ("record", *METHOD_OPTIONS, "-p", phases.pid, "50ms", "-o", directory)
        process = start_redirty(*words, env=dict([mark.split("=", 1)]))
        moment(phases.pid, directory, process)
        if moment is when_rounds_run and arm_method() == "uffd":
            # Without this the assertions below could not fail.
            assert len(pagemap_oracle.protected(phases.pid, phases.areas["anon"])) == 2048
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_S)
        wait_until(lambda: not processes_with(mark), "no process of it is left")
        finish(process)
        wait_until(lambda: not tracer_of(phases.pid), "the target is not traced")
        wait_idle(phases.pid)
        assert_released(phases, before)
        assert not [d for d in descriptors(phases.pid).values() if "userfaultfd" in d]
        private = [a for a in phases.areas.values() if a.kind in ("anon_private", "file_private")]
        for area in private:
            assert_same(pagemap_oracle.protected(phases.pid, area), NONE, f"{area.name}, protected")
        # Soft-dirty's protection is lifted by the next write, page by page; and the kernel may
        # take pages away for a moment for reasons of its own (NUMA balancing).
        counts = [faults_of_writing(phases, private) for _ in range(5)]
        assert min(counts) < sum(area.page_count for area in private) / 20, counts


# ---- 34: too small, too many ----


@pytest.mark.parametrize("stacks", [False, True])
def test_34_ring_too_small(stacks: bool) -> None:
    """Events that do not fit the ring are counted, and only they are missing: the bitmap and its counters
    have every page.
    """
    room = 4096
    options = Options(events=True, stacks=stacks, ring_bytes=room)
    with (
        Phases({"a": ("anon_private", 4)}) as phases,
        LiveRounds(phases.pid, options=options) as live,
    ):
        live.begin()
        wait_idle(phases.pid)
        live.end_round()
        assert live.tracer.ring is not None
        live.tracer.ring.take()
        area = phases.areas["a"]
        truth = phases.write("a", "all", threads=2).pages
        wait_idle(phases.pid)
        space = live.round_of(phases.pid)
        kept = live.tracer.ring.take()
        stats = space.stats[0]
        assert stats["lost_events"] > 0
        assert 0 < len(kept) <= room // 48
        assert len(kept) + int(stats["lost_events"]) == int(stats["kinds"][0])
        assert stats["lost"] == 0
        assert int(stats["pages"]) == len(space.log)
        assert_same(within(space.dirty, area), truth, "dirty")
        assert_same(within(space.missed, area), NONE, "missed")
        # There is room again, and the ring continues where it was.
        late = phases.write("a", "range:5", count=3).pages
        wait_idle(phases.pid)
        assert live.round_of(phases.pid).stats["lost_events"][0] == 0
        seen = live.tracer.ring.take()["address"] // np.uint64(PAGE_BYTES)
        assert_same(np.intersect1d(seen, area.pages), late, "events")


@pytest.mark.every_way
def test_34_faults_passed_over(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that preempts BPF programs skips faults meanwhile and reports their number: they are lost events.

    A page written between reading and clearing the bits is in neither then, so every page that can have been
    written counts, and no other.
    """
    walk = start(a=("anon_private", 2), b=("anon_shared", 2))
    area, live = walk.phases.areas["a"], walk.live
    walk.phases.write("a", "range:0", count=300)
    walk.phases.write("b", "range:0", count=30)
    wait_idle(walk.phases.pid)
    live.end_round()
    truth = walk.phases.write("a", "range:0", count=10).pages
    (space,) = live.recorder.spaces.values()
    tracer, armed = live.tracer, space.armed
    skips = itertools.count(tracer.skipped(), 7)
    between = NONE
    with monkeypatch.context() as patched:
        patched.setattr(tracer, "skipped", lambda: next(skips))
        patched.setattr(tracer, "_skipped", tracer._skipped)  # restored at the end
        if isinstance(armed, SoftDirtyArmed):
            protect, drain = armed.protect, tracer.drain

            def write_unseen() -> None:
                nonlocal between
                between = walk.phases.write("a", "range:290", count=5).pages
                patched.setattr(armed, "protect", protect)
                protect()

            patched.setattr(armed, "protect", write_unseen)
            patched.setattr(tracer, "drain", lambda: (drain(), {})[1])
        result = live.end_round()
    (found,) = result.spaces
    assert int(result.stats["lost"][0]) >= 7
    dirty = within(found.dirty, area)
    assert_same(np.setdiff1d(np.union1d(truth, between), dirty), NONE, "written, not dirty")
    if isinstance(armed, SoftDirtyArmed):
        assert len(between) == 5
        assert_same(dirty, area.pages[:300], "everything there is")
    else:
        assert_same(dirty, truth, "dirty")
    # With the kernel's own count the next round is exact again.
    wait_idle(walk.phases.pid)
    live.end_round()
    Walk(walk.phases, live).end(walk.phases.write("b", "range:9").pages, missed=NONE)


@pytest.mark.parametrize(("byte_maps", "rows"), [(False, 16), (True, 8)])
def test_34_map_too_small(byte_maps: bool, rows: int) -> None:
    """Faults that do not fit the bitmaps are counted as lost, and the scan finds their pages. A table has
    twice the rows requested, and uses them all before it loses any.
    """
    options = Options(regions=8, force_byte_maps=byte_maps)
    with (
        Phases({"a": ("anon_private", 64)}) as phases,
        LiveRounds(phases.pid, options=options) as live,
    ):
        if live.tracer.byte_maps and not byte_maps:
            not_applicable("this kernel's BPF has no atomic OR (Linux 5.12 has)")
        live.begin()
        area = phases.areas["a"]
        for again in (False, True):
            truth = phases.write("a", "stride:16", threads=2).pages
            wait_idle(phases.pid)
            space = live.round_of(phases.pid)
            log, missed = within(space.log, area), within(space.missed, area)
            assert int(space.stats["lost"][0]) >= len(missed) > 0
            assert len(space.log.keys) == rows
            assert_same(within(space.dirty, area), truth, "dirty")
            assert_same(missed, np.setdiff1d(truth, log), "missed")
            expected = truth if again else NONE
            assert_same(within(space.redirtied, area), expected, "re-dirtied")


def resident_kib() -> int:
    """Return the resident memory of this process, which includes the recorder's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def test_34_many_rounds(tracer: Tracer) -> None:
    """Round after round (REDIRTY_ROUNDS of them) is exact, and nothing accumulates."""
    with (
        Phases({"a": ("anon_private", 2)}) as phases,
        LiveRounds(phases.pid, tracer=tracer) as live,
    ):
        area = phases.areas["a"]
        phases.write("a", "all")
        live.begin()
        at_first = (0, 0)
        for number in range(ROUNDS):
            truth = phases.write("a", "random", seed=number, count=1 + number % 40).pages
            wait_idle(phases.pid)
            result = live.end_round()
            (space,) = result.spaces
            assert result.number == number
            assert_same(within(space.dirty, area), truth, f"round {number}, dirty")
            assert_same(within(space.log, area), truth, f"round {number}, log")
            assert_same(within(space.redirtied, area), truth, f"round {number}, re-dirtied")
            assert not result.stats["lost"][1:].any() and not result.stats["lost_events"].any()
            if number == ROUNDS // 3:
                at_first = resident_kib(), len(descriptors(os.getpid()))
        grown_kib = resident_kib() - at_first[0]
        assert len(descriptors(os.getpid())) == at_first[1]
        assert grown_kib < 4096, f"{grown_kib} KiB more after {ROUNDS} rounds"
