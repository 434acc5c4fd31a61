"""The file reader: a process that reads files whose file system may be silent for ever, and is killed over them.

Started by foreign/mapped_files.py with the bare library. Requests and answers are JSON, a datagram each; an answer is
[errno, result]. What is read goes into memory that both share, whose descriptor is the last argument.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import stat
import sys
from typing import Any

from . import bounded

_MEMORY_BYTES = 1 << 30
_REQUEST_BYTES = 1 << 17


class Files:
    """The open files, by number, and the memory for what is read."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memoryview(memory)
        self._files: dict[int, int] = {}

    def open(self, number: int, path: str) -> list[int]:
        """Open a regular file, and return its status; empty if it is of another kind. Raises: OSError."""
        found = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            status = os.fstat(found)
            if not stat.S_ISREG(status.st_mode):
                return []
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            link = f"/proc/self/fd/{found}"
            try:
                self._files[number] = os.open(link, flags | os.O_NOATIME)
            except PermissionError:  # a file server that does not treat root as the owner
                self._files[number] = os.open(link, flags)
        finally:
            os.close(found)
        return self.status(number)

    def status(self, number: int) -> list[int]:
        """Return the file's size, blocks, and times of contents and status in ns. Raises: OSError."""
        status = os.fstat(self._files[number])
        return [status.st_size, status.st_blocks, status.st_mtime_ns, status.st_ctime_ns]

    def seek(self, number: int, at: int, whence: int) -> int:
        """Return the next data or hole. Raises: OSError."""
        return os.lseek(self._files[number], at, whence)

    def read(self, number: int, runs: list[tuple[int, int]], page: int) -> list[int]:
        """Read runs (offset, length) of a file one after the other into the memory.

        Holes, and the rest behind the file's end, are zeros.

        Returns:
            Which pages could not be read, counted in the memory; they are zeros there.
        """
        bad = []
        at = 0
        for offset, length in runs:
            start, end = at, at + length
            while at < end:
                try:
                    got = os.preadv(
                        self._files[number], [self._memory[at:end]], offset + at - start
                    )
                except OSError:
                    bad.append(at // page)
                    got = page - at % page
                    self._memory[at : at + got] = bytes(got)
                if got == 0:
                    self._memory[at:end] = bytes(end - at)
                    got = end - at
                at += got
        return bad

    def close(self, number: int) -> None:
        """Close a file."""
        os.close(self._files.pop(number))


def main() -> None:
    """Answer requests until the other end is closed."""
    link = bounded.link(_MEMORY_BYTES)
    files = Files(mmap.mmap(int(sys.argv[-1]), 0))
    while request := link.recv(_REQUEST_BYTES):
        name, *arguments = json.loads(request)
        answer: list[Any]
        try:
            answer = [0, getattr(files, name)(*arguments)]
        except OSError as e:
            answer = [e.errno or errno.EIO, None]
        link.send(json.dumps(answer).encode())
