"""Traps 1 to 4: first writes, and their order relative to arms and reads."""

from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.support.phase_walk import Start
from tests.support.stepped_rounds import NONE, assert_same, within
from tests.support.tested_methods import arm_method
from tests.support.waiting import wait_idle
from tests.traps.common import EVERY_KIND, PRIVATE_KINDS, assert_between, each, read_bytes
from tests.workloads.pages import Pages, union

pytestmark = pytest.mark.usefixtures("tracing")

SEED = int(os.environ.get("REDIRTY_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
RACED_ROUNDS = 12


@pytest.mark.every_way
def test_01_writes_race_the_arm(start: Start) -> None:
    """Threads write at random while rounds end at random. A copy that follows the rounds, each page copied after
    the arm that ended its round, equals the memory byte for byte at the end.
    """
    print(f"REDIRTY_SEED={SEED}")
    chance = random.Random(SEED)
    walk = start(**EVERY_KIND)
    phases, live, areas = walk.phases, walk.live, list(walk.phases.areas.values())
    everything = union(area.pages for area in areas)
    copy = read_bytes(phases.pid, everything)
    over = threading.Event()

    def keep_writing() -> Pages:
        written = [NONE]
        seeds = random.Random(SEED)
        while not over.is_set():
            name = seeds.choice(list(phases.areas))
            seed, count = seeds.randrange(1 << 30), seeds.randrange(1, 200)
            written.append(phases.write(name, "random", seed, count, threads=2).pages)
        return union(written)

    seen = [NONE]
    unseen = [NONE]
    skipped = live.tracer.skipped()

    def end_round() -> None:
        space = live.round_of(phases.pid)
        unseen.append(within(space.missed, areas))
        dirty = within(space.dirty, areas)
        copy.update(read_bytes(phases.pid, dirty))
        seen.append(dirty)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(keep_writing)
        try:
            for _ in range(RACED_ROUNDS):
                time.sleep(chance.uniform(0, 0.03))
                end_round()
        finally:
            over.set()
        written = writer.result()
    wait_idle(phases.pid)
    end_round()
    assert len(written) > 0
    # A kernel that may preempt a BPF program skips it for all other threads on that processor
    # meanwhile: what the log lacks for it, the scan has.
    skipped = live.tracer.skipped() - skipped
    if skipped and arm_method() == "soft-dirty":
        assert_same(np.setdiff1d(written, union(seen)), NONE, "never dirty")
    else:
        assert sum(map(len, unseen)) <= skipped, "missed"
        assert_same(union(seen), written, "ever dirty")
    memory = read_bytes(phases.pid, everything)
    assert [hex(page) for page in memory if memory[page] != copy[page]] == []


@pytest.mark.every_way
def test_02_two_threads_write_one_page_at_once(start: Start) -> None:
    """A page written by two threads at once is in every count once, on first touch and when armed."""
    walk = start(**EVERY_KIND)
    known = NONE
    for first in (0, 0, 32):
        pattern = f"collide:range:{first}"
        truth = union(walk.phases.write(a, pattern, 1, 64, 2).pages for a in walk.phases.areas)
        walk.end(truth, again=np.intersect1d(truth, known), missed=NONE)
        known = union([known, truth])


@pytest.mark.every_way
def test_03_first_touch_is_new(start: Start) -> None:
    """A page touched for the first time is new, one touched before is re-dirtied; each is under its mapping class."""
    walk = start(**EVERY_KIND)
    write = walk.phases.write
    first = each(walk, lambda a: write(a, "range:0", count=100).pages)
    space = walk.end(first, again=NONE, missed=NONE)
    for area in walk.phases.areas.values():
        items = [m for m in space.mappings.items if m.start < area.end and area.start < m.end]
        assert {m.mapping_class for m in items} == {area.mapping_class}
    more = each(walk, lambda a: write(a, "random", seed=7, count=120, threads=2).pages)
    both = np.intersect1d(more, first)
    assert 0 < len(both) < len(more)
    walk.end(more, again=both, missed=NONE)
    walk.end(NONE, again=NONE, missed=NONE)
    walk.end(each(walk, lambda a: write(a, "all").pages), again=union([first, more]), missed=NONE)


@pytest.mark.every_way
def test_04_read_first(start: Start) -> None:
    """A page that was only read (the zero page, a file's page) is not dirty until it is written."""
    walk = start(**EVERY_KIND)
    phases = walk.phases
    each(walk, lambda a: phases.read(a, "range:0", count=100).pages)
    walk.end(NONE, missed=NONE)
    some = each(walk, lambda a: phases.write(a, "stride:2", count=40).pages)
    walk.end(some, again=some, missed=NONE)
    each(walk, lambda a: phases.read(a, "all", threads=2).pages)
    walk.end(NONE, missed=NONE)
    everything = each(walk, lambda a: phases.write(a, "all", threads=2).pages)
    walk.end(everything, again=everything, missed=NONE)
    # read and written in one round: present pages of it only by the read
    each(walk, phases.dontneed)
    walk.end(NONE, missed=NONE)
    each(walk, lambda a: phases.read(a, "range:10", count=20).pages)
    late = each(walk, lambda a: phases.write(a, "range:10", count=10).pages)
    walk.end(late, again=NONE, missed=NONE, read_first=True)


@pytest.mark.every_way
def test_04_read_first_in_a_new_mapping(start: Start) -> None:
    """Pages of a private mapping made after the arm and only read are not dirty."""
    walk = start(keep=("anon_private", 1))
    phases = walk.phases
    for kind in PRIVATE_KINDS:
        phases.mapnew(kind, kind, 1)
    each(walk, lambda a: phases.read(a, "range:0", count=100).pages, *PRIVATE_KINDS)
    walk.end(NONE, missed=NONE)
    for kind in PRIVATE_KINDS:
        phases.mapnew(f"{kind}2", kind, 1)
        phases.read(f"{kind}2", "all")
    some = each(walk, lambda a: phases.write(a, "range:90", count=10).pages, *PRIVATE_KINDS)
    also = each(walk, lambda a: phases.write(f"{a}2", "stride:5").pages, *PRIVATE_KINDS)
    walk.end(union([some, also]), again=some, missed=NONE, read_first=True)


def test_04_read_first_in_a_new_shared_mapping(start: Start) -> None:
    """Pages written in a new shared mapping are found; of those only read, none that is not present."""
    walk = start(keep=("anon_private", 1))
    phases, live = walk.phases, walk.live
    area = phases.mapnew("new", "memfd", 1)
    phases.read("new", "range:0", count=60)
    truth = phases.write("new", "range:50", count=30).pages
    wait_idle(phases.pid)
    present = within(live.round_of(phases.pid).dirty, area)
    assert_same(np.setdiff1d(truth, present), NONE, "written and not found")
    again = phases.write("new", "range:0", count=20).pages
    wait_idle(phases.pid)
    assert_between(live.round_of(phases.pid).dirty, area, again, again, "later")
