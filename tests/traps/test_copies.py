"""Traps 5 to 8: pages copied on write, private and shared files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.bpf import abi
from redirty.collector.bpf.tracer import Tracer

from tests.support.pagemap_oracle import present_frames
from tests.support.phase_walk import Start
from tests.support.stepped_rounds import NONE, LiveRounds, assert_same, within
from tests.traps.common import PRIVATE_KINDS, each, end_round_of_both, read_bytes
from tests.workloads.driver import Phases
from tests.workloads.pages import Pages, union

pytestmark = pytest.mark.usefixtures("tracing")

PRIVATE = {kind: (kind, 1) for kind in PRIVATE_KINDS}


@pytest.mark.every_way
def test_05_copy_on_write_after_fork(start: Start) -> None:
    """The parent's page is dirty only where the parent wrote, whichever side wrote first."""
    walk = start(**PRIVATE)
    phases = walk.phases
    everything = each(walk, lambda a: phases.write(a, "all").pages)
    walk.end(everything, again=NONE, missed=NONE)
    phases.fork()
    walk.end(NONE, missed=NONE)
    each(walk, lambda a: phases.child_write(a, "range:0", count=50).pages)
    walk.end(NONE, missed=NONE)
    reused = each(walk, lambda a: phases.write(a, "range:20", 1, 60).pages)
    walk.end(reused, again=reused, missed=NONE)
    each(walk, lambda a: phases.child_write(a, "range:60", count=50).pages)
    walk.end(NONE, missed=NONE)
    late = each(walk, lambda a: phases.write(a, "range:100", count=30).pages)
    phases.child_exit()
    walk.end(late, again=late, missed=NONE)
    alone = each(walk, lambda a: phases.write(a, "random", count=200, threads=2).pages)
    walk.end(alone, again=alone, missed=NONE)


@pytest.mark.every_way
def test_05_both_sides_are_targets(tracer: Tracer) -> None:
    """Each page is found under the one that wrote it, though parent and child have the same addresses."""
    with Phases(PRIVATE) as phases:
        for name in PRIVATE:
            phases.write(name, "all")
        child = phases.fork()
        areas = list(phases.areas.values())
        with LiveRounds(phases.pid, child, tracer=tracer) as live:
            live.begin()
            for offsets in ((0, 30), (100, 80), (0, 60)):
                for space, truth in end_round_of_both(live, phases, child, PRIVATE, offsets):
                    redirtied = within(space.redirtied, areas)
                    assert_same(redirtied, truth, f"{space.pid} re-dirtied")


@pytest.mark.every_way
def test_06_copied_or_used_again(start: Start) -> None:
    """A write to a page that another process shares makes a copy; a write to one that is no longer shared
    does not. The page frames show which it was; both are logged.
    """
    walk = start(a=("anon_private", 1))
    phases, area = walk.phases, walk.phases.areas["a"]
    everything = phases.write("a", "all").pages
    walk.end(everything, again=NONE, missed=NONE)

    def moved(touched: Pages, before: dict[int, int]) -> int:
        after = present_frames(phases.pid, area)
        return sum(after[int(page)] != before[int(page)] for page in touched)

    phases.fork()
    before = present_frames(phases.pid, area)
    shared = phases.write("a", "range:0", 1, 100).pages
    assert moved(shared, before) == 100
    walk.end(shared, again=shared, missed=NONE)
    phases.child_exit()
    before = present_frames(phases.pid, area)
    alone = phases.write("a", "range:100", 1, 100).pages
    # The kernel also copies when it cannot tell whether the page is still shared.
    assert moved(alone, before) < 100
    walk.end(alone, again=alone, missed=NONE)
    walk.end(phases.write("a", "all").pages, missed=NONE)


@pytest.mark.every_way
def test_07_private_file(start: Start) -> None:
    """Written pages of a private file mapping are the process's own; neither the file nor other pages change."""
    walk = start(a=("file_private", 1))
    phases, area = walk.phases, walk.phases.areas["a"]
    file = Path(area.path)
    before = file.read_bytes()
    truth = phases.write("a", "stride:2").pages
    space = walk.end(truth, again=NONE, missed=NONE)
    classes = {m.mapping_class for m in space.mappings.items if m.start == area.start}
    assert classes == {"file_private"}
    again = phases.write("a", "range:0", 2, 64).pages
    walk.end(again, again=np.intersect1d(again, truth), missed=NONE)
    assert file.read_bytes() == before
    written = set(union([truth, again]).tolist())
    for page, data in read_bytes(phases.pid, area.pages).items():
        at = (page - area.first_page) * 4096
        assert (data != before[at : at + 4096]) == (page in written)


@pytest.mark.every_way
def test_08_shared_file_written_back(start: Start) -> None:
    """Write-back protects a page by itself. Whether that or the round armed it, the next write is found, in
    the same round and in the next, and the file holds it.
    """
    walk = start(a=("file_shared", 1))
    phases, area = walk.phases, walk.phases.areas["a"]
    first = phases.write("a", "range:0", 1, 128).pages
    walk.end(first, again=NONE, missed=NONE)
    for seed in (2, 3):
        phases.msync("a")
        walk.end(NONE, missed=NONE)
        again = phases.write("a", "range:20", seed, 64).pages
        space = walk.end(again, again=again, missed=NONE)
        if "mkwrite" in walk.live.tracer.hooks:
            assert space.stats[0]["kinds"][abi.MKWRITE] == len(again)
    # written, written back and written again, all in one round; by fsync of another process
    twice = phases.write("a", "range:100", 4, 28).pages
    with Path(area.path).open("rb+") as file:
        os.fsync(file.fileno())
    phases.write("a", "range:110", 5, 18)
    walk.end(twice, again=twice, missed=NONE)
    phases.msync("a")
    walk.end(NONE, missed=NONE)
    content = Path(area.path).read_bytes()
    memory = read_bytes(phases.pid, first)
    assert b"".join(memory.values()) == content[: 128 * 4096]
