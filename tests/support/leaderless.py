"""A process whose first thread has ended while others run.

As a script: it starts threads, of which the second one ends when told ("end"), ends its first thread, and then
writes pages of an area on command ("write FIRST COUNT BYTE"), each answered by a line.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

PAGE, PAGES, FULL = 4096, 1000, 500
_PYTHON: str = getattr(sys, "_base_executable", None) or sys.executable


def main() -> None:
    """Run the program."""
    area = mmap.mmap(-1, PAGES * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    shared = mmap.mmap(-1, PAGE)
    shared[0] = 1
    area[: FULL * PAGE] = b"f" * FULL * PAGE
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    over = threading.Event()
    first = threading.Thread(target=over.wait)

    def serve() -> None:
        print(address, flush=True)
        for line in sys.stdin:
            words = line.split()
            if words[0] == "write":
                start, count, value = map(int, words[1:])
                area[start * PAGE : (start + count) * PAGE] = bytes([value]) * count * PAGE
            else:
                over.set()
                first.join()
            print(flush=True)
        os._exit(0)

    first.start()
    threading.Thread(target=serve).start()
    ctypes.CDLL(None).pthread_exit(None)


class Leaderless:
    """The program above, running, its first thread ended. address: of its area."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [_PYTHON, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        self.address = int(self._process.stdout.readline())
        while Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)

    def threads(self) -> list[int]:
        """Return the threads that live, ascending."""
        return sorted(int(p.name) for p in Path(f"/proc/{self.pid}/task").iterdir())[1:]

    def _run(self, command: str) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline()

    def write(self, first: int, count: int, value: int) -> None:
        """Fill pages of the area with a byte."""
        self._run(f"write {first} {count} {value}")

    def end_a_thread(self) -> None:
        """End the living thread with the lowest ID, and wait until it is gone."""
        before = self.threads()
        self._run("end")
        while before[0] in self.threads():
            time.sleep(0.01)

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


if __name__ == "__main__":
    main()
