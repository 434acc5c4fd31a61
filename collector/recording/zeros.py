"""zeros.csv: present pages and zero pages, by ranges of mappings."""

from __future__ import annotations

from collections.abc import Iterable

from redirty.collector.files import csv_bytes, replace
from redirty.collector.folders import Folder
from redirty.collector.metrics.zero_pages import ZeroRange
from redirty.collector.recording.columns import ZEROS

NAME = "zeros.csv"


def write_zeros(folder: Folder, found: Iterable[ZeroRange]) -> None:
    """Write the whole file. Raises: RedirtyError when that fails."""
    rows = (
        (
            z.pid,
            hex(z.start),
            hex(z.end),
            z.mapping.mapping_class,
            z.pages,
            z.present,
            z.zero,
            z.unread,
            z.once,
            z.present_once,
            z.zero_once,
        )
        for z in found
    )
    replace(folder, NAME, [csv_bytes([ZEROS, *rows])])
