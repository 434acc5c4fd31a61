"""Files and shared memory that processes outside the target can write to: these writes are seen by nobody."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

from redirty.collector.errors import RESOURCE_ERRNOS
from redirty.collector.linux.shared_mappings import objects_of
from redirty.collector.mirror.sources.files import FileSource
from redirty.collector.mirror.sources.vmas import Key


def mapped_outside(members: Collection[int], files: Iterable[FileSource]) -> set[Key]:
    """Keys of those that some other process maps for writing now. Errors: OSError when this process may
    not open more files."""
    ours = {file.key for file in files}
    found: set[Key] = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) not in members:
            try:
                theirs = objects_of(int(entry.name))
            except OSError as e:
                if e.errno in RESOURCE_ERRNOS:
                    raise
                continue
            found |= {key for key, what in theirs.items() if what.writable and key in ours}
    return found
