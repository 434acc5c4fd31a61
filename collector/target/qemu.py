"""RAM of a QEMU guest: its addresses in the process and in the guest."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from redirty.collector.errors import one_line
from redirty.collector.linux import procfs
from redirty.collector.linux.smaps import ranges_with_flag
from redirty.collector.ptrace.helpers.qmp import Monitor

# QEMU keeps a guest's memory from its children (MADV_DONTFORK, softmmu/physmem.c: ram_block_add):
# every block of it that a migration copies, and nothing else.
_DONTFORK_FLAG = b"dc"
MIN_BLOCK_BYTES = 1 << 20
"""Blocks of RAM are at least this large, also those plugged in later; smaller ones are firmware and
tables."""

_QMP_TIMEOUT_S = 5.0
_MAX_MESSAGE = 200
_MAX_PIECES = 4096
_MAX_ADDRESS = 1 << 63
_ADDRESS = re.compile(r"is 0x([0-9a-f]{1,16})\b")
_RANGE = re.compile(
    r" +(?P<start>[0-9a-f]{16})-(?P<last>[0-9a-f]{16}) \(prio -?\d+, (?:ram|rom)\): (?P<name>\S+)"
    r"(?: @(?P<offset>[0-9a-f]+))?"
)


def ram_mappings(pid: int) -> list[tuple[int, int]]:
    """Return (start, end) of the mappings that are marked as a guest's memory, ascending.

    Empty if the process is gone.
    """
    return ranges_with_flag(pid, _DONTFORK_FLAG)


def ram_blocks(pid: int) -> list[tuple[int, int]]:
    """Return (start, end) addresses of a guest's RAM in its QEMU process, ascending.

    Empty if the process is not a QEMU, or is gone.
    """
    if not (procfs.read_comm(pid) or "").startswith(("qemu", "kvm")):
        return []
    found: list[tuple[int, int]] = []
    for start, end in ram_mappings(pid):
        if found and found[-1][1] == start:
            found[-1] = found[-1][0], end
        else:
            found.append((start, end))
    return [(a, b) for a, b in found if b - a >= MIN_BLOCK_BYTES]


@dataclass(frozen=True)
class Piece:
    """A piece of a guest's memory.

    Attributes:
        guest_address: Its address in the guest.
        size: Its size in bytes.
        address: Its address in QEMU.
    """

    guest_address: int
    size: int
    address: int


def memory_of(path: str) -> list[Piece]:
    """Ask a QEMU through its QMP socket where the guest's memory is.

    Returns:
        The pieces, ascending by guest address, without video memory and firmware.

    Raises:
        OSError: The socket cannot be used.
        ValueError: The answer is malformed.
    """
    monitor = Monitor(path, _QMP_TIMEOUT_S)
    try:
        backends = monitor.execute("query-memdev")
        listed = backends if isinstance(backends, list) else []
        ids = [str(b["id"]) for b in listed if isinstance(b, dict) and "id" in b]
        names = {*ids, *(f"/objects/{i}" for i in ids)}
        found = []
        for start, end in pieces(_human_command(monitor, "info mtree -f"), names):
            answer = _human_command(monitor, f"gpa2hva {start:#x}")
            match = _ADDRESS.search(answer)
            if match is None:
                raise ValueError(one_line(answer.strip())[:_MAX_MESSAGE])
            found.append(Piece(start, end - start, int(match[1], 16)))
        return found
    finally:
        monitor.close()


def _human_command(monitor: Monitor, command: str) -> str:
    return str(monitor.execute("human-monitor-command", **{"command-line": command}))


def pieces(tree: str, names: Collection[str]) -> list[tuple[int, int]]:
    """Return (start, end) guest addresses of memory with one of these names.

    Adjacent ranges of the same memory are joined, also where a part of it is read-only.

    Args:
        tree: The output of QEMU's "info mtree -f".
        names: Names of memory backends.

    Raises:
        ValueError: The output is not QEMU's.
    """
    found: list[tuple[int, int]] = []
    before: tuple[str, int] | None = None  # the memory, and the offset at which it would continue
    for view in re.split(r"^FlatView ", tree, flags=re.MULTILINE):
        if not re.search(r'^ *AS "memory",', view, re.MULTILINE):
            continue
        for line in view.splitlines():
            match = _RANGE.match(line)
            if match is None or match["name"] not in names:
                continue
            start, end = int(match["start"], 16), int(match["last"], 16) + 1
            if not start < end <= _MAX_ADDRESS or len(found) == _MAX_PIECES:
                raise ValueError(f"no memory of a guest: {start:#x} to {end:#x}")
            offset = int(match["offset"] or "0", 16)
            if found and found[-1][1] == start and before == (match["name"], offset):
                found[-1] = found[-1][0], end
            else:
                found.append((start, end))
            before = match["name"], offset + end - start
    return sorted(found)
