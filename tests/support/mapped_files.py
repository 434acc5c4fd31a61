"""A program that maps files of odd file systems, which it mounts where nobody else sees them.

As a script: KIND (overlay, fuse) SHARING (private, shared) DIRECTORY NAME…: it maps each named file and prints
their addresses; then it answers each line of its input ("copy-up NAME", "map NAME") with a line. It needs
only Python's standard library.

overlay: "one" and "two" lie in two layers, and lists of mappings show both with the same device and inode.
fuse: "one" and "two" too, as their server says so; of "bad" the server cannot read the pages from BAD_PAGE on.
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
from pathlib import Path
from typing import Self

PAGE, PAGES, BAD_PAGE = 4096, 64, 8
CONTENT = {"one": b"1", "two": b"2", "bad": b"b"}
_PYTHON: str = getattr(sys, "_base_executable", None) or sys.executable

_HEADER, _REPLY = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_NODES = {b"one": 2, b"two": 3, b"bad": 4}
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _RELEASE, _FLUSH, _INIT = 1, 2, 3, 14, 15, 18, 25, 26
_BATCH_FORGET, _ACCESS = 42, 34
_ENOENT, _EIO, _ENOSYS = 2, 5, 38


def _mount(source: str, target: Path, kind: str, options: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    target.mkdir(exist_ok=True)
    words = [w.encode() for w in (source, str(target), kind)]
    if libc.mount(*words, ctypes.c_ulong(0), options.encode()):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), f"{kind} {target}")


def _overlay(base: Path) -> Path:
    for name in ("a", "b", "upper"):
        _mount("none", base / name, "tmpfs")
    for layer, name in (("a", "one"), ("b", "two")):
        (base / layer / name).write_bytes(CONTENT[name] * PAGES * PAGE)
    for name in ("files", "work"):
        (base / "upper" / name).mkdir()
    lower, upper, work = f"{base}/a:{base}/b", f"{base}/upper/files", f"{base}/upper/work"
    options = f"lowerdir={lower},upperdir={upper},workdir={work},xino=off"
    _mount("overlay", base / "merged", "overlay", options)
    return base / "merged"


def _attributes(node: int) -> bytes:
    """Return a struct fuse_attr: all files have the same inode number."""
    kind, size = (0o40755, 0) if node == 1 else (0o100644, PAGES * PAGE)
    return struct.pack("<QQQQQQIIIIIIIIII", 7, size, 0, 0, 0, 0, 0, 0, 0, kind, 1, 0, 0, 0, PAGE, 0)


def _answer(operation: int, node: int, body: bytes) -> tuple[int, bytes]:
    """Return (error, body) of a FUSE server's answer."""
    if operation == _INIT:
        return 0, struct.pack("<IIIIHHIIHHI7I", 7, 31, 1 << 16, 0, 8, 8, 1 << 16, 1, *[0] * 10)
    if operation == _LOOKUP:
        found = _NODES.get(body.rstrip(b"\0"))
        if found is None:
            return _ENOENT, b""
        return 0, struct.pack("<QQQQII", found, 0, 1000, 1000, 0, 0) + _attributes(found)
    if operation == _GETATTR:
        return 0, struct.pack("<QII", 1000, 0, 0) + _attributes(node)
    if operation == _OPEN:
        return 0, struct.pack("<QII", 1, 2, 0)  # keep the page cache
    if operation == _READ:
        _, offset, size = struct.unpack_from("<QQI", body)
        if node == _NODES[b"bad"] and offset + size > BAD_PAGE * PAGE:
            return _EIO, b""
        name = next(n for n, number in _NODES.items() if number == node)
        return 0, CONTENT[name.decode()] * min(size, PAGES * PAGE - offset)
    return (0 if operation in (_RELEASE, _FLUSH, _ACCESS) else _ENOSYS), b""


def _serve(device: int) -> None:
    while True:
        try:
            request = os.read(device, 1 << 17)
        except OSError:
            return  # unmounted
        _, operation, unique, node, *_ = _HEADER.unpack_from(request)
        if operation in (_FORGET, _BATCH_FORGET):
            continue
        error, body = _answer(operation, node, request[_HEADER.size :])
        os.write(device, _REPLY.pack(_REPLY.size + len(body), -error, unique) + body)


def _fuse(base: Path) -> Path:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,max_read=4096"
    _mount("redirty-test", base / "merged", "fuse", options)
    if os.fork() == 0:
        # The server is no part of the target, and is killed when that ends.
        ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
        _serve(device)
        os._exit(0)
    os.close(device)
    return base / "merged"


def main() -> None:
    """Run the program."""
    kind, sharing, base = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    flags = mmap.MAP_SHARED if sharing == "shared" else mmap.MAP_PRIVATE
    _mount("none", base, "tmpfs")
    merged = _overlay(base) if kind == "overlay" else _fuse(base)
    areas: dict[int, mmap.mmap] = {}

    def mapped(name: str) -> int:
        with (merged / name).open("rb") as file:
            area = mmap.mmap(file.fileno(), PAGES * PAGE, flags, mmap.PROT_READ)
        for page in range(BAD_PAGE):
            _ = area[page * PAGE]
        # A mapping that is read only lends its address to nobody: the list shows it.
        lines = Path("/proc/self/maps").read_text().splitlines()
        shown = [int(x.split("-")[0], 16) for x in lines if x.endswith(str(merged / name))]
        (address,) = set(shown) - areas.keys()
        areas[address] = area
        return address

    found = {name: mapped(name) for name in sys.argv[4:]}
    print(json.dumps(found), flush=True)
    for line in sys.stdin:
        command, name = line.split()
        if command == "copy-up":
            with (merged / name).open("r+b") as file:
                file.write(b"X" * PAGES * PAGE)
            print(json.dumps(0), flush=True)
        else:
            print(json.dumps(mapped(name)), flush=True)


class MappedFiles:
    """The program above, running. areas: address by name; None: this kernel has no such file system."""

    def __init__(self, kind: str, directory: Path, *names: str, sharing: str = "private") -> None:
        """Start it and wait until it has mapped the files.

        Raises: RuntimeError when the file system cannot be mounted; the message says why.
        """
        words = ["unshare", "-m", _PYTHON, "-I", "-S", __file__, kind, sharing, str(directory)]
        self._process = subprocess.Popen(
            [*words, *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self._errors: list[str] = []
        self._reader = threading.Thread(target=self._read_errors, daemon=True)
        self._reader.start()
        try:
            self.areas: dict[str, int] = json.loads(self._answer())
        except BaseException:
            self.close()
            raise

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        self._errors += self._process.stderr.readlines()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._reader.join()
            raise RuntimeError("".join(self._errors[-1:]).strip())
        return line

    def run(self, command: str, name: str) -> int:
        """Run a command; return the address that it answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command} {name}\n")
        self._process.stdin.flush()
        return int(json.loads(self._answer()))

    def memory(self, address: int) -> list[bytes | None]:
        """Read the pages of an area as the program sees them; None for those that cannot be read."""
        found: list[bytes | None] = []
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
            for page in range(PAGES):
                try:
                    found.append(os.pread(memory.fileno(), PAGE, address + page * PAGE))
                except OSError:
                    found.append(None)
        return found

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


if __name__ == "__main__":
    main()
