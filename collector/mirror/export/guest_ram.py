"""Exports the guest memory in a mirror of a QEMU process as a raw image.

QEMU marks the blocks of guest RAM, and hardly anything else, with MADV_DONTFORK: "dc" in VmFlags of
/proc/PID/smaps. Their guest-physical addresses are known to QEMU's monitor only.
Sources: softmmu/physmem.c (ram_block_add), softmmu/memory.c (mtree_print_flatview), monitor/misc.c (gpa2hva).
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redirty.collector.errors import RedirtyError, why
from redirty.collector.folders import Folder, give_to_caller
from redirty.collector.mirror.image.committed import Field, processes, read_manifest
from redirty.collector.mirror.image.core_reader import CoreFile
from redirty.collector.pageset import PAGE_SIZE
from redirty.collector.target.qemu import Piece

# A guest may see some of its memory at two addresses, as firmware is; not all of it several times.
_MOST_VIEWS = 2
_MOST_PARTS = 1 << 12  # and blocks


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
        blocks = _blocks(Field(information, ""))
        if not blocks:
            raise RedirtyError(f"{directory} is not a mirror of a QEMU")
        size, start, pid = max(blocks)
        parts = _pieces(Field(information, ""), sum(size for size, *_ in blocks))
        known = bool(parts)
        if known:
            pid = find_owner(parts, blocks)
        else:
            parts = [Piece(0, size, start)]
        names = dict(processes(information, "pids"))
        if pid not in names:
            raise ValueError(f"it has no core file of process {pid}")
    except ValueError as e:
        raise RedirtyError(f"{directory} is not a mirror that can be exported: {e}") from None
    core = CoreFile(directory / names[pid])
    try:
        folder = Folder.hold(to.parent)
        fd = folder.new_file(to.name)
        try:
            for part in parts:
                _copy(core, fd, part)
            size = max(part.guest_address + part.size for part in parts)
            os.ftruncate(fd, size)
            give_to_caller(fd)
        except BaseException:
            folder.remove(to.name)  # a partial file could be mistaken for a complete one
            raise
        finally:
            os.close(fd)
    except OSError as e:
        raise RedirtyError(f"cannot write {to}: {why(e)}") from None
    finally:
        core.close()
    return size, known


def _blocks(information: Field) -> list[tuple[int, int, int]]:
    """Return the blocks of guest memory: (size, address, PID). Raises: ValueError for invalid ones."""
    if not information.has("guest_ram"):
        return []
    found = []
    for block in information["guest_ram"].items():
        start, end = block["start"].address(), block["end"].address()
        if end <= start:
            raise ValueError("a block of guest memory is empty")
        found.append((end - start, start, block["pid"].pid()))
    if len(found) > _MOST_PARTS:
        raise ValueError(f"it has more than {_MOST_PARTS} blocks of guest memory")
    return found


def _pieces(information: Field, blocks_bytes: int) -> list[Piece]:
    """Return the pieces of guest memory, if their addresses are known. blocks_bytes: size of all blocks.

    Raises:
        ValueError: they are invalid.
    """
    if not information.has("guest_memory"):
        return []
    found = [
        Piece(p["guest_address"].address(), p["size"].address(), p["address"].address())
        for p in information["guest_memory"].items()
    ]
    ordered = sorted(found, key=lambda part: part.guest_address)
    if any(a.guest_address + a.size > b.guest_address for a, b in itertools.pairwise(ordered)):
        raise ValueError("pieces of guest memory overlap")
    if sum(p.size for p in found) > _MOST_VIEWS * blocks_bytes or len(found) > _MOST_PARTS:
        raise ValueError("the pieces of guest memory are more than its blocks")
    return found


def find_owner(parts: Sequence[Piece], blocks: Sequence[tuple[int, int, int]]) -> int:
    """Return the process whose blocks (size, address, PID) contain all pieces.

    Raises:
        ValueError: no process has them all, or more than one does.
    """

    of: dict[int, list[tuple[int, int]]] = {}
    for size, address, pid in blocks:
        of.setdefault(pid, []).append((address, address + size))

    def has_all(own: list[tuple[int, int]]) -> bool:
        own.sort()
        starts = [start for start, _ in own]
        for part in parts:
            at = bisect.bisect_right(starts, part.address) - 1
            if at < 0 or part.address + part.size > own[at][1]:
                return False
        return True

    owners = (pid for pid, own in of.items() if has_all(own))
    pids = list(itertools.islice(owners, 2))
    if len(pids) != 1:
        raise ValueError(
            "the guest memory was remapped while it was mirrored, or there are several guests"
        )
    return pids[0]


def _copy(core: CoreFile, fd: int, part: Piece) -> None:
    first = part.address // PAGE_SIZE
    for page, data in core.data(first, part.size // PAGE_SIZE):
        if any(data):
            offset = part.guest_address + (page - first) * PAGE_SIZE
            view = memoryview(data)
            while view:
                done = os.pwrite(fd, view, offset)
                offset, view = offset + done, view[done:]
