"""Finds files and shared memory that processes outside the target can write to; such writes are not tracked."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from redirty.collector.errors import RESOURCE_ERRNOS
from redirty.collector.linux import procfs
from redirty.collector.linux.shared_mappings import Shown, identified, shared_mappings
from redirty.collector.mirror.sources.file_source import FileSource
from redirty.collector.mirror.sources.vmas import Key, namespace_of


def writable_outside(members: Collection[int], files: Iterable[FileSource]) -> set[Key]:
    """Return the keys of files that processes other than `members` map writable now.

    Raises:
        OSError: this process has no file descriptors or memory left.
    """
    keys: set[Key] = set()
    shown: set[Shown] = set()  # how lists of mappings show them
    for file in files:
        keys.add(file.key)
        for space, vma in file.mapped_by:
            shown.add((vma.device, vma.inode, namespace_of(vma, space.namespace)))
    found: set[Key] = set()
    for pid in procfs.pids():
        if pid not in members:
            try:
                mappings = [m for m in shared_mappings(pid) if m.shown in shown]
                objects = identified(pid, mappings)
            except OSError as e:
                if e.errno in RESOURCE_ERRNOS:
                    raise
                continue
            found |= {key for key, mapped in objects.items() if mapped.writable and key in keys}
    return found
