"""A program whose processes share memory, and write some of it again and again."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.servers import Server

HOT, ALL = 2048, 12288  # pages that are written again and again, and all

# Fills shared memory, then writes its first pages again and again: by four children that inherit it, by a second
# program that maps a part of it elsewhere, or through a second mapping of the same process.
_PROGRAM = """
import ctypes, mmap, os, sys, time
kind, ready, hot, pages = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def fork():
    # The child ends with its parent, which the test ends.
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
    return child

def write(*areas):
    byte = 0
    while True:
        byte = byte % 255 + 1
        for area in areas:
            for page in range(hot):
                area[page << 12] = byte
        time.sleep(0.05)

if kind == "second":
    fd = int(sys.argv[5])
    write(mmap.mmap(fd, (pages // 2) << 12))
fd = os.memfd_create("shared")
os.ftruncate(fd, pages << 12)
area = mmap.mmap(-1 if kind == "prefork" else fd, pages << 12)
for at in range(0, pages << 12, 1 << 20):
    area[at : at + (1 << 20)] = os.urandom(1 << 20)
if kind == "prefork":
    for _ in range(4):
        if fork() == 0:
            write(area)
if kind == "memfd" and fork() == 0:
    os.set_inheritable(fd, True)
    os.execv(sys.executable, [sys.executable, __file__, "second", ready, str(hot), str(pages), str(fd)])
open(ready, "w").close()
if kind == "prefork":
    time.sleep(1_000_000)
elif kind == "twice":
    write(area, mmap.mmap(fd, pages << 12))
else:
    write(area)
"""


@contextlib.contextmanager
def shared_program(kind: str, directory: Path) -> Iterator[Server]:
    """Run the program. kind: prefork (four children), memfd (a second program), twice (a second mapping)."""
    program, ready = directory / "program.py", directory / "ready"
    program.write_text(_PROGRAM)
    words = [sys.executable, program, kind, ready, HOT, ALL]
    server = Server(["setpriv", "--pdeathsig", "KILL", "--", *words], directory, signal.SIGKILL)
    try:
        server.wait_ready(ready.exists)
        yield server
    finally:
        server.close()
