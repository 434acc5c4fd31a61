"""Processes, identified by files of /proc in which their name may hold anything."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redirty.collector.errors import NoProcessError, RedirtyError, TargetEndedError
from redirty.collector.linux import process, procfs
from redirty.collector.linux.process import Process
from redirty.collector.recording.process_names import ProcessNames

from tests.tiers import require

# Names that a program can give itself: 15 bytes, and each of these once broke a parser of /proc.
NAMES = [
    "x) R 1 (",
    ") (",
    "a b c",
    "((",
    "))",
    "S\n(Z) 1 2",
    "x\rState:\tZ",
    "x\x0bState:\tZ",
    "\\)",
]


@contextmanager
def child(code: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python process that executes code, says so, and waits for its end."""
    program = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nprint(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        program.stdout.readline()
        yield program
    finally:
        program.kill()
        program.communicate()


@contextmanager
def named(name: str) -> Iterator[subprocess.Popen[str]]:
    """Run a child of this process that gives itself a name."""
    with child(f"open('/proc/self/comm', 'wb').write({name.encode()!r})") as program:
        yield program


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_process_may_be_called_anything(name: str) -> None:
    with named(name) as program:
        stat = procfs.read_stat(program.pid)
        assert stat is not None
        assert stat.comm == name
        assert stat.state in ("S", "R")
        assert not stat.ended and not stat.kernel_thread
        assert stat.parent == os.getpid()
        status = procfs.read_status(program.pid)
        assert status["PPid"] == str(os.getpid())
        assert status["State"][0] in ("S", "R")
        assert procfs.status_field(program.pid, "PPid") == str(os.getpid())
        assert procfs.status_field(program.pid, "State") in ("S (sleeping)", "R (running)")
        assert procfs.status_kib(program.pid, "VmRSS") > 0
        assert procfs.read_comm(program.pid) == name
        assert process.has_memory(program.pid)
        assert program.pid in process.descendants(os.getpid())
        held = Process(program.pid)
        try:
            assert held.alive()
            assert "State" not in held.comm or held.comm.startswith("x")
            assert held.cmdline[0] == sys.executable
        finally:
            held.close()


@pytest.mark.parametrize("name", [*NAMES, "x\r", "\n\n", " x\n"], ids=repr)
def test_the_name_of_a_process_is_recorded_unchanged(name: str) -> None:
    with named(name) as program:
        family = ProcessNames()
        family.note(program.pid)
        assert family.processes[program.pid]["comm"] == name


def test_status_fields_are_found_by_their_whole_name() -> None:
    text = b"Name:\tx\\nTgid:\t9\rTgid:\t8\nUmask:\t0022\nTgid:\t7\nNStgid:\t6\n"
    assert procfs.find_field(text, "Tgid") == "7"
    assert procfs.find_field(text, "Name") == "x\\nTgid:\t9\rTgid:\t8"
    assert procfs.find_field(text, "gid") == ""
    assert procfs.parse_status(text) == {
        "Name": "x\\nTgid:\t9\rTgid:\t8",
        "Umask": "0022",
        "Tgid": "7",
        "NStgid": "6",
    }
    assert procfs.find_field(b"", "Tgid") == ""
    assert procfs.parse_status(b"") == {}


def test_a_stat_file_that_is_cut_short_has_no_fields() -> None:
    assert procfs.parse_stat(b"") is None
    assert procfs.parse_stat(b"7 (x) S 1 2") is None
    assert procfs.split_stat(b"7 (a) b) S 1 2") == ("a) b", ["S", "1", "2"])


def test_arguments_are_split_at_their_terminators() -> None:
    words = ["-c", "import sys; print(flush=True); input()", "a b", "", "ä\n", ""]
    program = subprocess.Popen(
        [sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert program.stdout is not None
        program.stdout.readline()
        assert procfs.read_cmdline(program.pid) == [sys.executable, *words[:-1]]
        assert Process(program.pid).cmdline == [sys.executable, *(w for w in words if w)]
    finally:
        program.communicate("\n")


def test_the_first_thread_may_end_before_the_others() -> None:
    """The first thread is a zombie then, while its process still runs and has memory."""
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "print(flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        program.stdout.readline()
        while (stat := procfs.read_stat(program.pid)) is not None and not stat.ended:
            time.sleep(0.01)
        (other,) = {int(t) for t in os.listdir(f"/proc/{program.pid}/task")} - {program.pid}  # noqa: PTH208
        running = procfs.read_stat(f"{program.pid}/task/{other}")
        assert running is not None and not running.ended
        assert process.lives(program.pid)
    finally:
        program.kill()
        program.communicate()


def test_descendants_of_descendants() -> None:
    code = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
        "print(p.pid, end='')"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nprint(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stdout is not None
        grandchild = int(program.stdout.readline())
        found = process.descendants(os.getpid())
        assert {program.pid, grandchild} <= set(found)
        assert os.getpid() not in found
        assert process.descendants(program.pid) == [grandchild]
        assert process.descendants(grandchild) == []
    finally:
        program.communicate("\n")


def free_pid() -> int:
    """Return a PID without a process: of one that has just ended and been reaped."""
    program = subprocess.Popen(["true"])
    program.wait()
    return program.pid


def test_no_such_process() -> None:
    pid = free_pid()
    with pytest.raises(NoProcessError, match=f"no process {pid}"):
        Process(pid)
    assert not process.has_memory(pid)
    assert procfs.read_stat(pid) is None
    assert procfs.read_status(pid) == {}
    assert procfs.status_field(pid, "State") == ""
    assert procfs.status_kib(pid, "VmRSS") == 0
    assert procfs.read_comm(pid) is None
    assert procfs.read_cmdline(pid) is None
    assert pid not in procfs.pids()


def test_a_process_that_has_ended_but_not_been_reaped() -> None:
    program = subprocess.Popen(["true"])
    try:
        while Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        with pytest.raises(TargetEndedError, match="ended already"):
            Process(program.pid)
        assert not process.has_memory(program.pid)
        assert procfs.read_cmdline(program.pid) == []
    finally:
        program.wait()


def test_a_held_process_tells_when_it_ends() -> None:
    with named("held") as program:
        held = Process(program.pid)
        try:
            assert held.alive()
            program.kill()
            program.wait()
            assert not held.alive()
        finally:
            held.close()
            held.close()  # a second time does nothing


def test_a_thread_is_not_a_process() -> None:
    code = (
        "import threading, time\n"
        "t = threading.Thread(target=time.sleep, args=(60,), daemon=True); t.start()"
    )
    with child(code) as program:
        (thread,) = {int(t) for t in os.listdir(f"/proc/{program.pid}/task")} - {program.pid}  # noqa: PTH208
        with pytest.raises(RedirtyError, match=f"-p {program.pid}"):
            Process(thread)


def test_a_kernel_thread() -> None:
    kthreadd = Path("/proc/2/status")
    visible = kthreadd.exists() and "kthreadd" in kthreadd.read_text()
    require(visible, "needs to see kernel threads (not in a PID namespace)")
    with pytest.raises(RedirtyError, match="kernel thread"):
        Process(2)
    assert not process.has_memory(2)
