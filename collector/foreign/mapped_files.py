"""The files that a target maps, opened and read without trusting their file systems.

A file system in user space (FUSE), or on a server, may never answer, and a thread that waits for it then cannot be
ended by any signal. Such files are read by a process of their own; all others by this one.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import stat
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from redirty.collector.errors import RedirtyError
from redirty.collector.foreign.reader_process import ReaderProcess
from redirty.collector.linux.process_memory import read_file
from redirty.collector.pageset import PAGE_SHIFT, PAGE_SIZE, U64, Bools, runs_of

SILENT_S = 10.0
"""A file system that has kept its reader asleep for so long counts as hung."""

_SERVED = ("fuse", "virtiofs", "nfs", "cifs", "smb3", "9p", "ceph", "afs", "lustre", "glusterfs")
_POLL_S = 0.1
_BUFFER_BYTES = 4 << 20
_ANSWER_BYTES = 1 << 17
_MAX_RUNS = 2048  # in one request
_HUGE_SHIFT = 26  # MFD_HUGE_SHIFT


class FileServerError(RedirtyError):
    """A file system that does not answer. The program can end."""


class ServedFile:
    """An open file that a reader process reads.

    Attributes:
        server: Asks that process.
        number: Of the file, there.
        path: Its path, for messages.
        layered: Whether it is a file of an overlay.
    """

    def __init__(self, server: _Server, number: int, path: str, *, layered: bool) -> None:
        self.server = server
        self.number = number
        self.path = path
        self.layered = layered


Handle = int | ServedFile
"""An open file: a descriptor, or a file that a reader process has open."""


class _Server:
    """The reader of the files of one file system. May be used by several threads at once."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._silent = False
        memory = os.memfd_create("read")
        try:
            os.ftruncate(memory, _BUFFER_BYTES)
            self.memory = memoryview(mmap.mmap(memory, _BUFFER_BYTES))
            self._reader = ReaderProcess("file_reader", [memory])
        finally:
            os.close(memory)
        self._files = 0
        self.open_files = 0

    def open(self, path: str, shown: str) -> ServedFile | None:
        """Open a file. Raises: OSError; FileServerError."""
        self._files += 1
        file = ServedFile(self, self._files, shown, layered=self._kind.startswith("overlay"))
        if not self.ask(file, "open", path):
            return None
        self.open_files += 1
        return file

    def read(self, file: ServedFile, runs: list[tuple[int, int]], buffer: memoryview) -> list[int]:
        """Read runs of a file to a buffer; return the pages that could not be read."""
        with self._lock:
            bad: list[int] = self._ask(file, ["read", file.number, runs, PAGE_SIZE])
            buffer[:] = self.memory[: len(buffer)]
        return bad

    def ask(self, file: ServedFile, name: str, *arguments: object) -> Any:
        """Ask the reader for something. Raises: OSError; FileServerError."""
        with self._lock:
            return self._ask(file, [name, file.number, *arguments])

    def _ask(self, file: ServedFile, request: list[object]) -> Any:
        if self._silent:
            raise self._error(file)
        link = self._reader.link
        try:
            link.send(json.dumps(request).encode())
            self._reader.awake()
            while not select.select([link], [], [], _POLL_S)[0]:
                if self._reader.asleep_s() > SILENT_S:
                    raise TimeoutError
            answer = link.recv(_ANSWER_BYTES)
        except (TimeoutError, ConnectionError):
            answer = b""
        if not answer:
            self._silent = True
            self._reader.end()
            raise self._error(file)
        code, result = json.loads(answer)
        if code:
            raise OSError(code, os.strerror(code))
        return result

    def _error(self, file: ServedFile) -> FileServerError:
        return FileServerError(
            f"cannot read {file.path}, which the target maps: its file system ({self._kind}) has not answered "
            f"for {SILENT_S:g} s; see to it, or unmap the file, and try again"
        )

    def close(self, file: ServedFile) -> bool:
        """Close a file; return whether it was the last one, and the reader has ended."""
        with contextlib.suppress(OSError, FileServerError):
            self.ask(file, "close")
        self.open_files -= 1
        if self.open_files == 0 and not self._silent:
            self._silent = True
            self._reader.end()
        return self.open_files == 0


_servers: dict[str, _Server] = {}


