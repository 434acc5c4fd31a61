"""The files and pieces of shared memory that a target maps, each once, and how many pages of them it maps.

They are identified as a mirror identifies what it copies. Nothing is opened: that could wait for a file server,
and break a lease that the target has.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from redirty.collector.errors import require_resources
from redirty.collector.linux import procfs
from redirty.collector.linux.maps import SYSTEM_V_PATH, Mapping, Mappings
from redirty.collector.linux.shared_mappings import (
    FileSize,
    Identity,
    file_size,
    identity,
    map_file,
)
from redirty.collector.pageset import PAGE_SHIFT, PAGE_SIZE, U64

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Shown:
    """The files behind the shared mappings of an address space, ascending; adjacent mappings may be joined.

    Mappings whose file could not be identified are left out: their pages count as the address space's own.

    Attributes:
        starts, ends: (n,) page numbers, end exclusive.
        file: (n,) numbers of files.
        distance: (n,) page p of the address space is page p + distance of the file.
    """

    starts: U64
    ends: U64
    file: I64
    distance: I64

    @classmethod
    def of(cls, files: Iterable[tuple[Mapping, int]]) -> Shown:
        """Build from shared mappings, ascending, and the numbers of their files."""
        rows: list[list[int]] = []
        for mapping, file in files:
            first, end = mapping.start >> PAGE_SHIFT, mapping.end >> PAGE_SHIFT
            distance = (mapping.offset >> PAGE_SHIFT) - first
            if rows and rows[-1][1:] == [first, file, distance]:
                rows[-1][1] = end
            else:
                rows.append([first, end, file, distance])
        columns = np.array(rows, np.int64).reshape(-1, 4).T
        return cls(
            columns[0].astype(np.uint64), columns[1].astype(np.uint64), columns[2], columns[3]
        )


NOTHING = Shown.of(())


@dataclass(eq=False)
class MappedFile:
    """A file, or a piece of shared memory.

    Attributes:
        key: what identifies it.
        mapping_class: of the mappings that show it.
        pages: pages of it that mappings show and that hold data.
        memory: whether it is memory: a device is not, nor is a ring of the kernel, which a mirror leaves out.
    """

    key: Identity
    mapping_class: str
    pages: int = 0
    memory: bool = True
    # by address space: a process and a mapping by which it can be asked, and the ranges of its pages shown
    _shown_by: dict[int, tuple[int, Mapping]] = field(default_factory=dict)
    _parts: dict[int, frozenset[tuple[int, int]]] = field(default_factory=dict)
    _shared: set[int] = field(default_factory=set)
    _size: FileSize | None = None
    _changed: bool = True

    def show(self, space: int, pid: int, mappings: list[Mapping]) -> None:
        """Note the mappings by which an address space shows it, at least one."""
        self._changed = True
        self._shown_by[space] = pid, mappings[-1]
        firsts = [(m.offset >> PAGE_SHIFT, (m.end - m.start) >> PAGE_SHIFT) for m in mappings]
        self._parts[space] = frozenset((first, first + pages) for first, pages in firsts)
        self._shared.discard(space)
        for mapping in mappings:
            if mapping.shared:
                self._shared.add(space)
                self.mapping_class = mapping.mapping_class

    def forget(self, space: int) -> None:
        """Note that an address space does not show it any more."""
        self._changed = True
        for of_space in (self._shown_by, self._parts):
            of_space.pop(space, None)
        self._shared.discard(space)

    @property
    def mapped(self) -> bool:
        """Whether an address space shows it."""
        return bool(self._shown_by)

    def update(self) -> None:
        """Count its pages again, if their number may have changed."""
        if not (self._changed or self._shared):
            return  # nobody writes to it through a mapping
        size = self._ask()
        if size == self._size and not self._changed:
            return
        self._size, self._changed = size, False
        if size is not None:
            self.memory = size.memory
        if size is None or not size.memory:
            self.pages = 0
            return
        parts = frozenset[tuple[int, int]]().union(*self._parts.values())
        self.pages = _length(parts, -(-size.size // PAGE_SIZE))
        # One that is only mapped privately, such as a library, may be compressed, but has hardly any holes.
        if self._shared:
            self.pages = min(self.pages, -(-size.allocated // PAGE_SIZE))

    def _ask(self) -> FileSize | None:
        """Return its size; None when it is not mapped any more."""
        for pid, mapping in self._shown_by.values():
            try:
                tid = procfs.living_thread(pid)
                return file_size(map_file(tid, mapping.start, mapping.end))
            except OSError as e:
                # else it ended, or unmapped the file meanwhile
                require_resources(e, f"cannot read the mappings of process {pid}")
        return None


def _length(parts: Iterable[tuple[int, int]], most: int) -> int:
    """Return the number of pages in the union of some ranges, below `most`."""
    total = at = 0
    for first, end in sorted(parts):
        last = min(end, most)
        total += max(0, last - max(first, at))
        at = max(at, last)
    return total


@dataclass(eq=False)
class _Space:
    """An address space. files: by mapping; None for one that could not be identified."""

    mappings: Mappings
    files: dict[Mapping, int | None]
    shown: Shown
    gone: bool = False


class MappedFiles:
    """The files of a target.

    Attributes:
        files: by number. One that is no longer mapped stays until the next update().
    """

    def __init__(self) -> None:
        self.files: dict[int, MappedFile] = {}
        self._next = itertools.count()
        self._numbers: dict[Identity, int] = {}
        self._spaces: dict[int, _Space] = {}

    def shown(self, space: int) -> Shown:
        """Return what an address space showed at the last update(), also when it was gone then."""
        known = self._spaces.get(space)
        return NOTHING if known is None else known.shown

    def update(self, living: Iterable[tuple[int, int, Mappings]]) -> None:
        """Look at what address spaces show now: (number, process, mappings) of each.

        Raises:
            RedirtyError: this process has no file descriptors or memory left.
        """
        for number in [n for n, file in self.files.items() if not file.mapped]:
            del self._numbers[self.files.pop(number).key]
        there = {number: (pid, mappings) for number, pid, mappings in living}
        for number in self._spaces.keys() - there.keys():
            known = self._spaces[number]
            if known.gone:
                del self._spaces[number]
            else:
                known.gone = True
                self._forget(number, known)
        for number, (pid, mappings) in there.items():
            old = self._spaces.get(number)
            if old is None or old.mappings is not mappings:
                self._update_space(number, pid, mappings, old)
        for file in self.files.values():
            file.update()

    def _forget(self, number: int, known: _Space) -> None:
        for file in set(known.files.values()) - {None}:
            assert file is not None
            self.files[file].forget(number)

    def _update_space(self, number: int, pid: int, mappings: Mappings, old: _Space | None) -> None:
        before = {} if old is None else old.files
        shown = mappings.of_files
        if old is not None and len(before) == len(shown) and all(m in before for m in shown):
            old.mappings = mappings
            return
        identify = _Identifier(pid)
        files = {m: before[m] if m in before else self._number(identify, m) for m in shown}
        if old is not None:
            self._forget(number, old)
        by_file: dict[int, list[Mapping]] = {}
        for mapping, file in files.items():
            if file is not None:
                by_file.setdefault(file, []).append(mapping)
        for file, theirs in by_file.items():
            self.files[file].show(number, pid, theirs)
        shared = ((m, f) for m, f in files.items() if f is not None and m.shared)
        self._spaces[number] = _Space(mappings, files, Shown.of(shared))

    def _number(self, identify: _Identifier, mapping: Mapping) -> int | None:
        key = identify(mapping)
        if key is None:
            return None
        if key not in self._numbers:
            self._numbers[key] = number = next(self._next)
            self.files[number] = MappedFile(key, mapping.mapping_class)
        return self._numbers[key]


class _Identifier:
    """Identifies the files behind the mappings of one process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._tid = procfs.living_thread(pid)
        # A program maps each of its libraries several times.
        self._private: dict[tuple[str, int, str], Identity | None] = {}

    def __call__(self, mapping: Mapping) -> Identity | None:
        """Return what identifies a file; None if it is unmapped by now, or may not be examined."""
        if mapping.shared:
            return self._ask(mapping)
        looks = mapping.device, mapping.inode, mapping.path
        if looks not in self._private:
            self._private[looks] = self._ask(mapping)
        return self._private[looks]

    def _ask(self, mapping: Mapping) -> Identity | None:
        try:
            namespace = 0
            if mapping.path.startswith(SYSTEM_V_PATH):
                namespace = os.stat(f"{procfs.directory(self._pid)}/ns/ipc").st_ino  # noqa: PTH116
            return identity(map_file(self._tid, mapping.start, mapping.end), namespace)
        except OSError as e:
            require_resources(e, f"cannot read the mappings of process {self._pid}")
            return None


Where = Callable[[int], Shown]
"""A function that returns what an address space shows."""
