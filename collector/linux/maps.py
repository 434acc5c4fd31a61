"""The mappings of a process: /proc/PID/maps as arrays, each with its class.

The file is kept open: it belongs to the memory that the process had when it was opened, and
reads empty once that memory is gone, by exit or by exec. So it can't be confused with memory of
a program that came after it under the same number.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple, Self

import numpy as np
from redirty.collector.pageset import PAGE_SHIFT, U64, PageSet, empty, from_ranges

ANON_PRIVATE, ANON_SHARED = "anon_private", "anon_shared"
FILE_PRIVATE, FILE_SHARED = "file_private", "file_shared"
CLASSES = (ANON_PRIVATE, ANON_SHARED, FILE_PRIVATE, FILE_SHARED)

# made by the kernel for itself: never the program's data
_SPECIAL = ("[vsyscall]", "[vvar]", "[vvar_vclock]", "[vdso]")
# shared memory that no file system shows: MAP_SHARED|MAP_ANONYMOUS, memfd, System V
_ANON_SHARED = ("/dev/zero (deleted)", "/memfd:", "/SYSV", "[anon_shmem:", "/anon_hugepage")


def mapping_class(perms: str, path: str) -> str:
    """One of the four classes, from a line of maps."""
    shared = perms[3:4] == "s"
    if shared:
        return ANON_SHARED if path.startswith(_ANON_SHARED) else FILE_SHARED
    anonymous = not path or path.startswith("[") or path.startswith("/anon_hugepage")
    return ANON_PRIVATE if anonymous else FILE_PRIVATE


class Mapping(NamedTuple):
    """One mapping. start, end: addresses, end exclusive."""

    # a tuple: a process may have 65,530 of them, and tuples are quick to make, compare and hash

    start: int
    end: int
    perms: str
    path: str

    @property
    def mapping_class(self) -> str:
        """One of CLASSES."""
        return mapping_class(self.perms, self.path)


@dataclass(frozen=True, eq=False)
class Mappings:
    """All mappings of a process that can hold its data, ascending by address.

    starts, ends: (n,) page numbers, ends exclusive.
    """

    items: tuple[Mapping, ...]
    starts: U64 = field(repr=False)
    ends: U64 = field(repr=False)

    @classmethod
    def of(cls, items: tuple[Mapping, ...]) -> Self:
        """From mappings in ascending order."""
        shift = np.uint64(PAGE_SHIFT)
        starts = np.fromiter(map(itemgetter(0), items), np.uint64, len(items))
        ends = np.fromiter(map(itemgetter(1), items), np.uint64, len(items))
        return cls(items, starts >> shift, ends >> shift)

    def pages_of(
        self, *, private_file: bool = False, read_only_shared: Collection[Mapping] = ()
    ) -> PageSet:
        """Pages of the mappings of a kind: private_file: all; read_only_shared: those of some."""
        chosen = [
            *(self._private_file if private_file else ()),
            *(i for i in self._read_only_shared if self.items[i] in read_only_shared),
        ]
        chosen.sort()
        return from_ranges(self.starts[chosen], self.ends[chosen]) if chosen else empty()

    # Asked in every round, and a process may have 65,530 mappings: which of them, by number.

    @cached_property
    def paths(self) -> frozenset[str]:
        """All names there are; of anonymous memory the empty one."""
        return frozenset(m.path for m in self.items)

    @cached_property
    def _private_file(self) -> list[int]:
        return [i for i, m in enumerate(self.items) if m.mapping_class == FILE_PRIVATE]

    @cached_property
    def class_ranges(self) -> tuple[tuple[U64, U64], ...]:
        """For each of CLASSES its ranges of page numbers, (starts, ends); neighbours are joined."""
        codes = np.array([CLASSES.index(m.mapping_class) for m in self.items], np.int64)
        found = []
        for code in range(len(CLASSES)):
            chosen = codes == code
            starts, ends = self.starts[chosen], self.ends[chosen]
            apart = starts[1:] != ends[:-1]
            one = np.ones(min(len(starts), 1), np.bool_)
            found.append((starts[np.append(one, apart)], ends[np.append(apart, one)]))
        return tuple(found)

    @cached_property
    def _read_only_shared(self) -> list[int]:
        return [i for i, m in enumerate(self.items) if m.perms[3] == "s" and m.perms[1] != "w"]


def appeared(before: Mappings, now: Mappings) -> Mappings:
    """What is mapped now and was not before, or as something else: of a mapping that grew, what it
    grew by."""
    found = []
    for mapping in dict.fromkeys(now.items).keys() - dict.fromkeys(before.items).keys():
        at = mapping.start
        first = int(np.searchsorted(before.ends, np.uint64(at >> PAGE_SHIFT), side="right"))
        for old in before.items[first:]:
            if old.start >= mapping.end:
                break
            if (old.perms, old.path) == (mapping.perms, mapping.path):
                if old.start > at:
                    found.append(mapping._replace(start=at, end=old.start))
                at = max(at, old.end)
        if at < mapping.end:
            found.append(mapping._replace(start=at))
    return Mappings.of(tuple(sorted(found, key=lambda m: m.start)))


def parse(text: str) -> tuple[Mapping, ...]:
    """The lines of a maps file, without the kernel's own special mappings."""
    # The kernel escapes newlines in names and nothing else, so splitlines() would cut at others.
    found = (parse_line(line) for line in text.split("\n") if line)
    return tuple(m for m in found if m is not None)


