"""The memory of a QEMU's guest in a mirror of QEMU: where it is, and as a raw image.

QEMU keeps the blocks of its guest's RAM, and hardly anything else, out of its children (MADV_DONTFORK): "dc" in
VmFlags of /proc/PID/smaps. Where in the guest they are only QEMU's monitor tells.
Sources: softmmu/physmem.c (ram_block_add), softmmu/memory.c (mtree_print_flatview), monitor/misc.c (gpa2hva).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redirty.collector.errors import RedirtyError, why
from redirty.collector.linux.process_memory import PAGE
from redirty.collector.mirror.image.core_reader import CoreFile, mirror_of
from redirty.collector.target.qemu import Piece

_CHUNK = 1024  # pages
_KEYS = "guest_address", "size", "address"


def export(directory: Path, to: Path) -> tuple[int, bool]:
    """Writes the guest's memory of a mirrored QEMU as a raw, sparse file, every byte at its address in the
    guest: the file's size, and whether that is so. Where the mirror does not say where the memory is (it was
    made without --qmp) it is the largest block, as QEMU has it: all memory, but that a PC has a hole below 4 GiB.

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
        known = information.get("guest_memory")
        parts = [Piece(0, size, start)]
        if known:
            parts = [Piece(*(int(p[k], 16) for k in _KEYS)) for p in known]
            pid = _whose(parts, blocks)
        name = information["cores"][information["target"]["pids"].index(pid)]
    except (KeyError, ValueError, TypeError, IndexError) as e:
        raise RedirtyError(f"{directory} is no mirror that can be exported: {e}") from None
    core = CoreFile(directory / Path(name).name)
    try:
        fd = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for part in parts:
                _copy(core, fd, part)
            size = max(part.guest_address + part.size for part in parts)
            os.ftruncate(fd, size)
        except BaseException:
            to.unlink()  # a part of it would pass for all
            raise
        finally:
            os.close(fd)
    except OSError as e:
        raise RedirtyError(f"cannot write {to}: {why(e)}") from None
    finally:
        core.close()
    return size, bool(known)


def _whose(parts: Sequence[Piece], blocks: Sequence[tuple[int, int, int]]) -> int:
    """The process that has all pieces in its blocks (size, address, process). Errors: ValueError."""

    def has(pid: int, part: Piece) -> bool:
        end = part.address + part.size
        return any(p == pid and a <= part.address and end <= a + size for size, a, p in blocks)

    pids = {p for _, _, p in blocks if all(has(p, part) for part in parts)}
    if len(pids) != 1:
        raise ValueError("the guest's memory changed its place, or there are several guests in it")
    return pids.pop()


def _copy(core: CoreFile, fd: int, part: Piece) -> None:
    first, pages = part.address // PAGE, part.size // PAGE
    for at in range(0, pages, _CHUNK):
        data = core.read(first + at, min(_CHUNK, pages - at))
        if any(data):
            offset, view = part.guest_address + at * PAGE, memoryview(data)
            while view:
                done = os.pwrite(fd, view, offset)
                offset, view = offset + done, view[done:]
