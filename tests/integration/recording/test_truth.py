"""Recorded page sets equal what a workload reports it wrote, page for page, in every phase."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.phase_walk import Start, every_kind
from tests.support.stepped_rounds import (
    NONE,
)
from tests.workloads.driver import DEFAULT_AREAS

pytestmark = pytest.mark.usefixtures("tracing")


@every_kind("kind")
def test_patterns(start: Start, kind: str) -> None:
    """First touches are new and rewritten pages re-dirtied, by one thread, by two in turn, and by two at once."""
    walk = start(a=(kind, 4))
    write = walk.phases.write
    first = write("a", "range:0", count=200).pages
    walk.end(first, again=NONE, missed=NONE)
    some = write("a", "stride:3", seed=2, count=60).pages
    walk.end(some, again=some, missed=NONE)
    random = write("a", "random", seed=7, count=300, threads=2).pages
    assert 0 < len(np.intersect1d(random, first)) < 300  # both kinds of pages are in it
    walk.end(random, again=np.intersect1d(random, first), missed=NONE)
    known = np.union1d(first, random)
    both = write("a", "collide:range:150", count=100, threads=2).pages
    walk.end(both, again=np.intersect1d(both, known), missed=NONE)
    known = np.union1d(known, both)
    everything = write("a", "all", threads=2).pages
    assert len(everything) == 1024
    walk.end(everything, again=known, missed=NONE)
    odd = write("a", "stride:2", seed=1, threads=2).pages
    walk.end(odd, again=odd, missed=NONE)
    walk.end(NONE, again=NONE, missed=NONE)
    everything = write("a", "all").pages
    walk.end(everything, again=everything, missed=NONE)
    one_each = walk.phases.transient("a", 500, 8).pages
    walk.end(one_each, again=one_each, missed=NONE)
    twice = write("a", "random", seed=3, count=50)
    write("a", "random", seed=3, count=50, threads=2)
    walk.end(twice.pages, again=twice.pages, missed=NONE)


def test_all_classes_in_one_round(start: Start) -> None:
    """Areas of all classes written at once have each page under the right mapping class."""
    walk = start(**DEFAULT_AREAS)
    for seed in (1, 2, 3):
        touched = [
            walk.phases.write(name, "random", seed=seed * 10 + i, count=150, threads=2)
            for i, name in enumerate(walk.phases.areas)
        ]
        space = walk.end(np.sort(np.concatenate([t.pages for t in touched])), missed=NONE)
        for t in touched:
            classes = {
                m.mapping_class
                for m in space.mappings.items
                if m.start < t.area.end and t.area.start < m.end
            }
            assert classes == {t.area.mapping_class}
