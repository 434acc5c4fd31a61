"""Lists what a mirror lacks: devices, pages that cannot be read, and what lies behind the end of a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from redirty.collector.mirror.sources.files import Files
from redirty.collector.mirror.sources.spaces import SpaceSource
from redirty.collector.mirror.sources.vmas import Vma
from redirty.collector.pageset import PAGE_SHIFT, PageSet, from_ranges, page_runs, within
from redirty.collector.units import plural

DEVICE = "device"
UNREADABLE = "cannot be read"
BEHIND_END = "behind the end of the file"

_MAX_RUNS = 16  # named one by one for each mapping; more are one entry


def unmirrored(spaces: Iterable[SpaceSource], files: Files) -> list[dict[str, Any]]:
    """Return the addresses whose contents the mirror lacks, for mirror.json.

    Each with the number of its pages and the reason: a device or a ring of the kernel; pages that cannot be read,
    of which the mirror has zeros; and what lies behind the end of a file, which the target cannot read either.
    """
    return [
        {
            "pid": space.pid,
            "start": f"{first << PAGE_SHIFT:#x}",
            "end": f"{end << PAGE_SHIFT:#x}",
            "path": vma.path,
            "pages": pages,
            "reason": reason,
        }
        for space in spaces
        for vma in space.vmas
        for first, end, pages, reason in _of_mapping(space, vma, files)
    ]


def _of_mapping(space: SpaceSource, vma: Vma, files: Files) -> Iterator[tuple[int, int, int, str]]:
    """Yield (first page, end, pages, reason) of what is missing of a mapping."""
    first, end = vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT
    unread = _part(space.unread, first, end)
    file = files.file_of(space, vma)
    if file is not None:
        at, last = vma.pages_of_file()
        shown = _runs(_part(file.unread, at, last))
        # A private copy of a page hides that of the file.
        hidden = space.have
        for a, b in shown:
            part = _part(_range(a - at + first, b - at + first) - hidden, first, end)
            unread = unread | part
        if at + end - first > max(file.end, at):
            behind = max(file.end, at) - at + first
            yield behind, end, end - behind, BEHIND_END
    elif vma not in space.direct_vmas and (vma.shared or files.is_device(space, vma)):
        yield first, end, end - first, DEVICE
    runs = _runs(unread)
    if len(runs) > _MAX_RUNS:
        runs = [(runs[0][0], runs[-1][1])]
    for a, b in runs:
        yield a, b, len(_part(unread, a, b)), UNREADABLE


def _range(first: int, end: int) -> PageSet:
    return from_ranges(np.array([first], np.uint64), np.array([end], np.uint64))


def _part(pages: PageSet, first: int, end: int) -> PageSet:
    return within(pages, np.array([first], np.uint64), np.array([end], np.uint64))


def _runs(pages: PageSet) -> list[tuple[int, int]]:
    starts, ends = page_runs(pages)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def unread_pages(missing: Iterable[Mapping[str, Any]]) -> int:
    """Return the number of pages that could not be read, from the entries of unmirrored()."""
    return sum(int(m["pages"]) for m in missing if m.get("reason") == UNREADABLE)


def summary(information: Mapping[str, Any]) -> list[str]:
    """Return phrases that say what a mirror lacks, from the contents of mirror.json; none if it has everything."""
    missing = information["unmirrored"]
    devices = sum(m.get("reason", DEVICE) == DEVICE for m in missing)
    pages, found = unread_pages(missing), []
    if devices:
        found.append(
            plural(devices, "device mapping is", "device mappings are")
            + " without contents in the mirror"
        )
    if pages:
        found.append(
            plural(pages, "page", "pages")
            + " could not be read and are zeros in the mirror: see unmirrored in mirror.json"
        )
    return found
