"""Addresses for a relocation: that of the stub, and the transit addresses of memory.

Pure functions. Run by the injector with the bare library.
"""

from .procfs import Mapping

PAGE_SIZE = 4096  # as in pageset.py, which needs more than the bare library
_REGION = 1 << 21
_LOWEST, _HIGHEST = 1 << 21, (1 << 47) - (1 << 21)


def clipped(mappings: "list[Mapping]", runs: "list[tuple[int, int]]") -> "list[Mapping]":
    """Return the parts of mappings that lie in ranges of addresses [start, end)."""
    return [
        (max(start, first), min(end, last), perms)
        for first, last in runs
        for start, end, perms in mappings
        if start < last and end > first
    ]


def free_place(mappings: "list[Mapping]", size: int) -> int:
    """Return a multiple of 2 MiB at which a number of bytes is free, far from all mappings; 0: none."""
    place, largest = 0, size
    at = _LOWEST
    for start, end, _ in [*mappings, (_HIGHEST, _HIGHEST, "")]:
        if min(start, _HIGHEST) - at > largest + 2 * _REGION:
            largest = start - at
            place = at + (largest - size) // 2
        at = max(at, end)
    return (place + _REGION - 1) & ~(_REGION - 1)


def layout(
    runs: "list[tuple[int, int]]", segments: "list[Mapping]", place: int
) -> "list[tuple[int, int, int]]":
    """Return (address, transit address, bytes) of each segment.

    Transit addresses are a page off the alignment that would let the kernel hand over whole
    tables.
    """
    found = []
    for first, last in runs:
        for start, end, _ in segments:
            if first <= start < last:
                found.append((start, place + (start - first) + PAGE_SIZE, end - start))
        place += last - first + _REGION
    return found
