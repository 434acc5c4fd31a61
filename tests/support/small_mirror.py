"""A small committed mirror of two processes, one of them a QEMU as far as mirror.json tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from redirty.collector.mirror.image.commit import commit
from redirty.collector.mirror.image.committed import SCHEMA
from redirty.collector.mirror.image.core_notes import OWN_NAME, OWN_PAGES, make_note
from redirty.collector.mirror.image.image import SPACE, Image
from redirty.collector.mirror.image.process_image import PlacedMapping, PlacedProcess
from redirty.collector.pageset import PAGE_SIZE

U = np.uint64
FIRST = 0x1000  # page number of the guest's memory
PAGES = 512


def page(number: int) -> bytes:
    """Return the contents of a page of the first process."""
    return number.to_bytes(8, "little") * (PAGE_SIZE // 8)


WRITTEN = tuple(range(FIRST + 10, FIRST + 60, 2))


def make_mirror(directory: Path) -> Path:
    """Make a mirror: process 7 has PAGES pages from FIRST on, of which WRITTEN have contents; 8 has one page."""
    image = Image.create(directory, "s" * 16)
    for number in (1, 2):
        image.declare(number, SPACE)
    firsts = np.array(WRITTEN, U)
    data = memoryview(b"".join(map(page, WRITTEN)))
    image.write(1, firsts, np.ones(len(firsts), U), data)
    image.write(2, np.array([5], U), np.array([1], U), memoryview(b"z" * PAGE_SIZE))
    own = np.array([[FIRST, 100], [FIRST + 200, 3]], U)
    mappings = (
        PlacedMapping(FIRST, FIRST + PAGES, "rw-p", ""),
        PlacedMapping(FIRST + PAGES, FIRST + PAGES + 1, "r--p", "/x"),
        PlacedMapping(1 << 30, 1 << 34, "---p", ""),
    )
    notes = make_note(b"CORE", 1, b"status") + make_note(OWN_NAME, OWN_PAGES, own.tobytes())
    other = make_note(OWN_NAME, OWN_PAGES, np.array([[5, 1]], U).tobytes())
    guest = {"start": hex(FIRST * PAGE_SIZE), "end": hex((FIRST + PAGES) * PAGE_SIZE), "pid": 7}
    half = PAGES // 2 * PAGE_SIZE
    commit(
        image,
        [
            PlacedProcess(7, 1, mappings, notes),
            PlacedProcess(8, 2, (PlacedMapping(5, 6, "rw-p", ""),), other),
        ],
        62,
        {
            "schema": SCHEMA,
            "uptime_s": 12.5,
            "target": {"pids": [7, 8], "ns_pids": [7, 8]},
            "guest_ram": [guest],
            "guest_memory": [
                {
                    "guest_address": hex(at),
                    "size": hex(half),
                    "address": hex(FIRST * PAGE_SIZE + i * half),
                }
                for i, at in enumerate((0, 4 * half))
            ],
        },
    )
    return directory
