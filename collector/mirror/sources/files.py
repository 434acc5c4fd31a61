"""The files and shared memory that a target maps."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from redirty.collector.errors import RESOURCE_ERRNOS
from redirty.collector.foreign import mapped_files
from redirty.collector.linux import procfs
from redirty.collector.linux.shared_mappings import Identity, identity, map_file
from redirty.collector.mirror.sources.file_source import FileSource
from redirty.collector.mirror.sources.spaces import SpaceSource
from redirty.collector.mirror.sources.vmas import Key, Vma, namespace_of
from redirty.collector.pageset import PAGE_SHIFT, U64, PageSet, empty, from_pages


class Files:
    """The files and shared memory that the target maps, by key."""

    def __init__(self) -> None:
        self.by_key: dict[Key, FileSource] = {}
        self._devices: set[Key] = set()  # keys of devices, which are not memory
        # For example another user's FUSE: read through the mapping instead.
        self._unreadable: set[Key] = set()

    def sync(
        self, spaces: Iterable[SpaceSource], numbers: Iterator[int], *, last: bool = False
    ) -> None:
        """Update the files to the current mappings; files that are no longer mapped are kept, without pages.

        Args:
            spaces: all address spaces.
            numbers: yields numbers for new sources.
            last: the target is stopped: what may have changed without a change of its mappings is looked at again.

        Raises:
            OSError: this process has no file descriptors or memory left.
        """
        for file in self.by_key.values():
            file.mapped_by = []
        for space in spaces:
            space.direct_vmas = []
            keys = {vma: space.keys.get(vma) for vma in space.previous_vmas if vma in space.keys}
            tid = procfs.living_thread(space.pid)
            for vma in space.vmas:
                if vma.has_file:
                    key = keys.get(vma) or self._identify(space, tid, vma)
                    if key is not None:
                        keys[vma] = key
                        self._add(space, tid, vma, key, numbers, last=last)
            space.keys = {vma: key for vma, key in keys.items() if key is not None}

    def _identify(self, space: SpaceSource, tid: int, vma: Vma) -> Key | None:
        """Return what identifies the file behind a mapping; None if that was unmapped since the list was read."""
        namespace = namespace_of(vma, space.namespace)
        try:
            return identity(map_file(tid, vma.start, vma.end), namespace)
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ESRCH):
                return None
            if e.errno in RESOURCE_ERRNOS:
                raise
            key = Identity(vma.device, vma.inode, namespace)
            self._unreadable.add(key)
            return key

    def _add(
        self,
        space: SpaceSource,
        tid: int,
        vma: Vma,
        key: Key,
        numbers: Iterator[int],
        *,
        last: bool,
    ) -> None:
        if key in self._devices:
            return
        if key in self._unreadable:
            space.direct_vmas.append(vma)
            return
        file = self.by_key.get(key)
        if file is None:
            try:
                fd = mapped_files.open_mapped(tid, vma.start, vma.end, vma.device, vma.path)
            except OSError as e:
                if e.errno in (errno.ENOENT, errno.ESRCH):
                    return  # unmapped since the list was read
                if e.errno in RESOURCE_ERRNOS:
                    raise
                self._unreadable.add(key)
                space.direct_vmas.append(vma)
                return
            if fd is None:
                self._devices.add(key)
                return
            file = FileSource(next(numbers), key, fd, vma.path)
            self.by_key[key] = file
        if file.shown_by(space, vma, again=last):
            file.mapped_by.append((space, vma))
        else:
            space.direct_vmas.append(vma)

    def file_of(self, space: SpaceSource, vma: Vma) -> FileSource | None:
        """Return the file behind a mapping, if it has one that can be read."""
        key = space.keys.get(vma) if vma.has_file else None
        file = None if key is None else self.by_key.get(key)
        return file if file is not None and file.shown_by(space, vma) else None

    def is_device(self, space: SpaceSource, vma: Vma) -> bool:
        """Return whether a mapping shows a device or a ring of the kernel, which is not memory."""
        return space.keys.get(vma) in self._devices

    def dirty_pages(self, space: SpaceSource, pages: U64) -> tuple[dict[Key, PageSet], bool]:
        """Translate dirty pages of an address space to pages of files.

        Uses the current and the previous mappings, as a page may have been written before it was remapped.

        Returns:
            The dirty pages by file, and whether some pages lie in no known mapping.
        """
        found: dict[Key, PageSet] = {}
        known = np.zeros(len(pages), np.bool_)
        for vmas in {id(v): v for v in (space.previous_vmas, space.vmas)}.values():
            starts = np.array([v.start >> PAGE_SHIFT for v in vmas], np.uint64)
            which = np.searchsorted(starts, pages, side="right").astype(np.int64) - 1
            cuts = np.flatnonzero(np.diff(which)) + 1
            bounds = [0, *cuts.tolist(), len(pages)]
            for a, last in itertools.pairwise(bounds):
                if a == last or which[a] < 0:
                    continue
                vma = vmas[int(which[a])]
                b = a + int(np.searchsorted(pages[a:last], np.uint64(vma.end >> PAGE_SHIFT)))
                known[a:b] = True
                if vma.shared and vma.has_file and b > a:
                    first, _ = vma.pages_of_file()
                    shift = np.uint64(vma.start >> PAGE_SHIFT)
                    more = from_pages(pages[a:b] - shift + np.uint64(first))
                    key = space.keys.get(vma)
                    if key is None:  # unmapped before its file could be identified
                        known[a:b] = False
                    else:
                        found[key] = found.get(key, empty()) | more
        return found, not bool(known.all())

    def close(self) -> None:
        """Close all files."""
        for file in self.by_key.values():
            file.close()
