"""Mappings that change and processes that come within a round: each case that the torture test found."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from redirty.collector.arming.base import Armed
from redirty.collector.arming.soft_dirty import SoftDirtyArmed
from redirty.collector.arming.uffd import UffdArmed
from redirty.collector.errors import ArmError, GoneError, TargetEndedError
from redirty.collector.linux.maps import MapsFile
from redirty.collector.ptrace.injector_client import Injector
from redirty.collector.target.targets import Tree
from redirty.collector.tracking.members import Members
from redirty.collector.tracking.rounds import Round, SpaceRound

from tests.support.phase_walk import Start, Walk
from tests.support.stepped_rounds import LiveRounds, within
from tests.support.tested_methods import arm_method
from tests.support.waiting import wait_idle
from tests.tiers import require
from tests.workloads.driver import Hold, Pages, Phases

SHARED = ("anon_shared", "memfd", "file_shared")


@contextmanager
def tree(tracing: None) -> Iterator[tuple[Phases, LiveRounds]]:
    """Start a workload under a recorder that adopts its children."""
    with (
        Phases({"a": ("anon_shared", 2)}) as phases,
        LiveRounds(targets=Tree(phases.pid)) as live,
    ):
        live.begin()
        yield phases, live


def dirty(result: Round, pages: Pages) -> Pages:
    """Return those of some pages that any address space of a round has dirtied."""
    found = [within(space.dirty, pages) for space in result.spaces]
    return np.unique(np.concatenate(found))


def end_while_it_moves(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> SpaceRound:
    """End the round; move the area after the list of mappings was read, and before it is armed."""
    tracer = walk.live.tracer
    flip = tracer.flip

    def move_and_flip() -> int:
        walk.phases.remap("a")
        return flip()

    with monkeypatch.context() as patched:
        patched.setattr(tracer, "flip", move_and_flip)
        return walk.live.round_of(walk.pid)


@pytest.mark.parametrize("kind", ("anon_private", "file_private", *SHARED))
def test_moved_during_a_boundary(start: Start, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory moved by mremap has new contents at its new address, though no write happened there."""
    walk = start(a=(kind, 2))
    pages = len(walk.phases.write("a").pages)
    dirty = end_while_it_moves(walk, monkeypatch).dirty
    wait_idle(walk.pid)
    dirty = dirty | walk.live.round_of(walk.pid).dirty
    assert len(within(dirty, walk.phases.areas["a"])) == pages


@pytest.mark.parametrize("kind", SHARED)
def test_moved_written_and_made_read_only(
    start: Start, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapping that moves during the boundary is armed at the next one.

    Only the page tables show what is written there, also when the memory is read-only by then.
    """
    walk = start(a=(kind, 2))
    walk.phases.write("a")
    end_while_it_moves(walk, monkeypatch)
    truth = walk.phases.write("a", "range:16", count=64).pages
    walk.phases.mprotect("a", writable=False)
    wait_idle(walk.pid)
    assert np.isin(truth, within(walk.live.round_of(walk.pid).dirty, truth)).all()


def test_soft_dirty_bits_that_are_lost(tracing: None) -> None:
    """Memory that moves between the reading of the soft-dirty bits and their clearing counts as written.

    It loses them unread, and counts at the next arm. Shown without the bits, so that it holds on every kernel.
    """
    with Phases({"a": ("anon_private", 2)}) as phases:
        pages = phases.write("a").pages
        maps, armed = MapsFile(phases.pid), SoftDirtyArmed(phases.pid)
        try:
            before = maps.read()
            assert before is not None
            armed.arm(before)
            phases.remap("a")
            armed.arm(before)
            now = maps.read()
            assert now is not None
            written, present = armed.resolve(armed.arm(now), now)
            for found in (written, present):
                assert len(within(found, phases.areas["a"])) == len(pages)
        finally:
            armed.close()
            maps.close()


def test_a_child_that_is_not_armed_yet(tracing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child born during a boundary is armed at the next one.

    If it has ended by then, only the log of the previous round has what it wrote again to shared memory.
    """
    with tree(tracing) as (phases, live):
        live.end_round()
        phases.fork()
        first = phases.child_write("a", "range:0", count=50).pages
        with monkeypatch.context() as patched:
            patched.setattr(Members, "adopt_newcomers", lambda self: None)
            assert np.array_equal(dirty(live.end_round(), first), first)
        again = phases.child_write("a", "range:0", seed=2, count=50).pages
        phases.child_exit()
        assert np.array_equal(dirty(live.end_round(), again), again)
        assert len(dirty(live.end_round(), again)) == 0


def test_a_child_in_the_middle_of_an_exec(tracing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that cannot be armed in the middle of its exec can be a moment later."""
    require(
        arm_method() == "uffd", "needs userfaultfd: nothing is stopped for the other way of arming"
    )
    with tree(tracing) as (phases, live):
        child = phases.fork()

        def refuse(self: Injector, pid: int, timeout_s: float) -> tuple[int, float]:
            raise ArmError("the kernel does not let it be traced (ptrace)", errno.EPERM)

        with monkeypatch.context() as patched:
            patched.setattr(Injector, "userfaultfd", refuse)
            live.end_round()
        for _ in range(100):  # it may not come to its stop in time on a busy machine
            live.end_round()
            found = [s for s in live.recorder.spaces.values() if s.pid == child]
            if found:
                break
        assert [s.armed is not None for s in found] == [True]
        assert live.recorder.members.by_log_only == 0


def test_the_only_process_in_the_middle_of_something(
    tracing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that executes another program and does not stop in time does not end the target."""
    require(
        arm_method() == "uffd", "needs userfaultfd: nothing is stopped for the other way of arming"
    )

    def late(self: Injector, pid: int, timeout_s: float) -> tuple[int, float]:
        raise ArmError("the thread does not come to a stop", errno.ETIMEDOUT)

    with Hold("sleep") as target, LiveRounds(target.pid).begin() as live:
        live.end_round()
        target.exec()
        with monkeypatch.context() as patched:
            patched.setattr(Injector, "userfaultfd", late)
            for _ in range(2):
                live.end_round()
                assert live.recorder.spaces == {}
            assert live.recorder.wait(0.0, lambda: None, 0.1)
        for _ in range(100):
            live.end_round()
            if found := list(live.recorder.spaces.values()):
                break
        assert [s.pid for s in found if s.armed] == [target.pid]
        target.signal(signal.SIGKILL)
        with pytest.raises(TargetEndedError):
            while True:
                live.end_round()


@pytest.mark.parametrize("arming", ["uffd", "soft-dirty"])
def test_an_exec_while_it_is_armed_first(tracing: None, arming: str) -> None:
    """An exec between arming and reading the mappings is noticed: they are of different memory."""
    require(arm_method() == "uffd" or arming != "uffd", "needs userfaultfd")
    injector = Injector()
    try:
        with Hold("sleep") as target:
            if arming == "uffd":
                descriptor, _ = injector.userfaultfd(target.pid, 10.0)
                target.exec()
                armed: Armed = UffdArmed(target.pid, descriptor, 0.0)
            else:
                armed = SoftDirtyArmed(target.pid)
                target.exec()
            maps = MapsFile(target.pid)
            mappings = maps.read()
            assert mappings is not None
            with pytest.raises(GoneError):
                armed.arm(mappings)
            armed.close()
            maps.close()
    finally:
        injector.close()