def open_mapped(tid: int, start: int, end: int, device: str, path: str) -> Handle | None:
    """Open the file behind a mapping; return None if it is not memory (a device, a kernel ring buffer).

    Args:
        tid: A living thread of the process.
        start: First address of the mapping.
        end: Its end.
        device: Its device, as maps shows it.
        path: Its path, for messages.

    Raises:
        OSError: The mapping is gone, or the file cannot be opened.
        FileServerError: Its file system does not answer.
    """
    name = f"/proc/{tid}/map_files/{start:x}-{end:x}"
    kind = served_by(tid, device)
    if kind:
        if device not in _servers:
            _servers[device] = _Server(kind)
        return _servers[device].open(name, path)
    # Opening a device can have side effects: check its type first.
    if not stat.S_ISREG(os.stat(name).st_mode):  # noqa: PTH116
        return None
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(name, flags | os.O_NOATIME)
    except PermissionError:  # a file server that does not treat root as the owner
        return os.open(name, flags)


def served_by(tid: int, device: str) -> str:
    """Return the type of a file system that may not answer; empty for others.

    Args:
        tid: A thread that has the file system mounted.
        device: The device of a mapping, as maps shows it.
    """
    major, _, minor = device.partition(":")
    number = f"{int(major, 16)}:{int(minor, 16)}"
    kinds = mounted(Path(f"/proc/{tid}/mountinfo").read_bytes())
    kind = kinds.get(number)
    served = sorted(k for k in kinds.values() if k.startswith(_SERVED))
    if kind == "overlay" and served:
        return f"overlay, {served[0]}"  # one may be a layer of it
    if kind is not None:
        return kind if kind.startswith(_SERVED) else ""
    if int(major, 16) or number in _own_memory():
        return ""
    return "not mounted any more"


def mounted(mountinfo: bytes) -> dict[str, str]:
    """Return the types of mounted file systems by device ("major:minor", decimal)."""
    found = {}
    for line in mountinfo.split(b"\n"):
        before, _, after = line.partition(b" - ")
        fields, kind = before.split(b" "), after.split(b" ")[0]
        if len(fields) > 2 and kind:
            found[fields[2].decode(errors="replace")] = kind.decode(errors="replace")
    return found


def _own_memory() -> set[str]:
    """Return the devices of shared memory, which is on file systems that nobody mounts."""
    if not _memory_devices:
        sizes = [name.rpartition("-")[2] for name in _entries("/sys/kernel/mm/hugepages")]
        shifts = [(int(size.removesuffix("kB")) << 10).bit_length() - 1 for size in sizes]
        for flags in (0, *(os.MFD_HUGETLB | s << _HUGE_SHIFT for s in shifts)):
            with contextlib.suppress(OSError):
                memory = os.memfd_create("device", flags)
                device = os.fstat(memory).st_dev
                os.close(memory)
                _memory_devices.add(f"{os.major(device)}:{os.minor(device)}")
    return _memory_devices


_memory_devices: set[str] = set()


def _entries(path: str) -> list[str]:
    try:
        return os.listdir(path)  # noqa: PTH208
    except OSError:
        return []


class Status(NamedTuple):
    """The status of a file, its fields named as those of os.stat_result."""

    st_size: int
    st_blocks: int
    st_mtime_ns: int
    st_ctime_ns: int


def status(file: Handle) -> os.stat_result | Status:
    """Return the status of a file. Raises: OSError; FileServerError."""
    if isinstance(file, int):
        return os.fstat(file)
    return Status(*file.server.ask(file, "status"))


def seek(file: Handle, at: int, whence: int) -> int:
    """Return the next data or hole of a file. Raises: OSError; FileServerError."""
    if isinstance(file, int):
        return os.lseek(file, at, whence)
    return int(file.server.ask(file, "seek", at, whence))


def read(file: Handle, pages: U64, buffer: memoryview) -> Bools:
    """Copy ascending pages of a file to the start of a buffer, as read_file() does. Raises: FileServerError."""
    if isinstance(file, int):
        return read_file(file, pages, buffer)
    good = np.ones(len(pages), np.bool_)
    most = min(_BUFFER_BYTES >> PAGE_SHIFT, _MAX_RUNS)
    for at in range(0, len(pages), most):
        part = pages[at : at + most]
        firsts, lengths = (n << np.uint64(PAGE_SHIFT) for n in runs_of(part))
        runs = list(zip(firsts.tolist(), lengths.tolist(), strict=True))
        place = buffer[at << PAGE_SHIFT : (at + len(part)) << PAGE_SHIFT]
        for bad in file.server.read(file, runs, place):
            good[at + bad] = False
    return good


def close(file: Handle) -> None:
    """Close a file."""
    if isinstance(file, int):
        os.close(file)
    elif file.server.close(file):
        for device, server in list(_servers.items()):
            if server is file.server:
                del _servers[device]
