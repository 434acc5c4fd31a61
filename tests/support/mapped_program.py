"""A program with one large mapping of known contents, whose page tables are moved by tests.

As a script: KIND (private, shared, file, huge) MIB [PATH]; it answers each line of its input with a line. It
needs only Python's standard library, as it starts again and again in emulated machines.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

PAGE = 4096
_PYTHON: str = getattr(sys, "_base_executable", None) or sys.executable
SHOWN = struct.Struct("<4Q")  # the first words of a page, which are written and checked
_FACTOR, _MASK = 0x9E37_79B9_7F4A_7C15, (1 << 64) - 1


def content(page: int, seed: int) -> bytes:
    """Return the first bytes of a page."""
    return SHOWN.pack(*((n * _FACTOR + seed) & _MASK for n in range(4 * page, 4 * page + 4)))


def wrong_pages(memory: mmap.mmap | bytes, seed: int) -> int:
    """Return the number of pages that do not start with their content()."""
    return sum(
        memory[n * PAGE : n * PAGE + SHOWN.size] != content(n, seed)
        for n in range(len(memory) // PAGE)
    )


def main() -> None:
    """Run the program."""
    kind, size = sys.argv[1], int(sys.argv[2]) << 20
    if kind == "file":
        descriptor = os.open(sys.argv[3], os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, size)
        memory = mmap.mmap(descriptor, size)
    else:
        shared = mmap.MAP_SHARED if kind == "shared" else mmap.MAP_PRIVATE
        memory = mmap.mmap(-1, size, flags=shared | mmap.MAP_ANONYMOUS)
    if kind != "huge":  # a file's page cache may lie in huge pages, too
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    pages = size // PAGE
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))

    def write(seed: int, step: int = 1) -> None:
        for n in range(0, pages, step):
            memory[n * PAGE : n * PAGE + SHOWN.size] = content(n, seed)

    write(0)
    threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()
    print(json.dumps({"pid": os.getpid(), "address": address}), flush=True)
    for line in sys.stdin:
        command, number = line.split()
        wrong = 0
        if command == "use":
            write(int(number), 3)
            sum(memory[n * PAGE] for n in range(0, pages, 5))
        elif command == "sync":
            memory.flush()
        else:
            if command == "write":
                write(int(number))
            wrong = wrong_pages(memory, int(number))
        print(json.dumps({"wrong": wrong, "address": address}), flush=True)


class Mapped:
    """Drives the program.

    Attributes:
        pid: of the program.
        address: of its mapping.
        mib: the size of its mapping.
    """

    def __init__(self, kind: str, mib: int, path: str = "", wrapper: Sequence[str] = ()) -> None:
        """Start the program; wrapper: a command that runs it."""
        self._process = subprocess.Popen(
            [*wrapper, _PYTHON, "-I", "-S", str(Path(__file__).resolve()), kind, str(mib), path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        greeting = self._answer()
        self.pid: int = greeting["pid"]
        self.address: int = greeting["address"]
        self.mib = mib

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def _ask(self, line: str) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert answer["address"] == self.address
        return int(answer["wrong"])

    def wrong(self, seed: int = 0) -> int:
        """Return the number of pages that do not have the contents last written."""
        return self._ask(f"check {seed}")

    def write(self, seed: int) -> int:
        """Write every page; return the number of pages with wrong contents afterwards."""
        return self._ask(f"write {seed}")

    def sync(self) -> None:
        """Write a file's pages back: they are clean then, and write-protected."""
        self._ask("sync 0")

    def use(self, seed: int) -> None:
        """Write every third page, with the contents it has already, and read every fifth."""
        self._ask(f"use {seed}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    main()
