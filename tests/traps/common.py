"""Shared parts of the traps' tests. Each test is named test_NN_words, NN the trap's number (README.md).

They are ordinary tests of the machine they run on. In an emulated machine tests/vm/matrix.py runs them with
one kind of probe and one arming method after the other: those marked `every_way` with all of them, the others
with what `auto` chooses there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import NoReturn

import numpy as np
import pytest
from redirty.collector.pageset import PageSet
from redirty.collector.tracking.rounds import SpaceRound

from tests.support.phase_walk import Walk
from tests.support.stepped_rounds import NONE, LiveRounds, assert_same, space_of, within
from tests.support.waiting import wait_idle
from tests.workloads.driver import DEFAULT_AREAS, Phases
from tests.workloads.pages import Area, Pages, union

NOT_APPLICABLE = "n/a: "
EVERY_KIND = {kind: (kind, 1) for kind, _ in DEFAULT_AREAS.values()}
"""An area of each mapping class, named as its kind, 1 MiB: 256 pages."""
SHARED_KINDS = ("anon_shared", "memfd", "file_shared")
PRIVATE_KINDS = ("anon_private", "file_private")


def not_applicable(reason: str) -> NoReturn:
    """End a test whose trap this kernel does not have: not a failure, and in the table with the kernel's reason."""
    pytest.skip(NOT_APPLICABLE + reason)


def each(walk: Walk, touch: Callable[[str], Pages], *names: str) -> Pages:
    """Do the same to some areas, or to all; return the pages of all of them."""
    return union(touch(name) for name in names or walk.phases.areas)


def end_round_of_both(
    live: LiveRounds, phases: Phases, child: int, names: Iterable[str], offsets: tuple[int, int]
) -> list[tuple[SpaceRound, Pages]]:
    """Have a parent and its child, both targets, write 40 pages of some areas, and end the round.

    Assert that each page is dirty and logged under the process that wrote it.

    Args:
        offsets: the first page that each of them writes.

    Returns: of each of the two, its address space and the pages that it wrote.
    """
    names, areas = tuple(names), list(phases.areas.values())
    by_parent = union(phases.write(n, f"range:{offsets[0]}", 1, 40).pages for n in names)
    by_child = union(phases.child_write(n, f"range:{offsets[1]}", 2, 40).pages for n in names)
    wait_idle(phases.pid)
    wait_idle(child)
    result = live.end_round()
    found = []
    for pid, truth in ((phases.pid, by_parent), (child, by_child)):
        space = space_of(result, pid)
        assert_same(within(space.dirty, areas), truth, f"{pid} dirty")
        assert_same(within(space.log, areas), truth, f"{pid} log")
        found.append((space, truth))
    return found


def read_bytes(pid: int, pages: Pages) -> dict[int, bytes]:
    """Return the contents of pages of a process, by page number."""
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        return {int(page): os.pread(memory, 4096, int(page) * 4096) for page in pages}
    finally:
        os.close(memory)


def assert_between(found: PageSet, area: Area, least: Pages, most: Pages, what: str) -> None:
    """Assert that all of `least` and nothing but `most` was found in an area."""
    pages = within(found, area)
    assert_same(np.setdiff1d(least, pages), NONE, f"{what}: not found")
    assert_same(np.setdiff1d(pages, most), NONE, f"{what}: too many")


def still_present(walk: Walk) -> Walk:
    """Return the workload's walk with the pages now present read from the kernel, after mappings changed."""
    return Walk(walk.phases, walk.live, walk.pid)
