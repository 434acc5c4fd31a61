"""A sample of a target's pages, for what compression makes of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import numpy as np
from redirty.collector.errors import RESOURCE_ERRNOS
from redirty.collector.mirror.sources.spaces import SpaceSource
from redirty.collector.pageset import PAGE_SIZE, U64, page_numbers

_SEED = 1


def sample_pages(pids: Iterable[int], count: int, *, scan: bool) -> bytes:
    """Return up to `count` pages of processes, chosen at random among their own ones that are not zero.

    Args:
        pids: the processes; those that end meanwhile are left out.
        count: the number of pages.
        scan: the kernel has PAGEMAP_SCAN.

    Raises:
        OSError: this process ran out of something.
    """
    found: list[bytes] = []
    with contextlib.ExitStack() as stack:
        spaces: list[tuple[SpaceSource, U64]] = []
        for pid in pids:
            try:
                space = SpaceSource(0, pid, scan=scan)
                stack.callback(space.close)
                space.refresh()
                spaces.append((space, page_numbers(space.current_pages())))
            except OSError as e:
                if e.errno in RESOURCE_ERRNOS:
                    raise
        total = sum(len(pages) for _, pages in spaces)
        for space, pages in spaces:
            found.append(_sample(space, pages, round(count * len(pages) / max(total, 1))))
    return b"".join(found)


def _sample(space: SpaceSource, pages: U64, count: int) -> bytes:
    rng = np.random.default_rng(_SEED)
    chosen = np.sort(rng.choice(pages, min(count, len(pages)), replace=False))
    buffer = bytearray(len(chosen) * PAGE_SIZE)
    space.read(chosen, memoryview(buffer))  # a page that cannot be read is zero
    rows = np.frombuffer(buffer, np.uint64).reshape(len(chosen), -1)
    return rows[rows.any(axis=1)].tobytes()
