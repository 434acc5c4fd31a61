"""Flags of mappings, which /proc/PID/smaps shows and /proc/PID/maps does not.

Reading it walks the page tables of all that is mapped, some milliseconds a GiB.
Source: Documentation/filesystems/proc.rst (VmFlags).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from redirty.collector.errors import require_resources
from redirty.collector.linux import procfs
from redirty.collector.linux.maps import bounds_of, decode_path, split_line


def _lines_with_flags(pid: int) -> Iterator[tuple[bytes, list[bytes]]]:
    """Yield the first line of each mapping and its flags. Raises: OSError once the process is gone."""
    line = b""
    with open(f"{procfs.directory(pid)}/smaps", "rb") as smaps:  # noqa: PTH123
        for text in smaps:
            name, _, rest = text.partition(b" ")
            if not name.endswith(b":"):
                line = text.removesuffix(b"\n")
            elif name == b"VmFlags:":
                yield line, rest.split()


def ranges_with_flag(pid: int, flag: bytes) -> list[tuple[int, int]]:
    """Return (start, end) of the mappings that have a flag of two letters, ascending.

    Empty if the process is gone: the next reading of its page tables reports that.
    """
    try:
        found = [line for line, flags in _lines_with_flags(pid) if flag in flags]
    except OSError as e:
        require_resources(e, f"cannot read the mappings of process {pid}")
        return []
    return [bounds_of(line.partition(b" ")[0]) for line in found]


def starts_with_flag(pid: int, flag: bytes) -> frozenset[int]:
    """Return the start addresses of the mappings that have a flag; see ranges_with_flag()."""
    return frozenset(start for start, _ in ranges_with_flag(pid, flag))


def pages_merged() -> bool:
    """Return whether KSM has merged any pages of this machine.

    Source: Documentation/admin-guide/mm/ksm.rst.
    """
    try:
        return int(Path("/sys/kernel/mm/ksm/pages_shared").read_text()) > 0
    except OSError:
        return False  # a kernel without KSM


class SmapsMapping(NamedTuple):
    """A mapping with its flags, the kernel's special ones included.

    Attributes:
        start: First address.
        end: End address, exclusive.
        perms: As in maps.
        path: As in maps.
        flags: Two letters each.
    """

    start: int
    end: int
    perms: str
    path: str
    flags: frozenset[str]


def detailed(pid: int) -> list[SmapsMapping]:
    """Return all mappings of a process, ascending; none if it is gone."""
    try:
        return [_detailed(line, flags) for line, flags in _lines_with_flags(pid)]
    except OSError as e:
        require_resources(e, f"cannot read the mappings of process {pid}")
        return []


def _detailed(line: bytes, flags: list[bytes]) -> SmapsMapping:
    fields = split_line(line)
    start, end = bounds_of(fields.bounds)
    names = frozenset(flag.decode() for flag in flags)
    return SmapsMapping(start, end, fields.perms.decode(), decode_path(fields.path), names)
