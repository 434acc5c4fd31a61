"""The mappings of a process: /proc/PID/maps as arrays, each mapping with its class.

The file is kept open: it belongs to the memory that the process had when it was opened, and
reads empty once that memory is gone, by exit or by exec. So it cannot be confused with memory of
a program that came after it under the same PID.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter, itemgetter
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
from redirty.collector.errors import RedirtyError, one_line, require_resources
from redirty.collector.linux import procfs
from redirty.collector.pageset import PAGE_SHIFT, U64, PageSet, count_in, within

T = TypeVar("T")

ANON_PRIVATE, ANON_SHARED = "anon_private", "anon_shared"
FILE_PRIVATE, FILE_SHARED = "file_private", "file_shared"
CLASSES = (ANON_PRIVATE, ANON_SHARED, FILE_PRIVATE, FILE_SHARED)

KERNEL_PATHS = ("[vsyscall]", "[vvar]", "[vvar_vclock]")
"""Mappings of the kernel's own pages, the same in every process."""
SPECIAL_PATHS = (*KERNEL_PATHS, "[vdso]")
"""Mappings provided by the kernel: never the program's data."""
SYSTEM_V_PATH = "/SYSV"
"""Start of the path of System V shared memory."""
ANON_HUGEPAGE_PATH = "/anon_hugepage"
"""Start of the path of anonymous hugetlb memory."""
# shared memory that no file system shows: MAP_SHARED|MAP_ANONYMOUS, memfd, System V
_ANON_SHARED = (
    "/dev/zero (deleted)",
    "/memfd:",
    SYSTEM_V_PATH,
    "[anon_shmem:",
    ANON_HUGEPAGE_PATH,
)


def mapping_class(perms: str, path: str) -> str:
    """Classify a mapping (one of CLASSES) by its permissions and path in maps."""
    shared = perms[3:4] == "s"
    if shared:
        return ANON_SHARED if path.startswith(_ANON_SHARED) else FILE_SHARED
    anonymous = not path or path.startswith(("[", ANON_HUGEPAGE_PATH))
    return ANON_PRIVATE if anonymous else FILE_PRIVATE


def shows_file(perms: str, path: str, inode: int) -> bool:
    """Return whether the pages of a mapping show a file or shared memory, unless they are private copies."""
    return inode != 0 and (perms[3:4] == "s" or not path.startswith(("[", ANON_HUGEPAGE_PATH)))


class MapsError(RedirtyError):
    """A list of mappings in a format that this program does not know."""

    def __init__(self, line: bytes) -> None:
        shown = one_line(line[:200].decode(errors="replace"))
        super().__init__(f"the kernel's list of mappings has an unknown line: {shown}")


class MapsLine(NamedTuple):
    """The fields of one line of maps or smaps, as they are written there.

    Attributes:
        bounds: "start-end", hexadecimal addresses, end exclusive: see bounds_of().
        perms: Four letters: r, w, x, and p (private) or s (shared).
        offset: Offset in the file in bytes, hexadecimal.
        device: "major:minor".
        inode: Inode number, 0 if there is no file.
        path: What is mapped; empty for anonymous memory.
    """

    bounds: bytes
    perms: bytes
    offset: bytes
    device: bytes
    inode: bytes
    path: bytes


def split_line(line: bytes) -> MapsLine:
    """Split a line of maps, or the first line of a mapping in smaps, without its newline."""
    # The kernel escapes newlines in paths and nothing else: a path may hold any other separator.
    bounds, perms, offset, device, inode, *path = line.split(None, 5)
    return MapsLine(bounds, perms, offset, device, inode, path[0] if path else b"")


def bounds_of(text: bytes) -> tuple[int, int]:
    """Parse "start-end" into addresses."""
    start, _, end = text.partition(b"-")
    return int(start, 16), int(end, 16)


def decode_path(path: bytes) -> str:
    """Decode a path so that every byte of it can be restored (surrogateescape)."""
    return path.decode(errors="surrogateescape")


class Mapping(NamedTuple):
    """A mapping.

    Attributes:
        start, end: Addresses, end exclusive.
        perms: Four letters, as in MapsLine.
        path: What is mapped; empty for anonymous memory.
        offset: Of `start` in the file, in bytes.
        device, inode: Of the file, as maps shows them, which does not identify it: see shared_mappings.
    """

    # a tuple: a process may have 65,530 of them, and tuples are quick to make, compare and hash

    start: int
    end: int
    perms: str
    path: str
    offset: int = 0
    device: str = ""
    inode: int = 0

    @property
    def mapping_class(self) -> str:
        """Class of the mapping, one of CLASSES."""
        return mapping_class(self.perms, self.path)

    @property
    def shared(self) -> bool:
        """Whether writes go to the file."""
        return self.perms[3:4] == "s"

    @property
    def has_file(self) -> bool:
        """Whether its pages show a file or shared memory, unless they are private copies."""
        return shows_file(self.perms, self.path, self.inode)

    def starting_at(self, start: int) -> Mapping:
        """Return the part of the mapping from an address on."""
        offset = self.offset + start - self.start if self.inode else self.offset
        return self._replace(start=start, offset=offset)


