"""What /proc/PID/smaps tells of mappings and /proc/PID/maps does not: their flags.

Reading it walks the page tables of all that is mapped, some milliseconds a GiB.
Source: Documentation/filesystems/proc.rst (VmFlags).
"""

from __future__ import annotations


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
