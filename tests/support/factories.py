"""Rounds with known counts, made up for tests of their consumers: the pages of a few mappings."""

from __future__ import annotations

import numpy as np
from redirty.collector.bpf import abi
from redirty.collector.linux.maps import Mapping, Mappings
from redirty.collector.pageset import PageSet, from_pages
from redirty.collector.recording.writer import Meta
from redirty.collector.tracking.rounds import Round, SpaceRound

# fmt: off
EVERYTHING = frozenset({
    "write_faults", "first_touch", "write_protect", "cow", "mkwrite", "huge", "huge_wp",
    "tlb", "tlb_time", "tlb_batch_time", "tlb_cpus",
})
# fmt: on


def pages(*numbers: int) -> PageSet:
    """Return a set of page numbers."""
    return from_pages(np.array(sorted(numbers), np.uint64))


MAPPINGS = Mappings.of(
    (
        Mapping(0x10000, 0x20000, "rw-p", ""),
        Mapping(0x20000, 0x30000, "rw-s", '/srv/a "quoted", name\nof lines'),
        Mapping(0x30000, 0x31000, "r--p", "/srv/raw \udcff\udcfe bytes"),
    )
)


def one_round(number: int, *, log: PageSet, missed: PageSet, present: PageSet) -> Round:
    """Return a round of one address space, with statistics whose every value is known."""
    stats = np.zeros(2, abi.STATS)
    stats["kinds"][1] = [10, 6, 4, 3, 2, 1, 0, 0]
    stats["hist"][1, 200] = len(log)
    stats["tlb"][1, abi.TLB_MM_RANGE] = (5, 7, 1, 2_000_000_000, 4, 9)
    stats["tlb"][1, 3] = (4, 6, 0, 0, 4, 0)
    stats["arm_tlb"][1, abi.TLB_MM_RANGE] = (1, 0, 1, 500_000_000, 0, 3)
    stats["arm_tlb"][1, 1] = (3, 0, 3, 0, 0, 0)
    stats["lost"][0] = 3
    dirty = log | missed
    space = SpaceRound(
        pid=4321,
        space=4321,
        mappings=MAPPINGS,
        present=present,
        log=log,
        missed=missed,
        dirty=dirty,
        redirtied=dirty & present,
        scanned_pages=len(dirty),
        stats=stats[1:2].copy(),
    )
    return Round(number, number * 1.0, 1.0, 0.0004, (space,), stats)


def meta(features: frozenset[str] = EVERYTHING) -> Meta:
    """Return the metadata of a recording of one process."""
    target = {"description": "process 4321", "pids": [4321], "comm": "x", "cmdline": "x"}
    return Meta(target, "fentry", "uffd", 1.0, "6.12.0-test", features)
