"""Reads perf maps: files in which a program with a JIT compiler lists the functions that it made.

Anybody may leave such a file for any process, so it must belong to the process's user or to root. Used by the
symbol reader, with Python's standard library only. Source: tools/perf/Documentation/jit-interface.txt.
"""

from __future__ import annotations

import time
from bisect import bisect_right

from .target_files import RegularFile, open_below

_MAX_BYTES = 256 << 20
_MAX_ROWS = 1_000_000
_MAX_LINE_BYTES = 4096
_PAUSE = 10  # times as long as the last reading took: a map may change all the time


def parse(content: bytes) -> list[tuple[int, int, bytes]]:
    """Parse a perf map into (start, size, name), ascending; lines that are none are left out."""
    found: list[tuple[int, int, bytes]] = []
    at = 0
    while at < len(content) and len(found) < _MAX_ROWS:
        end = content.find(b"\n", at)
        end = len(content) if end < 0 else end
        words = content[at : min(end, at + _MAX_LINE_BYTES)].split(None, 2)
        at = end + 1
        try:
            found.append((int(words[0], 16), int(words[1], 16), words[2].rstrip()))
        except (IndexError, ValueError):
            continue
    found.sort()
    return found


class PerfMap:
    """The perf maps of one process, read again when they have changed."""

    def __init__(self, pid: int, inner_pid: int, owner: int) -> None:
        """Name the process: its PID here, its PID in its own namespace, and its user ID."""
        self._places = [
            (f"/proc/{pid}/root", f"tmp/perf-{inner_pid}.map"),
            ("/", f"tmp/perf-{pid}.map"),
        ]
        self._owners = {0, owner}
        self._known: dict[int, object] = {}
        self._due = 0.0
        self._rows: list[list[tuple[int, int, bytes]]] = [[], []]

    def _refresh(self) -> None:
        started = time.monotonic()
        if started < self._due:
            return
        for number, place in enumerate(self._places):
            try:
                file = open_below(*place)
            except OSError:  # none, or no regular file
                continue
            try:
                if file.owner in self._owners and self._known.get(number) != file.identity:
                    self._rows[number] = self._read(file)
                    self._known[number] = file.identity
            finally:
                file.close()
        now = time.monotonic()
        self._due = now + _PAUSE * (now - started)

    def _read(self, file: RegularFile) -> list[tuple[int, int, bytes]]:
        try:
            return parse(file.read(0, min(file.size, _MAX_BYTES)))
        except OSError:
            return []

    def name_at(self, address: int) -> bytes:
        """Return the name of the function at an address; empty if there is none."""
        found = self._find(address)
        if not found:
            self._refresh()
            found = self._find(address)
        return found

    def _find(self, address: int) -> bytes:
        for rows in self._rows:
            at = bisect_right(rows, (address, 1 << 64, b"")) - 1
            if at >= 0 and address < rows[at][0] + rows[at][1]:
                return rows[at][2]
        return b""
