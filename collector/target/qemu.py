"""Find the RAM blocks of a QEMU guest, by the monitor."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from redirty.collector.ptrace.helpers.qmp import Monitor

_BOUNDS = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) ")


_LEAST_BYTES = 1 << 20  # smaller blocks are firmware and tables


_ANSWER_S = 5.0


_ADDRESS = re.compile(r"is 0x([0-9a-f]+)")


_RANGE = re.compile(
    r" +(?P<start>[0-9a-f]{16})-(?P<last>[0-9a-f]{16}) \(prio -?\d+, (?:ram|rom)\): (?P<name>\S+)"
    r"(?: @(?P<offset>[0-9a-f]+))?"
)


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
