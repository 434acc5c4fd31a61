"""Runs in the test VM: prints, as JSON, the write faults of a program that makes known ones, as the overview
counts them.

Usage: guest_counts.py DIRECTORY, one on a file system with page_mkwrite.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from redirty.collector.bpf import abi
from redirty.collector.bpf.system_counts import SystemCounts
from redirty.tui.readers.overview import Overview, by_pid
from redirty.tui.snapshots.snapshot import ReaderState

from tests.support.processes import ManagedProcess

PAGES = 1024
_PROGRAM = f"""
import mmap, os, sys
size = {PAGES} * 4096
def write(m):
    for at in range(0, size, 4096):
        m[at] = 1
private = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
private.madvise(15)  # MADV_NOHUGEPAGE
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, size)
shared = mmap.mmap(fd, size)
print("ready", flush=True)
for word in sys.stdin:
    word = word.strip()
    if word == "touch":
        write(private)
    elif word == "shared_file":
        os.fsync(fd)  # what was written is clean, and write-protected, again
        write(shared)
    elif word == "fork":
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(reading, 1)
            os._exit(0)
        write(private)  # each page was shared with the child
        os.write(writing, b"x")
        os.waitpid(child, 0)
        os.close(reading); os.close(writing)
    print(word, flush=True)
"""


class CountedProgram(ManagedProcess):
    """The program whose write faults are counted."""

    def __init__(self, directory: str) -> None:
        words = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(Path(directory, "counts"))]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        super().__init__(process, stop=signal.SIGKILL)
        self._answer()

    def do(self, word: str) -> None:
        """Have it do a step, and wait for its end."""
        assert self._process.stdin is not None
        print(word, file=self._process.stdin, flush=True)
        self._answer()

    def _answer(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise SystemExit("the program ended")


def counted(counts: SystemCounts, pid: int) -> dict[str, int]:
    found = by_pid(counts.read()).get(pid)
    names = abi.COUNTS.names or ()
    return dict.fromkeys(names, 0) if found is None else dict(zip(names, found, strict=True))


def shown(program: CountedProgram) -> dict[str, Any]:
    """Return what the overview's reader publishes while pages of a shared file are written."""
    reader = Overview()
    reader.start()
    try:
        while reader.latest is None or reader.latest.state is not ReaderState.LIVE:
            time.sleep(0.1)
        program.do("shared_file")
        number = reader.latest.number
        while True:
            latest = reader.latest
            row = next((p for p in latest.processes if p.pid == program.pid), None)
            if row is not None and row.write_faults:
                return {
                    "write_faults": row.write_faults, "cow": row.cow, "mkwrite": row.mkwrite,
                }  # fmt: skip
            if latest.number > number + 20:
                raise SystemExit("the overview does not show it")
            time.sleep(0.02)
    finally:
        reader.close()


def main() -> int:
    """Print what was counted in each phase."""
    program = CountedProgram(sys.argv[1])
    counts = SystemCounts()
    phases = {}
    try:
        for word in ("touch", "shared_file", "fork"):
            before = counted(counts, program.pid)
            program.do(word)
            after = counted(counts, program.pid)
            phases[word] = {name: after[name] - before[name] for name in after}
        features = sorted(counts.hooks)
    finally:
        counts.close()
    found = {"features": features, "pages": PAGES, "phases": phases, "shown": shown(program)}
    program.close()
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