@dataclass(frozen=True, eq=False)
class Mappings:
    """All mappings of a process that can hold its data, ascending by address.

    Attributes:
        items: The mappings.
        starts: (n,) first page numbers.
        ends: (n,) page numbers, exclusive.
    """

    items: tuple[Mapping, ...]
    starts: U64 = field(repr=False)
    ends: U64 = field(repr=False)

    @classmethod
    def of(cls, items: tuple[Mapping, ...]) -> Self:
        """Build from mappings in ascending order."""
        shift = np.uint64(PAGE_SHIFT)
        starts = np.fromiter(map(itemgetter(0), items), np.uint64, len(items))
        ends = np.fromiter(map(itemgetter(1), items), np.uint64, len(items))
        return cls(items, starts >> shift, ends >> shift)

    def pages_of(
        self,
        pages: PageSet,
        *,
        private_file: bool = False,
        read_only_shared: Collection[Mapping] = (),
    ) -> PageSet:
        """Return those of some pages that lie in some mappings.

        Args:
            pages: The pages. (All pages of a mapping may be more than fit in memory.)
            private_file: Include all private mappings of files.
            read_only_shared: Include those of these mappings that are shared and read-only.
        """
        chosen = [
            *(self._private_file if private_file else ()),
            *(i for i in self._read_only_shared if self.items[i] in read_only_shared),
        ]
        chosen.sort()
        return within(pages, self.starts[chosen], self.ends[chosen])

    # Used in every round, and a process may have 65,530 mappings: computed once for each list.

    @cached_property
    def paths(self) -> frozenset[str]:
        """All paths; anonymous memory has the empty one."""
        return frozenset(m.path for m in self.items)

    @cached_property
    def of_files(self) -> tuple[Mapping, ...]:
        """The mappings that show a file or shared memory."""
        return tuple(m for m in self.items if m.inode and m.has_file)

    @cached_property
    def _private_file(self) -> list[int]:
        return [i for i, m in enumerate(self.items) if m.mapping_class == FILE_PRIVATE]

    @cached_property
    def class_ranges(self) -> tuple[tuple[U64, U64], ...]:
        """Ranges of page numbers (starts, ends) of each of CLASSES; adjacent ones are joined."""
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
    def _ranges_by_class(self) -> tuple[U64, U64, list[int]]:
        """Ranges of all classes, and where those of each begin."""
        starts, ends = zip(*self.class_ranges, strict=True)
        firsts = np.cumsum([0, *map(len, starts)]).tolist()
        return np.concatenate(starts), np.concatenate(ends), firsts

    def count_by_class(self, pages: PageSet) -> npt.NDArray[np.int64]:
        """Return the number of pages in mappings of each of CLASSES."""
        starts, ends, firsts = self._ranges_by_class
        before = np.append(0, np.cumsum(count_in(pages, starts, ends)))
        found: npt.NDArray[np.int64] = np.diff(before[firsts])
        return found

    @cached_property
    def _read_only_shared(self) -> list[int]:
        return [i for i, m in enumerate(self.items) if m.perms[3] == "s" and m.perms[1] != "w"]


def appeared(before: Mappings, now: Mappings) -> Mappings:
    """Return the mappings that are new, or differ from before.

    Of a mapping that grew, return the part by which it grew.
    """
    found = []
    for mapping in dict.fromkeys(now.items).keys() - dict.fromkeys(before.items).keys():
        at = mapping.start
        first = int(np.searchsorted(before.ends, np.uint64(at >> PAGE_SHIFT), side="right"))
        for old in before.items[first:]:
            if old.start >= mapping.end:
                break
            if (old.perms, old.path) == (mapping.perms, mapping.path):
                if old.start > at:
                    found.append(mapping.starting_at(at)._replace(end=old.start))
                at = max(at, old.end)
        if at < mapping.end:
            found.append(mapping.starting_at(at))
    return Mappings.of(tuple(sorted(found, key=lambda m: m.start)))


def parse(text: bytes) -> tuple[Mapping, ...]:
    """Parse a maps file, leaving out the kernel's special mappings. Raises: MapsError."""
    # The kernel escapes newlines in paths and nothing else, so splitlines() would cut at others.
    found = (parsed(line, parse_line) for line in text.split(b"\n") if line)
    return tuple(m for m in found if m is not None)


