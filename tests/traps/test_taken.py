"""Targets that another process traces, or that forbid what redirty needs (29); a kernel that accepts clear_refs
and ignores it (30); targets in namespaces of their own (31).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.arming.methods import choose, round_trip
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.errors import ArmError, RedirtyError
from redirty.collector.ptrace.injector_client import Injector
from redirty.collector.target.targets import Tree

from tests.support.phase_walk import Walk, span
from tests.support.stepped_rounds import NONE, LiveRounds, assert_same, space_of, within
from tests.support.target_state import Condition, assert_released, child_of, tracer_of
from tests.support.tested_methods import arm_method
from tests.support.waiting import PATIENCE_S, wait_idle, wait_until
from tests.tiers import require, require_program
from tests.traps.common import not_applicable
from tests.traps.foreign_writes import write_memory_file
from tests.workloads.driver import Hold, Pages, Phases, WorkloadError

pytestmark = pytest.mark.usefixtures("tracing")


# ---- 29: in use ----


def refused(pid: int, tracer: Tracer) -> str:
    """Return the line that says why a target cannot be armed."""
    with LiveRounds(pid, tracer=tracer) as live, pytest.raises(ArmError) as caught:
        live.begin()
    line = str(caught.value)
    assert "\n" not in line and str(pid) in line
    return line


@pytest.fixture
def debugger(sleeper: Hold) -> Iterator[int]:
    """Run gdb, which holds the sleeper stopped."""
    gdb = require_program("gdb", "gdb")
    with subprocess.Popen(
        [gdb, "-q", "-nx", "-p", str(sleeper.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            wait_until(lambda: tracer_of(sleeper.pid), "the debugger holds the target")
            yield process.pid
        finally:
            process.communicate("detach\nquit\n", timeout=PATIENCE_S)


def test_29_under_a_debugger(sleeper: Hold, debugger: int, tracer: Tracer) -> None:
    """A debugged target cannot give a userfaultfd: one line. Soft-dirty bits need nothing of it: it is traced.
    The debugger keeps it in either case.
    """
    if arm_method() == "uffd":
        line = refused(sleeper.pid, tracer)
        assert f"already traced by process {debugger}" in line
    else:
        area = sleeper.areas["area"]
        truth = span(area, 5, 20)
        with LiveRounds(sleeper.pid, tracer=tracer) as live:
            live.begin()
            write_memory_file(sleeper.pid, truth)
            space = live.round_of(sleeper.pid)
            assert_same(within(space.dirty, area), truth, "dirty")
    assert tracer_of(sleeper.pid) == debugger


@contextlib.contextmanager
def holding(mode: str) -> Iterator[Hold]:
    """Start a target with a userfaultfd of its own."""
    try:
        target = Hold(mode)
    except WorkloadError as e:
        not_applicable(str(e))
    with target:
        yield target


OWN = ("uffd-missing", "uffd-wp", "uffd-async")


@pytest.mark.parametrize("mode", OWN)
def test_29_with_a_userfaultfd(tracer: Tracer, mode: str) -> None:
    """A target with a userfaultfd cannot be armed with another one: one line. Its own faults are still served."""
    if arm_method() != "uffd":
        not_applicable("this kernel, or this run, does not arm with userfaultfd")
    with holding(mode) as target:
        before = Condition.of(target.pid)
        assert "userfaultfd" in refused(target.pid, tracer)
        assert_released(target, before)
        check_served(target, mode)


def check_served(target: Hold, mode: str) -> Pages:
    """Assert that the target's own userfaultfd still gets its faults; return the pages written for that."""
    served = target.handled()
    pages = target.write(0, 10).pages
    assert len(pages) == 10
    assert target.handled() - served == (0 if mode == "uffd-async" else 10)
    return pages


@pytest.mark.parametrize("mode", OWN)
def test_29_with_a_userfaultfd_and_soft_dirty(tracer: Tracer, mode: str) -> None:
    """Soft-dirty bits are another method: every write is found, and its own faults are still served."""
    if arm_method() != "soft-dirty":
        not_applicable("this kernel, or this run, does not arm with soft-dirty")
    with holding(mode) as target, LiveRounds(target.pid, tracer=tracer) as live:
        area = target.areas["area"]
        live.begin()
        truth = check_served(target, mode)
        for first in (20, 5, 30):
            wait_idle(target.pid)
            space = live.round_of(target.pid)
            found = within(space.dirty, area)
            assert_same(np.setdiff1d(truth, found), NONE, "lost")
            assert_same(np.setdiff1d(truth, within(space.log, area)), NONE, "not logged")
            truth = target.write(first, 12).pages


