"""A guest's memory in QEMU's process: its size, and how much of it is zero."""

from __future__ import annotations

import os
import re

import numpy as np

from tests.bench.migration.guests import GuestError, Machine
from tests.bench.migration.workloads import PAGE_BYTES

_BLOCK = "pc.ram"
_PIECE = 4 << 20


def ram(machine: Machine) -> tuple[int, int]:
    """Return the address and length of the guest's memory, in bytes.

    Raises: GuestError.
    """
    # The first page of an x86 machine is its memory's first.
    return address_of(_monitor(machine, "gpa2hva 0")), length_of(_monitor(machine, "info ramblock"))


def address_of(answer: str) -> int:
    """Return the address in the answer to gpa2hva.

    Raises: GuestError.
    """
    found = re.search(rf"\({re.escape(_BLOCK)}\) is 0x([0-9a-f]+)", answer)
    if found is None:
        raise GuestError(f"QEMU does not report the address of {_BLOCK}: {answer!r}")
    return int(found[1], 16)


def length_of(answer: str) -> int:
    """Return the length in QEMU's list: Block Name, PSize, Offset, Used, Total.

    Raises: GuestError.
    """
    found = re.search(
        rf"^\s*{re.escape(_BLOCK)}\s+\d+ \w+\s+0x[0-9a-f]+\s+0x([0-9a-f]+)", answer, re.MULTILINE
    )
    if found is None:
        raise GuestError(f"QEMU does not list {_BLOCK}: {answer!r}")
    return int(found[1], 16)


def _monitor(machine: Machine, line: str) -> str:
    return str(machine.qmp.ask("human-monitor-command", {"command-line": line}))


def zero_pages(pid: int, address: int, length: int) -> int:
    """Count the pages that are all zero, those that were never touched included.

    Raises: OSError.
    """
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