def parse_line(line: bytes) -> Mapping | None:
    """Parse one line of a maps file; return None for a special mapping of the kernel."""
    fields = split_line(line)
    path = decode_path(fields.path)
    if path in SPECIAL_PATHS:
        return None
    start, end = bounds_of(fields.bounds)
    inode = int(fields.inode)
    if not inode:
        return Mapping(start, end, fields.perms.decode(), path)
    place = int(fields.offset, 16), fields.device.decode(), inode
    return Mapping(start, end, fields.perms.decode(), path, *place)


def parsed(line: bytes, parse: Callable[[bytes], T]) -> T:
    """Parse a line by a function. Raises: MapsError where that raises ValueError."""
    try:
        return parse(line)
    except ValueError:
        raise MapsError(line) from None


class _Bounded(Protocol):
    """A mapping of some kind."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    def starting_at(self, start: int) -> Self: ...


Item = TypeVar("Item", bound=_Bounded)


def without_overlaps(items: Iterable[Item]) -> tuple[Item, ...]:
    """Return mappings ascending by address, each cut off where the one before ends.

    The list may change while it is read in pieces. Then a mapping that grew or merged between two
    reads may start before the end of the one read before.
    """
    kept: list[Item] = []
    for item in sorted(items, key=attrgetter("start")):
        start = max(item.start, kept[-1].end) if kept else item.start
        if item.end > start:
            kept.append(item if item.start == start else item.starting_at(start))
    return tuple(kept)


class IncrementalMaps(Generic[Item]):
    """An open /proc/PID/maps of which only lines that changed since the last reading are parsed.

    Raises:
        OSError: The process is gone, or may not be examined.
    """

    def __init__(self, pid: int, parse_line: Callable[[bytes], Item | None]) -> None:
        self._pid, self._tid = pid, procfs.living_thread(pid)
        self._fd = self._open()
        self._parse_line = parse_line
        self._text = b""
        self._lines: dict[bytes, Item | None] = {}

    def changed(self) -> bool:
        """Read the file; return whether it differs from the last reading. Raises: MapsError."""
        # A list that changes while it is read in pieces can repeat a mapping or show it grown:
        # the kernel continues after the last address it gave, so none is left out.
        text = self._read()
        if text == self._text:
            return False
        # Lines that were there before are not parsed again: there may be 65,530.
        old, parse_line = self._lines, self._parse_line
        known = dict.fromkeys(text.split(b"\n"))
        known.pop(b"", None)  # after the last line's end
        for line in known:
            known[line] = old[line] if line in old else parsed(line, parse_line)
        self._lines, self._text = known, text
        return True

    def _open(self) -> int:
        return os.open(f"/proc/{self._tid}/maps", os.O_RDONLY | os.O_CLOEXEC)

    def _other_thread(self) -> bool:
        """Open the file of another thread, as this one has ended; return whether there is one in this memory."""
        tid = procfs.living_thread(self._pid)
        # A first thread that had ended and lives again is that of another program, after an exec.
        if tid in (self._tid, self._pid):
            return False
        self._tid = tid
        try:
            new = self._open()
        except OSError as e:
            require_resources(e, f"cannot read the mappings of process {self._pid}")
            return False
        os.dup2(new, self._fd, inheritable=False)
        os.close(new)
        return True

    def _read(self) -> bytes:
        """Return the whole file; empty once the memory is gone."""
        parts = []
        os.lseek(self._fd, 0, os.SEEK_SET)
        try:
            while part := os.read(self._fd, 1 << 20):
                parts.append(part)
        except ProcessLookupError:
            return self._read() if self._other_thread() else b""
        return b"".join(parts)

    @property
    def gone(self) -> bool:
        """True if the last reading found no memory."""
        return not self._text

    def parsed(self) -> Iterable[Item]:
        """Yield the mappings of the last reading in file order; they may overlap."""
        return (item for item in self._lines.values() if item is not None)

    def there(self) -> bool:
        """Return whether the memory still exists."""
        try:
            return bool(os.pread(self._fd, 1, 0))
        except ProcessLookupError:
            return self._other_thread() and self.there()

    def close(self) -> None:
        """Close the file, and with it the reference to the process's memory."""
        os.close(self._fd)


class MapsFile(IncrementalMaps[Mapping]):
    """The mappings of a process that can hold its data."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid, parse_line)
        self._parsed = Mappings.of(())

    def read(self) -> Mappings | None:
        """Return the current mappings, the same object while they do not change; None once gone."""
        if self.changed() and not self.gone:
            self._parsed = _ascending(Mappings.of(tuple(self.parsed())))
        return None if self.gone else self._parsed


def _ascending(mappings: Mappings) -> Mappings:
    if bool((mappings.ends[:-1] <= mappings.starts[1:]).all()):
        return mappings
    return Mappings.of(without_overlaps(mappings.items))
