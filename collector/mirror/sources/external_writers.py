"""Finds files and shared memory that processes outside the target can write to; such writes are not tracked."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from redirty.collector.errors import RESOURCE_ERRNOS
from redirty.collector.linux import procfs
from redirty.collector.linux.shared_mappings import objects_of
from redirty.collector.mirror.sources.files import FileSource
from redirty.collector.mirror.sources.vmas import Key


def writable_outside(members: Collection[int], files: Iterable[FileSource]) -> set[Key]:
    """Return the keys of files that processes other than `members` map writable now.

    Raises:
        OSError: this process has no file descriptors or memory left.
    """
    keys = {file.key for file in files}
    found: set[Key] = set()
    for pid in procfs.pids():
        if pid not in members:
            try:
                objects = objects_of(pid)
            except OSError as e:
                if e.errno in RESOURCE_ERRNOS:
                    raise
                continue
            found |= {key for key, mapped in objects.items() if mapped.writable and key in keys}
    return found
