"""Page-table entries of a program, compared bit by bit before and after the tables are moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from redirty.collector.pageset import U64
from redirty.collector.pagetables.walker import Walker

from tests.support.mapped_program import PAGE, Mapped

# Intel SDM volume 3, table 4-20, except for the last: soft-dirty is Linux's, and mremap sets it.
PRESENT, ACCESSED, DIRTY, SOFT_DIRTY = (np.uint64(1 << n) for n in (0, 5, 6, 11))
_REGION = 1 << 21
# One page of this number may lose its accessed bit at any moment: the kernel ages memory, as kdamond does,
# which samples pages at random. A move that lost accessed bits would lose them all.
_AGED_ONE_OF = 100


def entries(walker: Walker, pid: int, start: int, pages: int) -> U64:
    """Return the (pages,) last-level entry of each page from an address on, 0 where there is none."""
    tables = walker.walk(pid)
    base = start // _REGION * _REGION
    count = -(-(start + pages * PAGE - base) // _REGION)
    inside = tables.leaves & (tables.address >= base) & (tables.address < base + count * _REGION)
    words, good = walker._pages.read(tables.physical[inside])
    assert good.all()
    found = np.zeros((count, 512), np.uint64)
    found[(tables.address[inside] - np.uint64(base)) // np.uint64(_REGION)] = words
    first = (start - base) // PAGE
    return found.reshape(-1)[first : first + pages]


def changed_by_a_move(
    walker: Walker, target: Mapped, move: Callable[[], object]
) -> tuple[list[str], Counter[str]]:
    """Move page tables of an idle target and compare its entries.

    Some of its pages are dirty, some accessed, some neither, as far as its mapping allows it. Soft-dirty, which
    mremap sets, and the kernel's own aging are left out.

    Returns: a line for each entry that changed, and how many entries had which bits before.
    """
    pages = (target.mib << 20) // PAGE
    target.sync()
    Path(f"/proc/{target.pid}/clear_refs").write_text("1")  # accessed bits
    target.use(0)
    before = entries(walker, target.pid, target.address, pages)
    move()
    after = entries(walker, target.pid, target.address, pages)
    kinds = {
        "present": before & PRESENT != 0,
        "accessed": before & ACCESSED != 0,
        "dirty": before & DIRTY != 0,
        "not accessed": before & ACCESSED == 0,
        "not dirty": before & DIRTY == 0,
    }
    changed = (before ^ after) & ~SOFT_DIRTY
    aged = (changed == ACCESSED) & (after & ACCESSED == 0)
    if aged.sum() * _AGED_ONE_OF <= pages:
        changed[aged] = 0
    wrong = np.flatnonzero(changed)
    lines = [f"page {n}: {before[n]:#x} is {after[n]:#x}" for n in wrong]
    return lines, Counter({name: int(is_so.sum()) for name, is_so in kinds.items()})
