"""The mappings of a process: /proc/PID/maps as arrays, each with its class.

The file is kept open: it belongs to the memory that the process had when it was opened, and
reads empty once that memory is gone, by exit or by exec. So it can't be confused with memory of
a program that came after it under the same number.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Self

import numpy as np
from redirty.collector.bitmap import PAGE_SHIFT, U64, PageSet, empty, from_ranges

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


@dataclass(frozen=True)
class Mapping:
    """One mapping. start, end: addresses, end exclusive."""

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
        bounds = np.array([(m.start, m.end) for m in items], np.uint64).reshape(-1, 2)
        shift = np.uint64(PAGE_SHIFT)
        return cls(items, bounds[:, 0] >> shift, bounds[:, 1] >> shift)

    def pages_of(
        self, *, private_file: bool = False, read_only_shared: Collection[Mapping] = ()
    ) -> PageSet:
        """Pages of the mappings of a kind: private_file: all; read_only_shared: those of some."""
        chosen = [
            i
            for i, m in enumerate(self.items)
            if (private_file and m.mapping_class == FILE_PRIVATE)
            or (m.perms[3] == "s" and m.perms[1] != "w" and m in read_only_shared)
        ]
        return from_ranges(self.starts[chosen], self.ends[chosen]) if chosen else empty()


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
                    found.append(replace(mapping, start=at, end=old.start))
                at = max(at, old.end)
        if at < mapping.end:
            found.append(replace(mapping, start=at))
    return Mappings.of(tuple(sorted(found, key=lambda m: m.start)))


def parse(text: str) -> tuple[Mapping, ...]:
    """The lines of a maps file, without the kernel's own special mappings."""
    found = []
    # The kernel escapes newlines in names and nothing else, so splitlines() would cut at others.
    for line in text.split("\n"):
        if not line:
            continue
        bounds, perms, _offset, _device, _inode, *rest = line.split(None, 5)
        path = rest[0] if rest else ""
        if path in _SPECIAL:
            continue
        start, _, end = bounds.partition("-")
        found.append(Mapping(int(start, 16), int(end, 16), perms, path))
    return tuple(found)


class MapsFile:
    """An open /proc/PID/maps that parses only what changed since it was last read."""

    def __init__(self, pid: int) -> None:
        self._fd = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
        self._text = b""
        self._parsed = Mappings.of(())

    def read(self) -> Mappings | None:
        """The mappings now; None when this memory is gone."""
        # A list that changes while it is read in pieces can repeat a mapping or show it grown:
        # the kernel goes on after the last address it gave, so none is left out.
        parts = []
        os.lseek(self._fd, 0, os.SEEK_SET)
        try:
            while part := os.read(self._fd, 1 << 20):
                parts.append(part)
        except ProcessLookupError:
            return None
        text = b"".join(parts)
        if not text:
            return None
        if text != self._text:
            self._parsed = Mappings.of(
                _without_overlaps(parse(text.decode(errors="surrogateescape")))
            )
            self._text = text
        return self._parsed

    def close(self) -> None:
        """Lets go of the process's memory."""
        os.close(self._fd)


def _without_overlaps(items: tuple[Mapping, ...]) -> tuple[Mapping, ...]:
    """A mapping that grew or merged between two reads may start before the end of the last."""
    if all(a.end <= b.start for a, b in pairwise(items)):
        return items
    kept: list[Mapping] = []
    for m in sorted(items, key=lambda m: m.start):
        start = max(m.start, kept[-1].end) if kept else m.start
        if m.end > start:
            kept.append(Mapping(start, m.end, m.perms, m.path))
    return tuple(kept)
