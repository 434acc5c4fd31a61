"""Commits an image: core files with the contents of all mappings, then mirror.json, which makes it a mirror."""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from redirty.collector.errors import RedirtyError, why
from redirty.collector.files import write_json
from redirty.collector.mirror.image import elf_core
from redirty.collector.mirror.image.image import FILE, SPACE, Image
from redirty.collector.mirror.image.page_store import (
    MAX_WINDOWS,
    WINDOW_SHIFT,
    PageStore,
    StoreError,
)
from redirty.collector.mirror.image.process_image import PlacedMapping, PlacedProcess
from redirty.collector.pageset import PAGE_SHIFT, PAGE_SIZE, U64, runs_of

_COPY_BYTES = 8 << 20
# Memory that was never written is a hole in the core file as long as it has fewer windows than this; beyond
# that the core file states the size only.
_WINDOWS_WITH_HOLES = 4096
# Each mapping of a file costs a visit to each window of the file that it shows. They need windows of the process,
# too, which are limited, unless pages of its own hide the file's.
_VISITS = 4 * MAX_WINDOWS


def commit(
    image: Image, processes: Sequence[PlacedProcess], machine: int, information: dict[str, Any]
) -> None:
    """Commit an image.

    Args:
        image: the image, which has all pages.
        processes: the processes of the mirror, with their mappings and notes.
        machine: the ELF machine number.
        information: the contents of mirror.json but for its state and the names of the core files.

    Raises:
        RedirtyError: the files cannot be written: there is no mirror.
        StoreError: the request is invalid: there is no mirror.
    """
    try:
        _check(image, processes)
        image.folder.require_there()
        image.journal.end()
        names = []
        for index, process in enumerate(processes):
            name = "memory.core" if index == 0 else f"memory.{process.pid}.core"
            _finish_core(image, process, machine)
            os.fsync(image.stores[process.source].fd)
            image.folder.rename(image.name_of(process.source), name)
            names.append(name)
        write_json(
            image.folder, "mirror.json", {"state": "committed", "cores": names, **information}
        )
        image.folder.sync()
    except OSError as e:
        raise RedirtyError(f"cannot write the mirror in {image.directory}: {why(e)}") from None
    image.committed = True
    leftover = list(image.kinds)  # files, and processes that ended before the commit
    image.close()
    image.journal.remove()
    image.folder.remove(*map(image.name_of, leftover))
    image.folder.give_to_caller()


def _check(image: Image, processes: Sequence[PlacedProcess]) -> None:
    """Check the request. Raises: StoreError for one that no correct sender makes."""
    count = len(processes)
    if not count or len({p.source for p in processes}) != count:
        raise StoreError("no process, or two processes claim the same memory source")
    if len({p.pid for p in processes}) != count:
        raise StoreError("two processes have the same PID")
    for process in processes:
        if image.kinds.get(process.source) != SPACE:
            raise StoreError("process without a memory source")
        if not elf_core.has_room(len(process.mappings), process.notes):
            raise StoreError(elf_core.NO_ROOM)
        files = {m.source for m in process.mappings} - {None}
        if any(image.kinds.get(number or 0) != FILE for number in files):
            raise StoreError("mapping without a file source")
    _check_visits(image, processes)


def _check_visits(image: Image, processes: Sequence[PlacedProcess]) -> None:
    """Check how much work it is to copy the files' contents. Raises: StoreError for too much."""
    filled = {n: sorted(s.filled) for n, s in image.stores.items() if image.kinds[n] == FILE}
    visits = mappings = 0
    for process in processes:
        for mapping in process.mappings:
            if mapping.source is not None:
                mappings += 1
                visits += len(_windows_shown(filled[mapping.source], mapping))
                if visits > _VISITS + 2 * mappings:
                    raise StoreError("too many mappings of large files")


def _windows_shown(filled: list[int], mapping: PlacedMapping) -> list[int]:
    """Return the windows of a file, of those given (ascending), that a mapping shows."""
    last = mapping.offset + mapping.end - mapping.first - 1
    a = bisect.bisect_left(filled, mapping.offset >> WINDOW_SHIFT)
    return filled[a : bisect.bisect_right(filled, last >> WINDOW_SHIFT)]


