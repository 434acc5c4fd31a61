"""Targets that lend their memory (25), run another program (26) or end (27), in the middle of a round; and
others that get the PID of one that ended (28).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.errors import TargetEndedError
from redirty.collector.target.targets import Pids, Tree

from tests.support.redirty_cli import finish, start_redirty
from tests.support.stepped_rounds import NONE, LiveRounds, assert_same, space_of, spaces_of, within
from tests.support.tested_methods import METHOD_OPTIONS
from tests.support.waiting import PATIENCE_S, wait_idle, wait_until
from tests.tiers import require
from tests.workloads.driver import Hold, Phases, Program, Sharers

pytestmark = pytest.mark.usefixtures("tracing")

ONE_AREA = {"a": ("anon_private", 2)}


def test_26_another_program_in_the_same_process() -> None:
    """After an exec in the middle of a round the old memory is gone, and the new is traced at once."""
    with Hold() as hold, LiveRounds(hold.pid) as live:
        live.begin()
        before = hold.write(0, 40)
        wait_idle(hold.pid)
        old = live.round_of(hold.pid)
        assert_same(within(old.dirty, before.area), before.pages, "before")
        for count in (8, 12):  # twice: the second must not be taken for the first
            hold.write(5, 5)
            hold.exec()
            fresh = hold.write(20, count)
            wait_idle(hold.pid)
            spaces = [s for s in spaces_of(live.end_round(), hold.pid) if s.space != old.space]
            assert len(spaces) == 1
            assert_same(within(spaces[0].dirty, fresh.area), fresh.pages, "new, dirty")
            assert_same(within(spaces[0].log, fresh.area), fresh.pages, "new, log")
            again = hold.write(22, count)
            wait_idle(hold.pid)
            space = live.round_of(hold.pid)
            assert space.space == spaces[0].space
            assert_same(within(space.dirty, again.area), again.pages, "later, dirty")
            known = np.intersect1d(again.pages, fresh.pages)
            assert_same(within(space.redirtied, again.area), known, "later, re-dirtied")
            old = space


def test_27_end_between_rounds() -> None:
    """A process that has ended gives no round; another one continues."""
    with (
        Phases(ONE_AREA) as stays,
        Phases(ONE_AREA) as ends,
        LiveRounds(stays.pid, ends.pid) as live,
    ):
        live.begin()
        live.end_round()
        ends.write("a")
        ends.signal(signal.SIGKILL)
        ends.wait()
        truth = stays.write("a", "stride:3").pages
        wait_idle(stays.pid)
        space = space_of(live.end_round(), stays.pid)
        assert_same(within(space.dirty, stays.areas["a"]), truth, "dirty")
        live.end_round()
        stays.signal(signal.SIGKILL)
        stays.wait()
        with pytest.raises(TargetEndedError):
            live.end_round()


@pytest.mark.parametrize("how", ["exit", "SIGKILL"])
def test_27_end_under_the_program(tmp_path: Path, how: str) -> None:
    """When the target ends in the middle of a round, redirty exits with code 3 and one line, and keeps the
    rounds before.
    """
    directory = tmp_path / "rec"
    with Phases(ONE_AREA) as phases:
        program = start_redirty(
            "record", *METHOD_OPTIONS, "-p", phases.pid, "50ms", "-o", directory
        )
        rounds = directory / "rounds.csv"
        wait_until(lambda: rounds.exists() and rounds.read_text().count("\n") > 1, "a round")
        phases.write("a")
        kept = rounds.read_text()
        if how == "exit":
            phases.command("quit")
        else:
            phases.signal(signal.Signals[how])
        phases.wait()
        done = finish(program, PATIENCE_S)
    assert done.code == 3, done
    assert done.err.count("\n") == 1 and "ended" in done.err
    assert rounds.read_text().startswith(kept)
    assert json.loads((directory / "meta.json").read_text())["complete"] is False
    for name in ("pages.csv", "curve.csv", "mappings.csv"):
        assert (directory / name).stat().st_size > 0


def test_28_number_used_again() -> None:
    """A process that gets the PID of one that was traced is not traced in its place."""
    last = Path("/proc/sys/kernel/ns_last_pid")
    require(os.access(last, os.W_OK), "needs CONFIG_CHECKPOINT_RESTORE (ns_last_pid)")
    with contextlib.ExitStack() as stack:
        stays = stack.enter_context(Phases(ONE_AREA))
        ends = stack.enter_context(Phases(ONE_AREA))
        live = stack.enter_context(LiveRounds(stays.pid, ends.pid)).begin()
        live.end_round()
        ends.close()
        other: Program | None = None
        for _ in range(100):  # other programs start processes too
            last.write_text(str(ends.pid - 1))
            started = stack.enter_context(Phases(ONE_AREA))
            if started.pid == ends.pid:
                other = started
                break
            started.close()
        require(other is not None, "needs a quieter machine: the number was always taken")
        assert isinstance(other, Phases)
        for _ in range(2):
            other.write("a")
            wait_idle(stays.pid)
            result = live.end_round()
            touched = [within(s.dirty, other.areas["a"]) for s in spaces_of(result, other.pid)]
            assert sum(map(len, touched)) == 0
            assert set(live.tracer.targets()) == {stays.pid}
        assert [space.pid for space in live.end_round().spaces] == [stays.pid]


@pytest.mark.parametrize("follow", [False, True], ids=["pid", "tree"])
def test_25_borrowed_memory(follow: bool) -> None:
    """Children that borrow their parent's memory, processes that share it, and threads that come and go write to
    one address space, which is there once; a child that then runs another program has its own memory.
    """
    with Sharers() as sharers:
        area = sharers.areas["a"]
        targets = Tree(sharers.pid) if follow else Pids([sharers.pid])
        with LiveRounds(targets=targets) as live:
            live.begin()
            known = NONE
            for first in (0, 10, 2, 100):
                ways = ("vfork", "exec", "clone", "threads")
                done = [sharers.run(how, first + 3 * i, 3) for i, how in enumerate(ways)]
                truth, ran = np.concatenate([pages for pages, _ in done]), done[1][1]
                wait_idle(sharers.pid)
                result = live.end_round()
                space = space_of(result, sharers.pid)
                assert_same(within(space.dirty, area), truth, "dirty")
                assert_same(within(space.log, area), truth, "log")
                again = np.intersect1d(truth, known)
                assert_same(within(space.redirtied, area), again, "re-dirtied")
                others = {s.pid for s in result.spaces} - {sharers.pid}
                assert others == ({ran} if follow else set())
                for other in others:
                    assert len(space_of(result, other).log) > 0
                assert set(live.tracer.targets()) == {sharers.pid}
                known = np.union1d(known, truth)
