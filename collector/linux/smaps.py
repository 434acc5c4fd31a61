"""What /proc/PID/smaps tells of mappings and /proc/PID/maps does not: their flags.

Reading it walks the page tables of all that is mapped, some milliseconds a GiB.
Source: Documentation/filesystems/proc.rst (VmFlags).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


def starts_with_flag(pid: int, flag: bytes) -> frozenset[int]:
    """Start addresses of the mappings that have a flag of two letters; none when the process is gone."""
    found, start = set(), 0
    try:
        with open(f"/proc/{pid}/smaps", "rb") as smaps:  # noqa: PTH123
            for line in smaps:
                name, _, rest = line.partition(b" ")
                if not name.endswith(b":"):
                    start = int(name.partition(b"-")[0], 16)
                elif name == b"VmFlags:" and flag in rest.split():
                    found.add(start)
    except OSError:
        pass  # gone: the next reading of its page tables tells
    return frozenset(found)


def pages_merged() -> bool:
    """Whether KSM has merged any pages of this machine (Documentation/admin-guide/mm/ksm.rst)."""
    try:
        return int(Path("/sys/kernel/mm/ksm/pages_shared").read_text()) > 0
    except OSError:
        return False  # a kernel without


class SmapsMapping(NamedTuple):
    """A mapping, the kernel's own included, with its flags. start, end: addresses, end exclusive."""

    start: int
    end: int
    perms: str
    path: str
    flags: frozenset[str]


def detailed(pid: int) -> list[SmapsMapping]:
    """All mappings of a process, ascending; none when it is gone."""
    found: list[SmapsMapping] = []
    line = b""
    try:
        with open(f"/proc/{pid}/smaps", "rb") as smaps:  # noqa: PTH123
            for text in smaps:
                name, _, rest = text.partition(b" ")
                if not name.endswith(b":"):
                    line = text
                elif name == b"VmFlags:":
                    found.append(_detailed(line, rest))
    except OSError:
        return []
    return found


def _detailed(line: bytes, flags: bytes) -> SmapsMapping:
    bounds, perms, _offset, _device, _inode, *rest = line.rstrip(b"\n").split(None, 5)
    start, _, end = bounds.partition(b"-")
    path = rest[0].decode(errors="surrogateescape") if rest else ""
    return SmapsMapping(
        int(start, 16), int(end, 16), perms.decode(), path, frozenset(flags.decode().split())
    )
