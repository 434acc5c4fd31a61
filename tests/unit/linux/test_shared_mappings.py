"""Shared memory in a list of mappings, and the processes that share it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from redirty.collector.linux.shared_mappings import (
    Identity,
    SharedObject,
    identified,
    identity,
    parse,
    shared_mappings,
)
from redirty.collector.recording.sharers import Sharers

LINES = rb"""55d0c0a00000-55d0c0a02000 r--p 00000000 fd:01 1234   /usr/bin/x
7f0000000000-7f0000001000 rw-s 00000000 00:01 77                         /memfd:a b s (deleted)
7f0000001000-7f0000002000 r--s 00001000 00:01 77                         /memfd:a b s (deleted)
7f0000002000-7f0000003000 r--s 00000000 fd:01 99                         /srv/odd \012name
7f0000003000-7f0000004000 rw-s 00000000 00:01 0                          /SYSV0000abcd (deleted)
7f0000004000-7f0000005000 rw-s 00000000 00:0f 2069                       anon_inode:[perf_event]
7f0000005000-7f0000006000 rw-s 00000000 00:05 12                         /dev/nvidia0
7f0000006000-7f0000007000 rw-s 00000000 00:1a 3                          /dev/shm/sem.x
7f0000007000-7f0000008000 -w-s 00000000 00:01 1024                       /dev/zero (deleted)
7f0000008000-7f0000009000 rw-p 00000000 00:00 0
7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0                          [stack]
"""


def test_lines() -> None:
    assert [(m.shown, m.object) for m in parse(LINES, 5)] == [
        (("00:01", 77, 0), SharedObject("/memfd:a b s (deleted)", True)),
        (("00:01", 77, 0), SharedObject("/memfd:a b s (deleted)", False)),
        (("fd:01", 99, 0), SharedObject("/srv/odd \\012name", False)),
        (("00:01", 0, 5), SharedObject("/SYSV0000abcd (deleted)", True)),
        (("00:1a", 3, 0), SharedObject("/dev/shm/sem.x", True)),
        (("00:01", 1024, 0), SharedObject("/dev/zero (deleted)", True)),
    ]
    first = next(iter(parse(LINES, 5)))
    assert (first.start, first.end) == (0x7F0000000000, 0x7F0000001000)


def test_system_v_memory_of_two_namespaces_is_not_the_same() -> None:
    (one,), (other,) = (
        {m.shown for m in parse(LINES, number) if m.object.path.startswith("/SYSV")}
        for number in (5, 6)
    )
    assert one != other


def own_objects() -> dict[Identity, SharedObject]:
    return identified(os.getpid(), shared_mappings(os.getpid()))


def test_own_objects() -> None:
    """A file that is mapped twice is one object, writable if either mapping is."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(8192))
        file.flush()
        with mmap.mmap(file.fileno(), 8192), mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ):
            mine = [o for o in own_objects().values() if o.path == file.name]
            assert mine == [SharedObject(file.name, True)]
        read = [o for o in own_objects().values() if o.path == file.name]
        assert read == []
    assert shared_mappings(2**22 - 1) == []


def test_names_of_one_file_are_one_identity(tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in ("a", "b", "c"))
    first.write_bytes(b"x")
    second.hardlink_to(first)
    other.write_bytes(b"x")
    assert identity(str(first)) == identity(str(second)) != identity(str(other))
    number = identity(str(other)).inode
    assert number == other.stat().st_ino
    assert identity(str(other)).device == other.stat().st_dev


CHILD = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    how = mmap.ACCESS_WRITE if sys.argv[2] == "w" else mmap.ACCESS_READ
    area = mmap.mmap(file.fileno(), 4096, access=how)
print(flush=True)
sys.stdin.read()
"""


def test_processes_that_share(tmp_path: Path) -> None:
    """Children that share a written file with a target are reported; those that only read one are not."""
    written, read = tmp_path / "written", tmp_path / "read"
    for path in (written, read):
        path.write_bytes(bytes(4096))
    wanted = [(written, "w"), (written, "r"), (written, "w"), (read, "r"), (read, "r")]
    children = [
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", CHILD, str(path), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for path, how in wanted
    ]
    try:
        for child in children:
            assert child.stdout is not None and child.stdout.readline()
        target, reader, writer, idle, _ = (child.pid for child in children)
        started = time.monotonic()
        report = Sharers({target, idle}).finish({target, idle})
        assert time.monotonic() - started < 60
        found = [s for s in report["shared_outside"] if s["path"].startswith(str(tmp_path))]
        comm = Path(f"/proc/{target}/comm").read_text().rstrip("\n")
        both: dict[str, object] = {"comm": comm, "path": str(written)}
        both |= {"target_pid": target, "target_writable": True}
        expected = [{"pid": pid, **both, "writable": pid == writer} for pid in (reader, writer)]
        assert found == (expected if reader < writer else expected[::-1])
        # A process that has joined the target is no longer outside it.
        report = Sharers({target}).finish({target, writer})
        pids = [s["pid"] for s in report["shared_outside"] if s["path"] == str(written)]
        assert pids == [reader]
    finally:
        for child in children:
            child.kill()
            child.communicate()
