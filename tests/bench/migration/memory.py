"""A guest's memory as QEMU's process has it: how much there is, and how much of it is zero."""

from __future__ import annotations

import os
import re

import numpy as np

from tests.bench.migration.guests import GuestError, Machine
from tests.bench.migration.workloads import PAGE_BYTES

_BLOCK = "pc.ram"
_PIECE = 4 << 20


def ram(machine: Machine) -> tuple[int, int]:
    """Address and length of the guest's memory, in bytes. Errors: GuestError."""
    listed = machine.qmp.ask("human-monitor-command", {"command-line": "info ramblock"})
    return find_block(listed)


def find_block(listed: str) -> tuple[int, int]:
    """The same from QEMU's list: Block Name, PSize, Offset, Used, Total, HVA. Errors: GuestError."""
    found = re.search(
        rf"^\s*{re.escape(_BLOCK)}\s+\d+ \w+\s+0x[0-9a-f]+\s+0x([0-9a-f]+)\s+0x[0-9a-f]+\s+0x([0-9a-f]+)",
        listed,
        re.MULTILINE,
    )
    if found is None:
        raise GuestError(f"QEMU names no {_BLOCK}: {listed!r}")
    return int(found[2], 16), int(found[1], 16)


def zero_pages(pid: int, address: int, length: int) -> int:
    """How many pages are all zero, those that were never touched included. Errors: OSError."""
    count = 0
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for offset in range(0, length, _PIECE):
            piece = os.pread(memory, min(_PIECE, length - offset), address + offset)
            words = np.frombuffer(piece, dtype=np.uint64).reshape(-1, PAGE_BYTES // 8)
            count += int((~words.any(axis=1)).sum())
    finally:
        os.close(memory)
    return count
