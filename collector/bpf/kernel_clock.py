"""The clock of BPF programs (bpf_ktime_get_ns), from the one of this process.

A process in a time namespace sees CLOCK_MONOTONIC with an offset; the kernel's own clock has none.
Source: time_namespaces(7).
"""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path

from redirty.collector.errors import RedirtyError


@functools.cache
def offset_ns() -> int:
    """Return by how much CLOCK_MONOTONIC of this process is ahead of the kernel's clock.

    Raises:
        RedirtyError: It cannot be told.
    """
    own, of_children = (_namespace(f"/proc/self/ns/{n}") for n in ("time", "time_for_children"))
    try:
        text = Path("/proc/self/timens_offsets").read_text()
    except FileNotFoundError:
        return 0  # a kernel without time namespaces
    offset = parse_offset(text)
    if own != of_children:
        # The file has the offsets of processes that this one would start, and no other file its own.
        raise RedirtyError(
            "the clock of this time namespace cannot be compared with the kernel's: start redirty in it by "
            "'unshare -T --fork'"
        )
    return offset


def _namespace(path: str) -> int | None:
    try:
        return os.stat(path).st_ino  # noqa: PTH116
    except FileNotFoundError:
        return None


def parse_offset(text: str) -> int:
    """Return the offset of the monotonic clock in ns, from a timens_offsets file."""
    for line in text.splitlines():
        name, seconds, nanoseconds = line.split()
        if name in ("monotonic", "1"):  # CLOCK_MONOTONIC
            return int(seconds) * 10**9 + int(nanoseconds)
    return 0


def kernel_ns(monotonic_ns: int | None = None) -> int:
    """Return a time of CLOCK_MONOTONIC, by default now, as BPF programs would read it.

    Raises:
        RedirtyError: It cannot be told.
    """
    return (time.monotonic_ns() if monotonic_ns is None else monotonic_ns) - offset_ns()