def parse_line(line: str) -> Mapping | None:
    """One line of a maps file; None for a special mapping of the kernel's own."""
    bounds, perms, _offset, _device, _inode, *rest = line.split(None, 5)
    path = rest[0] if rest else ""
    if path in _SPECIAL:
        return None
    start, _, end = bounds.partition("-")
    return Mapping(int(start, 16), int(end, 16), perms, path)


def maps_text(fd: int) -> bytes:
    """All of an open maps file; empty when its memory is gone."""
    parts = []
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        while part := os.read(fd, 1 << 20):
            parts.append(part)
    except ProcessLookupError:
        return b""
    return b"".join(parts)


def maps_there(fd: int) -> bool:
    """Whether the memory of an open maps file is still there."""
    try:
        return bool(os.pread(fd, 1, 0))
    except ProcessLookupError:
        return False


class MapsFile:
    """An open /proc/PID/maps that parses only what changed since it was last read."""

    def __init__(self, pid: int) -> None:
        self._fd = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
        self._text = b""
        self._lines: dict[bytes, Mapping | None] = {}
        self._parsed = Mappings.of(())

    def read(self) -> Mappings | None:
        """The mappings now; None when this memory is gone."""
        # A list that changes while it is read in pieces can repeat a mapping or show it grown:
        # the kernel goes on after the last address it gave, so none is left out.
        text = maps_text(self._fd)
        if not text:
            return None
        if text != self._text:
            self._parsed = self._parse(text)
            self._text = text
        return self._parsed

    def _parse(self, text: bytes) -> Mappings:
        """Lines that were there before are not taken apart again: there may be 65,530."""
        old, lines = self._lines, text.split(b"\n")
        known = dict.fromkeys(lines)
        known.pop(b"", None)  # after the last line's end
        for line in known:
            if line in old:
                known[line] = old[line]
            else:
                known[line] = parse_line(line.decode(errors="surrogateescape"))
        self._lines = known
        return _without_overlaps(Mappings.of(tuple(m for m in known.values() if m is not None)))

    def there(self) -> bool:
        """Whether this memory is still there."""
        return maps_there(self._fd)

    def close(self) -> None:
        """Lets go of the process's memory."""
        os.close(self._fd)


def _without_overlaps(mappings: Mappings) -> Mappings:
    """A mapping that grew or merged between two reads may start before the end of the last."""
    if bool((mappings.ends[:-1] <= mappings.starts[1:]).all()):
        return mappings
    kept: list[Mapping] = []
    for m in sorted(mappings.items, key=lambda m: m.start):
        start = max(m.start, kept[-1].end) if kept else m.start
        if m.end > start:
            kept.append(Mapping(start, m.end, m.perms, m.path))
    return Mappings.of(tuple(kept))
