"""zeros.csv: pages that are present, and that are all zeros, by pieces of mappings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from redirty.collector.files import csv_bytes, replace
from redirty.collector.metrics.zero_pages import Stretch
from redirty.collector.recording.columns import ZEROS

NAME = "zeros.csv"


def write_zeros(directory: Path, found: Iterable[Stretch]) -> None:
    """The whole file. Errors: RedirtyError."""
    rows = (
        (s.pid, hex(s.start), hex(s.end), s.mapping.mapping_class, s.pages, s.present, s.zero)
        for s in found
    )
    replace(directory / NAME, [csv_bytes([ZEROS, *rows])])
