"""The memory of a QEMU's guest in a mirror of QEMU: where it is, and as a raw image.

QEMU keeps the blocks of its guest's RAM, and hardly anything else, out of its children (MADV_DONTFORK): "dc" in
VmFlags of /proc/PID/smaps. Source: softmmu/physmem.c (ram_block_add).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from redirty.collector.copier.corefile import CoreFile
from redirty.collector.copier.criu import mirror_of
from redirty.collector.copier.reading import PAGE
from redirty.collector.errors import RedirtyError, why

_BOUNDS = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) ")
_LEAST_BYTES = 1 << 20  # smaller blocks are firmware and tables
_CHUNK = 1024  # pages


def ram_blocks(pid: int) -> list[tuple[int, int]]:
    """(start, end) addresses of a guest's RAM in a process, ascending; none when it is no QEMU, or gone."""
    found: list[tuple[int, int]] = []
    start = end = 0
    try:
        if not Path(f"/proc/{pid}/comm").read_bytes().startswith((b"qemu", b"kvm")):
            return []
        with Path(f"/proc/{pid}/smaps").open("rb") as file:
            for line in file:
                bounds = _BOUNDS.match(line)
                if bounds:
                    start, end = (int(x, 16) for x in bounds.groups())
                elif line.startswith(b"VmFlags:") and b"dc" in line.split():
                    if found and found[-1][1] == start:
                        found[-1] = found[-1][0], end
                    else:
                        found.append((start, end))
    except OSError:
        return []
    return [(a, b) for a, b in found if b - a >= _LEAST_BYTES]


def export(directory: Path, to: Path) -> int:
    """Writes the largest RAM block of a mirrored QEMU as a raw, sparse file; its size in bytes. That is all
    of the guest's memory in the order of its addresses, but that a PC has a hole below 4 GiB.

    Errors: RedirtyError.
    """
    information: dict[str, Any] = mirror_of(directory)
    try:
        blocks = [
            (int(b["end"], 16) - int(b["start"], 16), int(b["start"], 16), b["pid"])
            for b in information.get("guest_ram", [])
        ]
        if not blocks:
            raise RedirtyError(f"{directory} is no mirror of a QEMU")
        size, start, pid = max(blocks)
        name = information["cores"][information["target"]["pids"].index(pid)]
    except (KeyError, ValueError, TypeError, IndexError) as e:
        raise RedirtyError(f"{directory} is no mirror that can be exported: {e}") from None
    core = CoreFile(directory / Path(name).name)
    try:
        fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _copy(core, fd, start // PAGE, size // PAGE)
            os.ftruncate(fd, size)
        finally:
            os.close(fd)
    except OSError as e:
        raise RedirtyError(f"cannot write {to}: {why(e)}") from None
    finally:
        core.close()
    return size


def _copy(core: CoreFile, fd: int, first: int, pages: int) -> None:
    for at in range(0, pages, _CHUNK):
        data = core.read(first + at, min(_CHUNK, pages - at))
        if any(data):
            offset, view = at * PAGE, memoryview(data)
            while view:
                done = os.pwrite(fd, view, offset)
                offset, view = offset + done, view[done:]
