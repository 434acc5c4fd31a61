"""Addresses for a relocation: what is mapped in a target, where it goes in between. Pure functions, run
by the injector with Python's bare library."""

_REGION = 1 << 21
_LOWEST, _HIGHEST = 1 << 21, (1 << 47) - (1 << 21)

Line = tuple[int, int, str]


def parse_maps(text: bytes) -> "list[Line]":
    """(start, end, permissions) of each line of a maps file."""
    found = []
    for line in text.split(b"\n"):
        if line:
            bounds, perms = line.split(b" ", 2)[:2]
            start, _, end = bounds.partition(b"-")
            found.append((int(start, 16), int(end, 16), perms.decode()))
    return found


def clipped(lines: "list[Line]", runs: "list[tuple[int, int]]") -> "list[Line]":
    """What of the mappings lies in ranges of addresses."""
    return [
        (max(start, first), min(end, last), perms)
        for first, last in runs
        for start, end, perms in lines
        if start < last and end > first
    ]


def free_place(lines: "list[Line]", size: int) -> int:
    """A multiple of 2 MiB at which so many bytes are free, far from everything. 0: none."""
    place, most = 0, size
    at = _LOWEST
    for start, end, _ in [*lines, (_HIGHEST, _HIGHEST, "")]:
        if min(start, _HIGHEST) - at > most + 2 * _REGION:
            most = start - at
            place = at + (most - size) // 2
        at = max(at, end)
    return (place + _REGION - 1) & ~(_REGION - 1)


def layout(
    runs: "list[tuple[int, int]]", segments: "list[Line]", place: int
) -> "list[tuple[int, int, int]]":
    """(address, where to in between, bytes) of each segment: a page off the alignment that would
    let the kernel hand whole tables over."""
    found = []
    for first, last in runs:
        for start, end, _ in segments:
            if first <= start < last:
                found.append((start, place + (start - first) + 4096, end - start))
        place += last - first + _REGION
    return found
