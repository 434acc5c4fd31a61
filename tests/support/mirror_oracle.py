"""A finished mirror, read independently of redirty, against the memory of the target, which was left stopped."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PAGE = 4096
_CHUNK = 4 << 20


@dataclass(frozen=True)
class Segment:
    """A PT_LOAD segment. flags: 4 read, 2 write, 1 execute."""

    start: int
    size: int
    offset: int
    in_file: int
    flags: int


class CoreFile:
    """An ELF core file: its segments and notes, and its contents by address."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        head = os.pread(self._fd, 64, 0)
        assert head[:4] == b"\x7fELF", path
        (kind,) = struct.unpack_from("<H", head, 16)
        assert kind == 4, "not a core file"
        (table,) = struct.unpack_from("<Q", head, 32)
        (count,) = struct.unpack_from("<H", head, 56)
        if count == 0xFFFF:
            (at,) = struct.unpack_from("<Q", head, 40)
            (count,) = struct.unpack("<I", os.pread(self._fd, 4, at + 44))
        self.segments: list[Segment] = []
        self.notes = b""
        for i in range(count):
            kind, flags, offset, start, _, size, memory, _ = struct.unpack(
                "<IIQQQQQQ", os.pread(self._fd, 56, table + 56 * i)
            )
            if kind == 1:
                self.segments.append(Segment(start, memory, offset, size, flags))
            elif kind == 4:
                self.notes = os.pread(self._fd, size, offset)

    def threads(self) -> dict[int, tuple[int, int]]:
        """Return the stack pointer and fs_base (x86) of each thread in the NT_PRSTATUS notes, by TID."""
        found, at = {}, 0
        while at < len(self.notes):
            name, size, kind = struct.unpack_from("<III", self.notes, at)
            body = at + 12 + -(-name // 4) * 4
            if kind == 1:
                (tid,) = struct.unpack_from("<i", self.notes, body + 32)
                found[tid] = struct.unpack_from("<Q8xQ", self.notes, body + 112 + 19 * 8)
            at = body + -(-size // 4) * 4
        return found

    def read(self, address: int, size: int) -> bytes:
        """Return the contents at an address, with zeros where the file has none."""
        found = bytearray(size)
        for s in self.segments:
            a, b = max(address, s.start), min(address + size, s.start + s.in_file)
            if a < b:
                data = os.pread(self._fd, b - a, s.offset + a - s.start)
                found[a - address : a - address + len(data)] = data
        return bytes(found)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def mirror_json(directory: Path) -> dict[str, Any]:
    """Return mirror.json of a committed mirror; assert that the directory holds it and its cores only."""
    information: dict[str, Any] = json.loads((directory / "mirror.json").read_text())
    assert information["state"] == "committed"
    names = {p.name for p in directory.iterdir()}
    assert names == {"mirror.json", *information["cores"]}, names
    for path in directory.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path
    return information


def _mappings(pid: int) -> Iterator[tuple[int, int, str, str]]:
    """Yield (start, end, perms, path) of each line of /proc/PID/maps."""
    for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").split("\n"):
        if line:
            bounds, perms, _, _, _, *rest = line.split(None, 5)
            path = rest[0] if rest else ""
            start, end = (int(x, 16) for x in bounds.split("-"))
            yield start, end, perms, path


def _page_by_page(fd: int, address: int, size: int) -> bytes:
    """Read memory, with zeros for pages that cannot be read (beyond the end of a file)."""
    parts = []
    for at in range(address, address + size, _PAGE):
        try:
            parts.append(os.pread(fd, _PAGE, at))
        except OSError:
            parts.append(bytes(_PAGE))
    return b"".join(parts)


def differences(pid: int, core: Path, *, skip: tuple[str, ...] = ()) -> tuple[list[str], int]:
    """Compare a core file with the memory of a stopped process.

    Reading changes nothing in the process but which pages are mapped.

    Returns: a line for each page that differs, and the number of bytes compared.
    """
    file = CoreFile(core)
    found, compared = [], 0
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        by_bounds = []
        for start, end, perms, path in _mappings(pid):
            if path in ("[vsyscall]", "[vvar]", "[vvar_vclock]") or path.startswith(skip or "\0"):
                continue
            by_bounds.append((start, end))
            for at in range(start, end, _CHUNK):
                size = min(_CHUNK, end - at)
                try:
                    ours = os.pread(fd, size, at)
                except OSError:
                    ours = b""
                if len(ours) < size:
                    ours = _page_by_page(fd, at, size)
                theirs = file.read(at, size)
                compared += size
                if ours != theirs:
                    wrong = [
                        i
                        for i in range(0, size, _PAGE)
                        if ours[i : i + _PAGE] != theirs[i : i + _PAGE]
                    ]
                    pairs = [
                        (at + i, ours[i : i + _PAGE], theirs[i : i + _PAGE]) for i in wrong[:5]
                    ]
                    found += [
                        f"{address:#x} {perms} {path} {_bytes_that_differ(a, b)}"
                        for address, a, b in pairs
                        if not _only_rseq(file, address, a, b)
                    ]
        segments = _merged((s.start, s.start + s.size) for s in file.segments)
        if segments != _merged(by_bounds) and not skip:
            found.append(f"the mappings differ: {set(segments) ^ set(_merged(by_bounds))}")
    finally:
        os.close(fd)
        file.close()
    return found, compared


def _bytes_that_differ(ours: bytes, theirs: bytes) -> str:
    """Describe how two pages differ, from the first such byte to the last."""
    wrong = [i for i in range(_PAGE) if ours[i] != theirs[i]]
    part = slice(wrong[0], min(wrong[-1] + 1, wrong[0] + 64))
    return f"{len(wrong)} at {wrong[0]:#x}: is {ours[part].hex()}, mirrored {theirs[part].hex()}"


# The offset of glibc's struct rseq from the thread pointer, which depends on the version; and its size.
_RSEQ, _RSEQ_BYTES = ctypes.c_ssize_t.in_dll(ctypes.CDLL(None), "__rseq_offset").value, 32


def _only_rseq(core: CoreFile, address: int, ours: bytes, theirs: bytes) -> bool:
    """Return whether pages differ only in struct rseq, where the kernel writes the processor of a thread on
    its way to the next stop.
    """
    wrong = [address + i for i in range(_PAGE) if ours[i] != theirs[i]]
    areas = [base + _RSEQ for _, base in core.threads().values()]
    return all(any(0 <= w - area < _RSEQ_BYTES for area in areas) for w in wrong)


def _merged(bounds: Iterator[tuple[int, int]] | list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return sorted ranges with adjacent ones merged."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(bounds):
        if merged and merged[-1][1] == start:
            merged[-1] = merged[-1][0], end
        else:
            merged.append((start, end))
    return merged


def let_run(*pids: int) -> None:
    """Resume targets that a mirror has left stopped."""
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def assert_same_memory(directory: Path, *, skip: tuple[str, ...] = ()) -> int:
    """Assert that every core file of a mirror equals its process's memory byte for byte.

    Returns: the number of bytes compared.
    """
    information = mirror_json(directory)
    total = 0
    for pid, name in zip(information["target"]["pids"], information["cores"], strict=True):
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        assert state == "T", f"process {pid} was left in state {state}"
        found, compared = differences(pid, directory / name, skip=skip)
        core = CoreFile(directory / name)
        frames = _signal_frames(pid, core)
        found = [f for f in found if int(f.split()[0], 16) // _PAGE not in frames]
        assert not found, found[:20]
        tasks = sorted(int(p.name) for p in Path(f"/proc/{pid}/task").iterdir())
        assert sorted(core.threads()) == tasks
        core.close()
        total += compared
    return total


def _signal_frames(pid: int, core: CoreFile) -> set[int]:
    """Return pages that the kernel wrote after the mirror's moment.

    A signal that was pending gets its frame on the stack before SIGSTOP, whose number is higher, stops the
    thread again.
    """
    found: set[int] = set()
    for tid, (before, _) in core.threads().items():
        words = Path(f"/proc/{pid}/task/{tid}/syscall").read_text().split()
        now = int(words[-2], 16) if len(words) > 2 else before
        if now < before < now + (1 << 16):
            found |= set(range(now // _PAGE, before // _PAGE + 1))
    return found
