"""A program with one large mapping of known contents, whose page tables are moved by tests.

As a script: KIND (private, shared, file) MIB [PATH]; answers a line to each line of its input.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

WORDS = 512
SHOWN = 4  # words of a page that are written and checked


def contents(pages: int, seed: int) -> npt.NDArray[np.uint64]:
    """(pages, SHOWN) what the pages begin with."""
    words = np.arange(pages * SHOWN, dtype=np.uint64).reshape(pages, SHOWN)
    return words * np.uint64(0x9E37_79B9_7F4A_7C15) + np.uint64(seed)


def main() -> None:
    """The program."""
    kind, size = sys.argv[1], int(sys.argv[2]) << 20
    if kind == "file":
        descriptor = os.open(sys.argv[3], os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, size)
        memory = mmap.mmap(descriptor, size)
    else:
        shared = mmap.MAP_SHARED if kind == "shared" else mmap.MAP_PRIVATE
        memory = mmap.mmap(-1, size, flags=shared | mmap.MAP_ANONYMOUS)
        if kind != "huge":
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    array = np.frombuffer(memory, np.uint64).reshape(-1, WORDS)
    array[:, :SHOWN] = contents(len(array), 0)
    threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()
    print(json.dumps({"pid": os.getpid(), "address": array.ctypes.data}), flush=True)
    for line in sys.stdin:
        command, seed = line.split()
        if command == "write":
            array[:, :SHOWN] = contents(len(array), int(seed))
        wrong = int((array[:, :SHOWN] != contents(len(array), int(seed))).any(axis=1).sum())
        print(json.dumps({"wrong": wrong, "address": array.ctypes.data}), flush=True)


class Mapped:
    """Such a program. wrapper: a command that runs it."""

    def __init__(self, kind: str, mib: int, path: str = "", wrapper: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*wrapper, sys.executable, str(Path(__file__).resolve()), kind, str(mib), path],
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
        """How many pages are not as they were written."""
        return self._ask(f"check {seed}")

    def write(self, seed: int) -> int:
        """Writes every page; how many are wrong then."""
        return self._ask(f"write {seed}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    main()
