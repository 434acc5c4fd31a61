"""Runs in a test VM with two nodes, for vm_tables.py. Usage: guest_tables MIB MOVES PAIRS."""

from __future__ import annotations

import ctypes
import json
import sys
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from tests.bench.figures import pairs
from tests.bench.pagetables import touch_ns
from tests.support.mapped_program import PAGE, Mapped
from tests.vm.mover import FAR, ON_NODE_0, Mover
from tests.workloads.driver import Sweep

_MOVE_PAGES = 279  # x86-64
_MOVE = 2  # MPOL_MF_MOVE
_GIB_TABLES = 512


def moves(mib: int, times: int) -> dict[str, Any]:
    """Return seconds per GiB, by turns: moving the tables, then the pages themselves, to the other node."""
    libc = ctypes.CDLL(None, use_errno=True)
    stopped, moving, pages_s = [], [], []
    with Mapped("private", mib, wrapper=ON_NODE_0) as target:
        mover = Mover(target.pid)
        pages = target.address + np.arange(mib << 8, dtype=np.uint64) * np.uint64(PAGE)
        status = np.zeros(len(pages), np.int32)
        for turn in range(times):
            node = 0 if turn % 2 else FAR
            result = mover.to(node)
            nodes = np.full(len(pages), node, np.int32)
            arrays = (a.ctypes.data_as(ctypes.c_void_p) for a in (pages, nodes, status))
            started = time.monotonic()
            moved = libc.syscall(
                _MOVE_PAGES, target.pid, ctypes.c_ulong(len(pages)), *arrays, _MOVE
            )
            pages_s.append((time.monotonic() - started) / mib * 1024)
            assert moved == 0, ctypes.get_errno()
            assert (status == node).all()
            stopped.append(result.stopped_s / result.moved * _GIB_TABLES)
            moving.append(result.moves_s / result.moved * _GIB_TABLES)
        assert target.wrong() == 0
    return {"stopped_s": stopped, "moves_s": moving, "move_pages_s": pages_s}


def touches(count: int) -> dict[str, Any]:
    """Measure first touches by a program that was moved to the other node, and by one that was not."""
    with Sweep(1, wrapper=ON_NODE_0) as moved, Sweep(1, wrapper=ON_NODE_0) as untouched:
        touch_ns(moved), touch_ns(untouched)
        Mover(moved.pid).to(FAR)
        return asdict(pairs(lambda: touch_ns(moved), lambda: touch_ns(untouched), count))


if __name__ == "__main__":
    mib, times, count = map(int, sys.argv[1:])
    json.dump({**moves(mib, times), "touch": touches(count)}, sys.stdout)
