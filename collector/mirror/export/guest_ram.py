"""The memory of a QEMU's guest in a mirror of QEMU: where it is, and as a raw image.

QEMU keeps the blocks of its guest's RAM, and hardly anything else, out of its children (MADV_DONTFORK): "dc" in
VmFlags of /proc/PID/smaps. Where in the guest they are only QEMU's monitor tells.
Sources: softmmu/physmem.c (ram_block_add), softmmu/memory.c (mtree_print_flatview), monitor/misc.c (gpa2hva).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redirty.collector.errors import RedirtyError, why
from redirty.collector.linux.process_memory import PAGE
from redirty.collector.mirror.image.core_reader import CoreFile, mirror_of
from redirty.collector.ptrace.helpers.qmp import Monitor

_BOUNDS = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) ")
_LEAST_BYTES = 1 << 20  # smaller blocks are firmware and tables
_CHUNK = 1024  # pages
_ANSWER_S = 5.0
_ADDRESS = re.compile(r"is 0x([0-9a-f]+)")
_RANGE = re.compile(
    r" +(?P<start>[0-9a-f]{16})-(?P<last>[0-9a-f]{16}) \(prio -?\d+, (?:ram|rom)\): (?P<name>\S+)"
    r"(?: @(?P<offset>[0-9a-f]+))?"
)
_KEYS = "guest_address", "size", "address"


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


@dataclass(frozen=True)
class Piece:
    """A piece of a guest's memory: its address in the guest, its size in bytes, its address in QEMU."""

    guest_address: int
    size: int
    address: int


def memory_of(path: str) -> list[Piece]:
    """Where a guest's memory is, as its QEMU tells through its QMP socket; ascending by guest address.
    Screens and firmware are left out. Errors: OSError, ValueError."""
    monitor = Monitor(path, _ANSWER_S)
    try:
        backends = monitor.execute("query-memdev")
        ids = [str(b["id"]) for b in backends if "id" in b] if isinstance(backends, list) else []
        names = {*ids, *(f"/objects/{i}" for i in ids)}
        found = []
        for start, end in pieces(_told(monitor, "info mtree -f"), names):
            answer = _told(monitor, f"gpa2hva {start:#x}")
            match = _ADDRESS.search(answer)
            if match is None:
                raise ValueError(answer.strip())
            found.append(Piece(start, end - start, int(match[1], 16)))
        return found
    finally:
        monitor.close()


def _told(monitor: Monitor, command: str) -> str:
    return str(monitor.execute("human-monitor-command", **{"command-line": command}))


def pieces(told: str, names: Collection[str]) -> list[tuple[int, int]]:
    """(start, end) guest addresses of memory with one of these names, by QEMU's "info mtree -f"; neighbours
    in the same memory are one, also where a part of it is read-only."""
    found: list[tuple[int, int]] = []
    before: tuple[str, int] | None = None  # the memory, and where in it the next piece would go on
    for view in re.split(r"^FlatView ", told, flags=re.MULTILINE):
        if not re.search(r'^ *AS "memory",', view, re.MULTILINE):
            continue
        for line in view.splitlines():
            match = _RANGE.match(line)
            if match is None or match["name"] not in names:
                continue
            start, end = int(match["start"], 16), int(match["last"], 16) + 1
            offset = int(match["offset"] or "0", 16)
            if found and found[-1][1] == start and before == (match["name"], offset):
                found[-1] = found[-1][0], end
            else:
                found.append((start, end))
            before = match["name"], offset + end - start
    return sorted(found)


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
