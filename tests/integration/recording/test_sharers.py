"""Processes outside the target that share memory with it, as the real program names them."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.recorded_run import Recorded
from tests.support.redirty_cli import run_redirty
from tests.tiers import require, require_program
from tests.workloads.driver import Phases

pytestmark = pytest.mark.usefixtures("tracing")

# Maps a file, or a System V segment, writable or read-only; reports it; waits.
MAPS_A_FILE = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    how = mmap.ACCESS_WRITE if sys.argv[2] == "w" else mmap.ACCESS_READ
    area = mmap.mmap(file.fileno(), 4096, access=how)
print(flush=True)
sys.stdin.read()
"""
ATTACHES = """
import ctypes, sys
c = ctypes.CDLL(None, use_errno=True)
c.shmat.restype = ctypes.c_void_p
c.shmat.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
at = c.shmat(int(sys.argv[1]), None, 0o10000 if sys.argv[2] == "r" else 0)
print("no" if at in (None, 2**64 - 1) else "", flush=True)
sys.stdin.read()
"""


class Mapper:
    """A process that runs one of these programs."""

    def __init__(self, program: str, what: object, how: str, wrapper: tuple[str, ...] = ()) -> None:
        self._process = subprocess.Popen(
            [*wrapper, sys.executable, "-I", "-S", "-c", program, str(what), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "\n", "it could not map it"
        self.pid = self._process.pid

    def __enter__(self) -> Mapper:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")


def outside(recorded: Recorded, *pids: int) -> list[dict[str, Any]]:
    """Return what meta.json says of some processes."""
    found: list[dict[str, Any]] = recorded.meta()["shared_outside"]
    return [sharer for sharer in found if sharer["pid"] in pids]


def test_files_memfd_and_shared_anonymous_memory(tmp_path: Path) -> None:
    """Processes that share memory are named: a child by both kinds of anonymous memory, others by a file.

    Of the latter one writes and one reads it. Private memory, and memory that none can write, is not shared.
    """
    areas = {"f": ("file_shared", 1), "m": ("memfd", 1), "s": ("anon_shared", 1)}
    areas |= {"p": ("file_private", 1)}
    with Phases(areas) as phases:
        child = phases.fork()
        file, private = phases.areas["f"].path, phases.areas["p"].path
        with (
            Mapper(MAPS_A_FILE, file, "w") as writer,
            Mapper(MAPS_A_FILE, file, "r") as reader,
            Mapper(MAPS_A_FILE, private, "w") as stranger,
        ):
            with Recorded(tmp_path, "-p", phases.pid) as recorded:
                phases.write("f")
                recorded.pass_rounds()
                with Mapper(MAPS_A_FILE, file, "w") as gone:
                    recorded.pass_rounds()
            pids = (child, writer.pid, reader.pid, stranger.pid, gone.pid)
            found = outside(recorded, *pids)
            by_pid = {pid: [s for s in found if s["pid"] == pid] for pid in pids}
            assert [s["path"] for s in by_pid[child]] == [
                "/dev/zero (deleted)",
                "/memfd:m (deleted)",
                file,
            ]
            assert all(s["writable"] and s["comm"] == "phases" for s in by_pid[child])
            for pid, writable in ((writer.pid, True), (reader.pid, False)):
                (sharer,) = by_pid[pid]
                assert (sharer["path"], sharer["writable"]) == (file, writable)
                assert (sharer["target_pid"], sharer["target_writable"]) == (phases.pid, True)
            assert by_pid[stranger.pid] == by_pid[gone.pid] == []
            text = run_redirty("report", recorded.directory).out
            (line,) = (x for x in text.splitlines() if "can write to it" in x)
            assert f"{child} (phases)" in line and str(writer.pid) in line
            (line,) = (x for x in text.splitlines() if "can read it" in x)
            assert str(reader.pid) in line and str(writer.pid) not in line
            said = json.loads(run_redirty("report", recorded.directory, "--json").out)
            assert [s for s in said["shared_outside"] if s["pid"] in pids] == found


def test_members_are_not_outside(tmp_path: Path) -> None:
    """A child of a tree belongs to it, also one that starts later."""
    with Phases({"m": ("memfd", 1)}) as phases:
        with Recorded(tmp_path, "--tree", phases.pid) as recorded:
            child = phases.fork()
            phases.child_write("m")
            recorded.pass_rounds(3)
        assert outside(recorded, child) == []


def test_system_v_segment(tmp_path: Path) -> None:
    """Processes that attach a System V segment are named; one of another namespace may have the same number."""
    unshare = require_program("unshare", "util-linux")
    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(0, 8192, 0o1600)  # IPC_PRIVATE, IPC_CREAT
    require(segment >= 0, f"needs System V shared memory: {os.strerror(ctypes.get_errno())}")
    try:
        with (
            Mapper(ATTACHES, segment, "w") as target,
            Mapper(ATTACHES, segment, "w") as writer,
            Mapper(ATTACHES, segment, "r") as reader,
            Mapper(OWN_SEGMENT, segment, "w", (unshare, "-i")) as other,
        ):
            with Recorded(tmp_path, "-p", target.pid) as recorded:
                recorded.pass_rounds()
            found = outside(recorded, writer.pid, reader.pid, other.pid)
            wanted = {writer.pid: True, reader.pid: False}
            assert {s["pid"]: s["writable"] for s in found} == wanted
            assert {s["path"] for s in found} == {"/SYSV00000000 (deleted)"}
    finally:
        libc.shmctl(segment, 0, None)  # IPC_RMID


# Creates segments, in a namespace of its own, until one has the number.
OWN_SEGMENT = """
import ctypes, sys
c = ctypes.CDLL(None, use_errno=True)
c.shmat.restype = ctypes.c_void_p
c.shmat.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
wanted = int(sys.argv[1])
open("/proc/sys/kernel/shm_next_id", "w").write(str(wanted))
made = c.shmget(0, 8192, 0o1600)
at = c.shmat(made, None, 0)
print("" if made == wanted and at not in (None, 2**64 - 1) else "no", flush=True)
sys.stdin.read()
c.shmctl(made, 0, None)
"""