def _finish_core(image: Image, process: PlacedProcess, machine: int) -> None:
    store = image.stores[process.source]
    zero = np.array(sorted(process.zero), np.uint64).reshape(-1, 2)
    filled: dict[int, list[int]] = {}
    for mapping in process.mappings:
        if mapping.source is not None:
            if mapping.source not in filled:
                filled[mapping.source] = sorted(image.stores[mapping.source].filled)
            windows = _windows_shown(filled[mapping.source], mapping)
            _copy_file_pages(image, process.source, mapping, zero, windows)
    known = sorted(store.windows)
    segments = [s for m in process.mappings for s in _segments(store, m, known)]
    try:
        header = elf_core.make_header(segments, process.notes, machine)
    except ValueError as e:
        raise StoreError(str(e)) from None
    at = 0
    while at < len(header):
        at += os.pwrite(store.fd, header[at:], at)
    end = max((s.offset + s.end - s.start for s in segments if s.offset is not None), default=0)
    if os.fstat(store.fd).st_size < end:
        os.ftruncate(store.fd, end)


def _copy_file_pages(
    image: Image, number: int, mapping: PlacedMapping, zero: U64, windows: Sequence[int]
) -> None:
    """Copy the pages of a mapped file to the places where the process has no page of its own.

    Args:
        image: the image.
        number: the process's source.
        mapping: a mapping of a file.
        zero: (n, 2) runs of the process's own pages that are zero.
        windows: the windows of the file that the mapping shows, and that have contents.
    """
    assert mapping.source is not None
    store, file = image.stores[number], image.stores[mapping.source]
    last = mapping.offset + mapping.end - mapping.first
    for window in windows:
        start = window << WINDOW_SHIFT
        pages = file.filled_pages(window, mapping.offset - start, last - start)
        pages = pages[(pages >= np.uint64(mapping.offset)) & (pages < np.uint64(last))]
        places = pages - np.uint64(mapping.offset) + np.uint64(mapping.first)
        if len(places) == 0:
            continue
        first, end = int(places[0]), int(places[-1]) + 1
        for w in np.unique(places >> np.uint64(WINDOW_SHIFT)).tolist():
            at = w << WINDOW_SHIFT
            places = places[~np.isin(places, store.filled_pages(w, first - at, end - at))]
        places = places[~_inside(places, zero)]
        firsts, lengths = runs_of(places)
        image.open_windows(number, store, firsts, lengths)
        for place, length in store.pieces(firsts, lengths):
            page = place - mapping.first + mapping.offset
            run = np.array([page], np.uint64), np.array([length], np.uint64)
            for a, n in file.pieces(*run):
                to = place + a - page
                _copy_range(file.fd, file.offset(a), store.fd, store.offset(to), n * PAGE_SIZE)
                store.mark(to, n, filled=True)


def _inside(pages: U64, runs: U64) -> npt.NDArray[np.bool_]:
    """Return (n,) which pages lie in runs, (m, 2) of first page and length, ascending."""
    if len(runs) == 0:
        return np.zeros(len(pages), np.bool_)
    at = np.searchsorted(runs[:, 0], pages, side="right").astype(np.int64) - 1
    ends = runs[:, 0] + runs[:, 1]
    return (at >= 0) & (pages < ends[np.maximum(at, 0)])


def _copy_range(source: int, at: int, target: int, to: int, size: int) -> None:
    while size:
        try:
            done = os.copy_file_range(source, target, min(size, _COPY_BYTES), at, to)
        except OSError:
            data = os.pread(source, min(size, _COPY_BYTES), at)
            done = os.pwrite(target, data, to)
        if done == 0:
            return  # a hole up to the end of the file
        at, to, size = at + done, to + done, size - done


def _segments(
    store: PageStore, mapping: PlacedMapping, windows: list[int]
) -> list[elf_core.Segment]:
    """Return the segments of a mapping, split where its windows are not consecutive in the file.

    Args:
        store: the process's pages.
        mapping: the mapping.
        windows: the windows of the store, ascending; extended by those opened here.
    """
    first_window, last_window = mapping.first >> WINDOW_SHIFT, (mapping.end - 1) >> WINDOW_SHIFT
    if mapping.perms[0] == "r" and last_window - first_window < _WINDOWS_WITH_HOLES:
        for window in range(first_window, last_window + 1):
            if len(store.windows) >= _WINDOWS_WITH_HOLES:
                break
            if window not in store.windows:
                store.open_window(window)
                bisect.insort(windows, window)
    # Other mappings are not split at each window: a process may reserve 100 TiB.
    at = bisect.bisect_left(windows, first_window)
    known = windows[at : bisect.bisect_right(windows, last_window)]
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
