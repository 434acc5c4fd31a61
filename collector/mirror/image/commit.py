"""From an image to a mirror: core files with all mappings' contents, then mirror.json, then it is one."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from redirty.collector.errors import RedirtyError, why
from redirty.collector.files import write_json
from redirty.collector.linux.process_memory import PAGE
from redirty.collector.mirror.image import elf_core
from redirty.collector.mirror.image.image import FILE, SPACE, Image
from redirty.collector.mirror.image.page_store import MOST_PAGE, WINDOW_SHIFT, PageStore, StoreError
from redirty.collector.pageset import PAGE_SHIFT, U64, runs_of

_COPY = 8 << 20
_MOST_ADDRESS = 1 << 63
# Memory that was never written is a hole in the core file, as far as there is room; beyond that the
# core says how large it is, and no more.
_WINDOWS_WITH_HOLES = 4096


@dataclass(frozen=True)
class PlacedMapping:
    """A mapping of a process. first, end: page numbers. source: of the file behind it, None without
    one; offset: its first page there."""

    first: int
    end: int
    perms: str
    path: str
    source: int | None = None
    offset: int = 0

    def __post_init__(self) -> None:
        if (
            not 0 <= self.first < self.end <= _MOST_ADDRESS >> PAGE_SHIFT
            or not 0 <= self.offset < MOST_PAGE
            or len(self.perms) != 4
        ):
            raise ValueError("a mapping that cannot be")

    def as_json(self) -> list[Any]:
        """See from_json."""
        return [self.first, self.end, self.perms, self.path, self.source, self.offset]

    @classmethod
    def from_json(cls, fields: list[Any]) -> PlacedMapping:
        """Errors: ValueError, TypeError."""
        first, end, perms, path, source, offset = fields
        behind = None if source is None else int(source)
        return cls(int(first), int(end), str(perms), str(path), behind, int(offset))


@dataclass(frozen=True)
class PlacedProcess:
    """A process of the mirror. source: of its own pages. zero: runs of its own pages that are zero where
    a file's would be seen else."""

    pid: int
    source: int
    mappings: tuple[PlacedMapping, ...]
    notes: bytes
    zero: tuple[tuple[int, int], ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """See from_json; the notes go apart."""
        return {
            "pid": self.pid,
            "source": self.source,
            "zero": [list(run) for run in self.zero],
            "mappings": [m.as_json() for m in self.mappings],
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any], notes: bytes) -> PlacedProcess:
        """Errors: ValueError, TypeError, KeyError."""
        mappings = tuple(map(PlacedMapping.from_json, fields["mappings"]))
        if any(a.end > b.first for a, b in itertools.pairwise(mappings)):
            raise ValueError("mappings that overlap")
        zero = tuple((int(first), int(length)) for first, length in fields["zero"])
        if any(first < 0 or length <= 0 or first + length > MOST_PAGE for first, length in zero):
            raise ValueError("pages that cannot be")
        pid = int(fields["pid"])
        if not 0 < pid < 1 << 31:
            raise ValueError("a process that cannot be")
        return cls(pid, int(fields["source"]), mappings, notes, zero)


def commit(
    image: Image, processes: Sequence[PlacedProcess], machine: int, information: dict[str, Any]
) -> None:
    """Makes the image a mirror. information: what mirror.json says beside the state.

    Errors: RedirtyError, StoreError; then it is none.
    """
    try:
        _check(image, processes)
        image.journal.end()
        names = []
        for index, process in enumerate(processes):
            name = "memory.core" if index == 0 else f"memory.{process.pid}.core"
            _finish_core(image, process, machine)
            os.fsync(image.stores[process.source].fd)
            image.path_of(process.source).rename(image.directory / name)
            names.append(name)
        write_json(
            image.directory / "mirror.json", {"state": "committed", "cores": names, **information}
        )
        _sync(image)
    except OSError as e:
        raise RedirtyError(f"cannot write the mirror in {image.directory}: {why(e)}") from None
    image.committed = True
    files = [number for number, kind in image.kinds.items() if kind == FILE]
    gone = [number for number in image.kinds if number not in files]
    image.close()
    image.journal.remove()
    for number in files + gone:  # those of processes that ended before, too
        with contextlib.suppress(OSError):
            image.path_of(number).unlink()


def _check(image: Image, processes: Sequence[PlacedProcess]) -> None:
    """Errors: StoreError for what no sender that is right asks for."""
    count = len(processes)
    if not count or len({p.source for p in processes}) != count:
        raise StoreError("processes that share their own memory")
    if len({p.pid for p in processes}) != count:
        raise StoreError("two processes of one number")
    for process in processes:
        if image.kinds.get(process.source) != SPACE:
            raise StoreError("a process whose memory never came")
        behind = {m.source for m in process.mappings} - {None}
        if any(image.kinds.get(number or 0) != FILE for number in behind):
            raise StoreError("a mapping whose file never came")


