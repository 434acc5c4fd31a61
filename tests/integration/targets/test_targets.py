"""Targets: several processes, trees and cgroups are traced, and nothing else."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.target.targets import Cgroup, Tree
from redirty.collector.tracking.rounds import Round

from tests.support.phase_walk import Walk
from tests.support.stepped_rounds import NONE, LiveRounds, assert_same, space_of, spaces_of, within
from tests.support.waiting import wait_idle, wait_until
from tests.workloads.driver import Child, Hold, Phases
from tests.workloads.pages import Area

pytestmark = pytest.mark.usefixtures("tracing")

ONE_AREA = {"a": ("anon_private", 2)}


# ---- several ----


def test_several_processes() -> None:
    """Pages are recorded by process, though all may have the same addresses."""
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(Phases(ONE_AREA)) for _ in range(3)]
        bystander = programs.pop()
        live = stack.enter_context(LiveRounds(*(p.pid for p in programs))).begin()
        for seed in (1, 2):
            truth = {p.pid: p.write("a", "random", seed=seed + p.pid, count=99) for p in programs}
            bystander.write("a")
            for program in programs:
                wait_idle(program.pid)
            result = live.end_round()
            assert {space.pid for space in result.spaces} == set(truth)
            for pid, touched in truth.items():
                space = space_of(result, pid)
                assert_same(within(space.dirty, touched.area), touched.pages, "dirty")
                assert_same(within(space.missed, touched.area), NONE, "missed")


# ---- families ----


def assert_children(result: Round, children: list[Child], area: Area) -> None:
    """Check that each child has a space of its own with what it wrote from its first instruction on."""
    for child in children:
        space = space_of(result, child.pid)
        assert_same(within(space.log, area), child.pages, f"child {child.pid}, log")
        assert_same(within(space.dirty, area), child.pages, f"child {child.pid}, dirty")


@pytest.mark.parametrize("chain", [False, True], ids=["children", "descendants"])
def test_short_lived_descendants(chain: bool) -> None:
    """Children and grandchildren that live for less than a round are in that round."""
    with Hold() as hold, LiveRounds(targets=Tree(hold.pid)) as live:
        live.begin()
        for _ in range(2):
            children = hold.children(8, pages=5, chain=chain)
            wait_idle(hold.pid)
            result = live.end_round()
            assert len({child.pid for child in children}) == 8
            assert_children(result, children, hold.areas["children"])
            parent = space_of(result, hold.pid)
            assert_same(within(parent.dirty, hold.areas["children"]), NONE, "the parent's copy")
        mine = hold.write(3, 4)
        wait_idle(hold.pid)
        result = live.end_round()
        assert [space.pid for space in result.spaces] == [hold.pid]
        assert_same(within(result.spaces[0].dirty, mine.area), mine.pages, "the parent's own")


@pytest.mark.parametrize("before", [True, False], ids=["existing", "to_come"])
def test_child_that_stays(before: bool) -> None:
    """A child that keeps running is armed like its parent: exact in every round."""
    with Phases(ONE_AREA) as phases:
        area = phases.areas["a"]
        phases.write("a", "range:0", count=100)
        child = phases.fork() if before else 0
        with LiveRounds(targets=Tree(phases.pid)) as live:
            live.begin()
            child = child or phases.fork()
            truth = phases.child_write("a", "range:50", count=100).pages
            wait_idle(child)
            space = space_of(live.end_round(), child)
            assert_same(within(space.dirty, area), truth, "first, dirty")
            assert_same(within(space.log, area), truth, "first, log")
            for seed in (1, 2, 3):
                theirs = phases.child_write("a", "random", seed=seed, count=60).pages
                ours = phases.write("a", "random", seed=seed + 10, count=60).pages
                wait_idle(child)
                wait_idle(phases.pid)
                result = live.end_round()
                for pid, truth in ((child, theirs), (phases.pid, ours)):
                    space = space_of(result, pid)
                    assert_same(within(space.dirty, area), truth, f"{pid}, dirty")
                    assert_same(within(space.missed, area), NONE, f"{pid}, missed")
                    there = within(space.present, area)
                    expected = np.intersect1d(truth, there)
                    assert_same(within(space.redirtied, area), expected, f"{pid}, re-dirtied")
            phases.child_exit()
            live.end_round()
            result = live.end_round()
            assert [space.pid for space in result.spaces] == [phases.pid]


def test_without_the_tree_no_child() -> None:
    """Children are not traced with -p."""
    with Hold() as hold, LiveRounds(hold.pid) as live:
        live.begin()
        hold.children(4, pages=2)
        wait_idle(hold.pid)
        assert [space.pid for space in live.end_round().spaces] == [hold.pid]


def test_cgroup(cgroup: Path) -> None:
    """Members of a cgroup and of those below, their children and later members are traced."""
    below = cgroup / "below"
    below.mkdir()
    try:
        with contextlib.ExitStack() as stack:
            first, second, late = (stack.enter_context(Phases(ONE_AREA)) for _ in range(3))
            (cgroup / "cgroup.procs").write_text(str(first.pid))
            (below / "cgroup.procs").write_text(str(second.pid))
            live = stack.enter_context(LiveRounds(targets=Cgroup(str(cgroup)))).begin()
            members = [first, second]
            for number in range(3):
                truth = {p.pid: p.write("a", "random", seed=number, count=70) for p in members}
                if number == 0:
                    outside = late.write("a", "range:0", count=5)
                    (cgroup / "cgroup.procs").write_text(str(late.pid))
                for program in (first, second, late):
                    wait_idle(program.pid)
                result = live.end_round()
                for pid, touched in truth.items():
                    space = space_of(result, pid)
                    assert_same(within(space.dirty, touched.area), touched.pages, f"{pid}, dirty")
                if number == 0:
                    members.append(late)
                    # it joined after it wrote: its first round begins with the next arm
                    for space in spaces_of(result, late.pid):
                        assert_same(within(space.dirty, outside.area), NONE, "before it joined")
                else:
                    assert set(truth) == {space.pid for space in result.spaces}
    finally:
        wait_until(lambda: not (below / "cgroup.procs").read_text().strip(), "an empty cgroup")
        below.rmdir()


# ---- places ----


def test_stopped_target() -> None:
    """A stopped target is armed, stays stopped, and is traced once it continues."""
    with Phases(ONE_AREA) as phases:
        first = phases.write("a", "range:0", count=50).pages
        wait_idle(phases.pid)
        phases.signal(signal.SIGSTOP)
        wait_until(lambda: state_of(phases.pid) == "T", "stopped")
        try:
            with LiveRounds(phases.pid) as live:
                walk = Walk(phases, live.begin())
                assert state_of(phases.pid) == "T"
                walk.end(NONE, again=NONE, missed=NONE)
                assert state_of(phases.pid) == "T"
                phases.signal(signal.SIGCONT)
                truth = phases.write("a", "range:20", count=60).pages
                walk.end(truth, again=np.intersect1d(truth, first), missed=NONE)
        finally:
            phases.signal(signal.SIGCONT)


def state_of(pid: int) -> str:
    """Return the state of a process, as ps shows it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
