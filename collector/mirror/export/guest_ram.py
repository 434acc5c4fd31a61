"""Exports the guest memory in a mirror of a QEMU process as a raw image.

QEMU marks the blocks of guest RAM, and hardly anything else, with MADV_DONTFORK: "dc" in VmFlags of
/proc/PID/smaps. Their guest-physical addresses are known to QEMU's monitor only.
Sources: softmmu/physmem.c (ram_block_add), softmmu/memory.c (mtree_print_flatview), monitor/misc.c (gpa2hva).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redirty.collector.errors import RedirtyError, why
from redirty.collector.folders import Folder
from redirty.collector.mirror.image.core_reader import CoreFile, read_manifest
from redirty.collector.pageset import PAGE_SIZE
from redirty.collector.target.qemu import Piece

_CHUNK = 1024  # pages


def export(directory: Path, to: Path) -> tuple[int, bool]:
    """Write the guest memory of a mirrored QEMU to a new, raw and sparse file.

    Every byte is at its guest-physical address if the mirror has these addresses. A mirror made without --qmp
    lacks them: the file is then the largest RAM block alone, in QEMU's order, without the hole that a PC has
    below 4 GiB.

    Returns:
        The size of the file in bytes, and whether the guest-physical addresses are known.

    Raises:
        RedirtyError: the directory is not a mirror of a QEMU, or the file cannot be written.
    """
    information: dict[str, Any] = read_manifest(directory)
    try:
        blocks = [
            (int(b["end"], 16) - int(b["start"], 16), int(b["start"], 16), b["pid"])
            for b in information.get("guest_ram", [])
        ]
        if not blocks:
            raise RedirtyError(f"{directory} is not a mirror of a QEMU")
        size, start, pid = max(blocks)
        known = information.get("guest_memory")
        parts = [Piece(0, size, start)]
        if known:
            parts = [
                Piece(int(p["guest_address"], 16), int(p["size"], 16), int(p["address"], 16))
                for p in known
            ]
            pid = find_owner(parts, blocks)
        name = information["cores"][information["target"]["pids"].index(pid)]
    except (KeyError, ValueError, TypeError, IndexError) as e:
        raise RedirtyError(f"{directory} is not a mirror that can be exported: {e}") from None
    core = CoreFile(directory / Path(name).name)
    try:
        folder = Folder.hold(to.parent)
        fd = folder.new_file(to.name)
        try:
            for part in parts:
                _copy(core, fd, part)
            size = max(part.guest_address + part.size for part in parts)
            os.ftruncate(fd, size)
        except BaseException:
            folder.remove(to.name)  # a partial file could be mistaken for a complete one
            raise
        finally:
            os.close(fd)
    except OSError as e:
        raise RedirtyError(f"cannot write {to}: {why(e)}") from None
    finally:
        core.close()
    return size, bool(known)


def find_owner(parts: Sequence[Piece], blocks: Sequence[tuple[int, int, int]]) -> int:
    """Return the process whose blocks (size, address, PID) contain all pieces.

    Raises:
        ValueError: no process has them all, or more than one does.
    """

    def has(pid: int, part: Piece) -> bool:
        end = part.address + part.size
        return any(p == pid and a <= part.address and end <= a + size for size, a, p in blocks)

    pids = {p for _, _, p in blocks if all(has(p, part) for part in parts)}
    if len(pids) != 1:
        raise ValueError(
            "the guest memory was remapped while it was mirrored, or there are several guests"
        )
    return pids.pop()


def _copy(core: CoreFile, fd: int, part: Piece) -> None:
    first, pages = part.address // PAGE_SIZE, part.size // PAGE_SIZE
    for at in range(0, pages, _CHUNK):
        data = core.read(first + at, min(_CHUNK, pages - at))
        if any(data):
            offset, view = part.guest_address + at * PAGE_SIZE, memoryview(data)
            while view:
                done = os.pwrite(fd, view, offset)
                offset, view = offset + done, view[done:]
