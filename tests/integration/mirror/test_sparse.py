"""Mappings of TiB in which little is: costs go by what is there."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirty.collector.pageset import PAGE_SIZE

from tests.support.mirror_oracle import CoreFile, mirror_json
from tests.support.redirty_cli import run_redirty

pytestmark = pytest.mark.usefixtures("tracing")

TIB = 64
# Bitmaps of all its pages would take 2 GiB each, and lists of them more than any machine has.
BOUNDED = ("prlimit", f"--as={8 << 30}")
PROGRAM = f"""
import ctypes, os, sys
size, prot = {TIB} << 40, 3 if sys.argv[1] == "writable" else 1
fd = os.memfd_create("sparse")
os.ftruncate(fd, size)
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
area = libc.mmap(None, size, prot, 0x4001, fd, 0)
step = size // 8
for i in range(8):
    os.pwrite(fd, bytes([i + 1]) * 4096, i * step)
    ctypes.string_at(area + i * step, 1)
print(area, flush=True)
for line in sys.stdin:
    pass
"""


@pytest.fixture(params=["read-only", "writable"])
def target(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Yield the process ID of a program with a mapping of a sparse file, and the mapping's address."""
    words = [sys.executable, "-I", "-S", "-c", PROGRAM, request.param]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        address = int(process.stdout.readline())
        yield process.pid, address
        process.kill()


def test_a_sparse_file_is_mirrored(target: tuple[int, int], tmp_path: Path) -> None:
    pid, address = target
    to = tmp_path / "m"
    done = run_redirty(
        *("mirror", "-p", pid, "--to", to, "--verify=full", "--downtime", "10s"),
        wrapper=BOUNDED,
    )
    assert done.code == 0, done
    information = mirror_json(to)
    assert information["verified"] and information["unmirrored"] == []
    assert sum(p["pages"] for p in information["passes"]) < 1 << 20
    core = CoreFile(to / "memory.core")
    try:
        for i in range(8):
            at = address + i * ((TIB << 40) // 8)
            expected = bytes([i + 1]) * PAGE_SIZE + bytes(PAGE_SIZE)
            assert core.read(at, 2 * PAGE_SIZE) == expected
    finally:
        core.close()


def test_a_sparse_file_is_recorded(target: tuple[int, int], tmp_path: Path) -> None:
    pid, address = target
    done = run_redirty(
        *("record", "-p", pid, "200ms", "3", "--zeros", "-o", tmp_path / "r"),
        wrapper=BOUNDED,
    )
    assert done.code == 0, done
    with (tmp_path / "r" / "zeros.csv").open() as file:
        rows = [
            r
            for r in csv.DictReader(file)
            if address <= int(r["start"], 16) < address + (TIB << 40)
        ]
    assert sum(int(r["pages"]) for r in rows) == (TIB << 40) // PAGE_SIZE
    assert 8 <= sum(int(r["present_pages"]) for r in rows) < 1 << 16
    assert len(rows) < 1000 and not any(int(r["unread_pages"]) for r in rows)
