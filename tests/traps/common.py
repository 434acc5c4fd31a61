"""What the tests of the traps share. Each is named test_NN_words, NN the trap's number (README.md).

They are ordinary tests of the machine they run on. In an emulated machine they are run by
tests/vm/matrix.py, one kind of probe and one way of arming after the other: those marked
`every_way` by all of them, the others by what `auto` takes there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

import numpy as np
import pytest
from redirty.collector.pageset import PageSet

from tests.support.phase_walk import Walk
from tests.support.stepped_rounds import NONE, assert_same, within
from tests.workloads.driver import DEFAULT_AREAS
from tests.workloads.pages import Area, Pages, union

NOT_APPLICABLE = "n/a: "
EVERY_KIND = {kind: (kind, 1) for kind, _ in DEFAULT_AREAS.values()}
"""An area of each mapping class, named as its kind, 1 MiB: 256 pages."""
SHARED_KINDS = ("anon_shared", "memfd", "file_shared")
PRIVATE_KINDS = ("anon_private", "file_private")


def not_applicable(reason: str) -> NoReturn:
    """Ends a test whose trap this kernel does not have: never a failure, and in the table with the
    kernel's reason."""
    pytest.skip(NOT_APPLICABLE + reason)


def each(walk: Walk, touch: Callable[[str], Pages], *names: str) -> Pages:
    """Does the same to some areas, or all: the pages of all of them."""
    return union(touch(name) for name in names or walk.phases.areas)


def read_bytes(pid: int, pages: Pages) -> dict[int, bytes]:
    """Contents of pages of a process, by page number."""
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        return {int(page): os.pread(memory, 4096, int(page) * 4096) for page in pages}
    finally:
        os.close(memory)


def assert_between(found: PageSet, area: Area, least: Pages, most: Pages, what: str) -> None:
    """All of `least` and nothing but `most` was found in an area."""
    pages = within(found, area)
    assert_same(np.setdiff1d(least, pages), NONE, f"{what}: not found")
    assert_same(np.setdiff1d(pages, most), NONE, f"{what}: too many")


def still_present(walk: Walk) -> Walk:
    """The same workload, with what is present now taken from the kernel: after mappings changed."""
    return Walk(walk.phases, walk.live, walk.pid)
