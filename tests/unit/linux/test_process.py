"""Who a process is, from files of /proc in which its name may hold anything."""

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
from redirty.collector.linux import process
from redirty.collector.linux.process import Process
from redirty.collector.recording.process_names import ProcessNames

from tests.tiers import require

# What a program can call itself: 15 bytes, and each of these once broke a parser of /proc.
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
    """A Python process that runs code, says so, and waits for its end."""
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
    """A child of this process that calls itself so."""
    with child(f"open('/proc/self/comm', 'wb').write({name.encode()!r})") as program:
        yield program


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_process_may_be_called_anything(name: str) -> None:
    with named(name) as program:
        fields = process._stat_fields(program.pid)
        assert fields[0] in ("S", "R")
        assert int(fields[1]) == os.getpid()
        assert process._status(program.pid)["PPid"] == str(os.getpid())
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
def test_its_name_is_noted_as_it_is(name: str) -> None:
    with named(name) as program:
        family = ProcessNames()
        family.note(program.pid)
        assert family.processes[program.pid]["comm"] == name


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
    """A number that no process has: of one that has just ended and been reaped."""
    program = subprocess.Popen(["true"])
    program.wait()
    return program.pid


def test_no_such_process() -> None:
    pid = free_pid()
    with pytest.raises(NoProcessError, match=f"no process {pid}"):
        Process(pid)
    assert not process.has_memory(pid)
    assert process._stat_fields(pid) == []
    assert process._status(pid) == {}


def test_a_process_that_has_ended_but_not_been_reaped() -> None:
    program = subprocess.Popen(["true"])
    try:
        while Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        with pytest.raises(TargetEndedError, match="ended already"):
            Process(program.pid)
        assert not process.has_memory(program.pid)
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


def test_a_thread_is_no_process() -> None:
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
    seen = kthreadd.exists() and "kthreadd" in kthreadd.read_text()
    require(seen, "needs to see kernel threads (not in a pid namespace)")
    with pytest.raises(RedirtyError, match="kernel thread"):
        Process(2)
    assert not process.has_memory(2)