@pytest.mark.parametrize("mode", ["seccomp", "seccomp-errno"])
def test_29_under_seccomp(tracer: Tracer, mode: str) -> None:
    """A target whose filter kills it for userfaultfd(2) is traced all the same: the filter must not see the call
    of redirty.
    """
    with Hold(mode) as target:
        area = target.areas["area"]
        before = Condition.of(target.pid)
        with LiveRounds(target.pid, tracer=tracer) as live:
            live.begin()
            for first in (3, 10, 300):
                truth = target.write(first, 20).pages
                wait_idle(target.pid)
                space = live.round_of(target.pid)
                assert_same(within(space.dirty, area), truth, "dirty")
                assert_same(within(space.log, area), truth, "log")
        assert_released(target, before)
        assert len(target.write(0, 5).pages) == 5


# ---- 30: accepted, and without effect ----


def soft_dirty_works() -> bool:
    """Return whether this kernel keeps soft-dirty bits, tried on pages of another program."""
    with Phases({"a": ("anon_private", 2)}) as phases:
        area = phases.areas["a"]
        phases.write("a", "all")
        Path(f"/proc/{phases.pid}/clear_refs").write_text("4\n")
        truth = phases.write("a", "stride:7").pages
        with Path(f"/proc/{phases.pid}/pagemap").open("rb", buffering=0) as pagemap:
            data = os.pread(pagemap.fileno(), area.page_count * 8, area.first_page * 8)
        entries = np.frombuffer(data, np.uint64)
        return np.array_equal(area.pages[(entries & np.uint64(1 << 55)) != 0], truth)


def test_30_accepted_and_without_effect(tracing: None) -> None:
    """clear_refs may be accepted and ignored: `redirty check`, and every recording before it starts, report what
    writing to a page shows.
    """
    works = soft_dirty_works()
    injector = Injector()
    try:
        reason = round_trip("soft-dirty", injector)
        assert (reason is None) is works, reason
        if works:
            assert choose("soft-dirty", injector) == "soft-dirty"
            return
        assert "CONFIG_MEM_SOFT_DIRTY" in str(reason)
        with pytest.raises(RedirtyError, match="CONFIG_MEM_SOFT_DIRTY"):
            choose("soft-dirty", injector)
        assert choose("auto", injector) == "uffd"
    finally:
        injector.close()


# ---- 31: namespaces ----


NAMESPACES = {
    "user_pid_mount": ("-Urpfm", "--mount-proc"),
    "pid": ("-pf",),
    "all": ("-Urpfmniu", "--mount-proc"),
}


@pytest.fixture(params=NAMESPACES)
def contained(request: pytest.FixtureRequest) -> Iterator[Phases]:
    """Start a target in namespaces of its own."""
    require_program("unshare", "util-linux")
    wrapper = ("unshare", *NAMESPACES[request.param])
    refused = subprocess.run([*wrapper, "true"], capture_output=True, text=True, check=False)
    require(refused.returncode == 0, f"needs these namespaces: {refused.stderr.strip()}")
    with Phases({"a": ("anon_private", 2), "m": ("memfd", 2)}, wrapper=wrapper) as phases:
        yield phases


def test_31_by_its_number_here(contained: Phases, tracer: Tracer) -> None:
    """A target whose own PID is 1 is traced by its PID outside, page for page."""
    pid = child_of(contained.pid)
    assert contained.greeting["pid"] == 1 != pid
    with LiveRounds(pid, tracer=tracer) as live:
        walk = Walk(contained, live.begin(), pid)
        for name in ("a", "m", "a"):
            truth = contained.write(name, "random", seed=9, count=80, threads=2).pages
            walk.end(truth, missed=NONE)


def test_31_children_in_it(contained: Phases) -> None:
    """--tree of the process that made the namespaces has the target and its children in it."""
    pid = child_of(contained.pid)
    area = contained.areas["a"]
    contained.write("a", "range:0", count=100)
    with LiveRounds(targets=Tree(contained.pid)) as live:
        live.begin()
        contained.fork()
        child = child_of(pid)
        for first in (0, 40, 40):
            theirs = contained.child_write("a", f"range:{first}", count=30).pages
            ours = contained.write("a", "range:20", count=30).pages
            wait_idle(child)
            wait_idle(pid)
            result = live.end_round()
            for number, truth in ((child, theirs), (pid, ours)):
                space = space_of(result, number)
                assert_same(within(space.dirty, area), truth, f"{number}, dirty")
                assert_same(within(space.log, area), truth, f"{number}, log")
        assert_same(truth, span(area, 20, 30), "the parent's own")
        contained.child_exit()