def _sync(image: Image) -> None:
    fd = os.open(image.directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _finish_core(image: Image, process: PlacedProcess, machine: int) -> None:
    store = image.stores[process.source]
    zero = np.array(sorted(process.zero), np.uint64).reshape(-1, 2)
    for mapping in process.mappings:
        if mapping.source is not None:
            _copy_in(image, process.source, mapping, zero)
    segments = [s for m in process.mappings for s in _segments(image, process.source, m)]
    try:
        head = elf_core.head_of(segments, process.notes, machine)
    except ValueError as e:
        raise StoreError(str(e)) from None
    at = 0
    while at < len(head):
        at += os.pwrite(store.fd, head[at:], at)
    end = max((s.offset + s.end - s.start for s in segments if s.offset is not None), default=0)
    if os.fstat(store.fd).st_size < end:
        os.ftruncate(store.fd, end)


def _copy_in(image: Image, number: int, mapping: PlacedMapping, zero: U64) -> None:
    """What a mapping shows of a file, where the process has no page of its own."""
    assert mapping.source is not None
    store, behind = image.stores[number], image.stores[mapping.source]
    last = mapping.offset + mapping.end - mapping.first
    first_window, last_window = mapping.offset >> WINDOW_SHIFT, (last - 1) >> WINDOW_SHIFT
    for window in sorted(w for w in behind.filled if first_window <= w <= last_window):
        pages = behind.filled_pages(window)
        pages = pages[(pages >= np.uint64(mapping.offset)) & (pages < np.uint64(last))]
        places = pages - np.uint64(mapping.offset) + np.uint64(mapping.first)
        for w in np.unique(places >> np.uint64(WINDOW_SHIFT)).tolist():
            places = places[~np.isin(places, store.filled_pages(w))]
        places = places[~_inside(places, zero)]
        firsts, lengths = runs_of(places)
        image.make_room(number, store, firsts, lengths)
        for place, length in store.pieces(firsts, lengths):
            page = place - mapping.first + mapping.offset
            at = np.array([page], np.uint64), np.array([length], np.uint64)
            for a, n in behind.pieces(*at):
                to = place + a - page
                _copy_range(behind.fd, behind.offset(a), store.fd, store.offset(to), n * PAGE)
                store.mark(to, n, filled=True)


def _inside(pages: U64, runs: U64) -> npt.NDArray[np.bool_]:
    """Which pages lie in runs, (n, 2) of first page and length, ascending."""
    if len(runs) == 0:
        return np.zeros(len(pages), np.bool_)
    at = np.searchsorted(runs[:, 0], pages, side="right").astype(np.int64) - 1
    ends = runs[:, 0] + runs[:, 1]
    return (at >= 0) & (pages < ends[np.maximum(at, 0)])


def _copy_range(source: int, at: int, target: int, to: int, size: int) -> None:
    while size:
        try:
            done = os.copy_file_range(source, target, min(size, _COPY), at, to)
        except OSError:
            data = os.pread(source, min(size, _COPY), at)
            done = os.pwrite(target, data, to)
        if done == 0:
            return  # a hole up to the file's end
        at, to, size = at + done, to + done, size - done


def _segments(image: Image, number: int, mapping: PlacedMapping) -> list[elf_core.Segment]:
    """A mapping, cut where its windows do not lie one after the other in the file."""
    store: PageStore = image.stores[number]
    first_window, last_window = mapping.first >> WINDOW_SHIFT, (mapping.end - 1) >> WINDOW_SHIFT
    if mapping.perms[0] == "r" and last_window - first_window < _WINDOWS_WITH_HOLES:
        for window in range(first_window, last_window + 1):
            if len(store.windows) >= _WINDOWS_WITH_HOLES:
                break
            if window not in store.windows:
                store.open_window(window)
    # The others are not cut at each window: a mapping may be reserved for 100 TiB.
    known = [w for w in store.windows if first_window <= w <= last_window]
    cuts = {mapping.first, mapping.end}
    for w in known:
        cuts |= {max(mapping.first, w << WINDOW_SHIFT), min(mapping.end, (w + 1) << WINDOW_SHIFT)}
    bounds = sorted(cuts)
    found: list[elf_core.Segment] = []
    for a, b in itertools.pairwise(bounds):
        offset = store.offset(a) if a >> WINDOW_SHIFT in store.windows else None
        start, end = a << PAGE_SHIFT, b << PAGE_SHIFT
        before = found[-1] if found else None
        if before and (
            (before.offset is None and offset is None)
            or (before.offset is not None and before.offset + before.end - before.start == offset)
        ):
            found[-1] = before._replace(end=end)
        else:
            found.append(elf_core.Segment(start, end, mapping.perms, offset))
    return found
