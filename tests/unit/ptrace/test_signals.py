"""A tracer that dies takes no signal of its target with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from redirty.collector.ptrace.helpers import procfs, tracee
from redirty.collector.ptrace.helpers.arch import architecture
from redirty.collector.ptrace.helpers.errors import TraceeError
from redirty.collector.ptrace.helpers.tracee import Tracee

from tests.support.waiting import PATIENCE_S

TARGET = """
import os, signal
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"got"))
os.write(1, b"ready")
while True:
    signal.pause()
"""


@pytest.mark.parametrize("wait", ["poll_stop", "wait_for_stop"])
def test_a_signal_that_the_tracer_saw_is_delivered_after_its_death(wait: str) -> None:
    # Fails where the stop is consumed: the kernel then has nobody to give the signal to.
    with subprocess.Popen([sys.executable, "-c", TARGET], stdout=subprocess.PIPE) as target:
        assert target.stdout is not None
        assert os.read(target.stdout.fileno(), 100) == b"ready"
        tracer = os.fork()
        if tracer == 0:
            _see_a_signal_and_die(target.pid, wait)
        _, status = os.waitpid(tracer, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
        assert os.read(target.stdout.fileno(), 100) == b"got"
        target.kill()


def _see_a_signal_and_die(pid: int, wait: str) -> None:
    """Trace a process, send it a signal, and be killed when its stop for that is seen."""
    try:
        thread = Tracee(pid, architecture(), 0)
        if wait == "wait_for_stop":

            def resume(_request: int, number: int = 0) -> None:
                assert number == signal.SIGUSR1
                os.kill(os.getpid(), signal.SIGKILL)

            thread.resume = resume  # type: ignore[assignment]
            os.kill(pid, signal.SIGUSR1)
            thread.wait_for_stop(PATIENCE_S)
        os.kill(pid, signal.SIGUSR1)
        while not (status := tracee.poll_stop(pid)):
            time.sleep(0.001)
        assert os.WSTOPSIG(status) == signal.SIGUSR1
        os.kill(os.getpid(), signal.SIGKILL)
    finally:
        os._exit(1)


EXECUTES = """
import os, sys, threading, time
def execute():
    os.read(0, 1)
    os.execv(sys.executable, [sys.executable, "-c", "import os, time; os.write(1, b'executed'); time.sleep(1e6)"])
for work in (execute, lambda: time.sleep(1e6)):
    threading.Thread(target=work).start()
while len(os.listdir("/proc/self/task")) < 3:
    time.sleep(0.001)
os.write(1, b"ready")
time.sleep(1e6)
"""


@pytest.mark.parametrize("seize", [False, True])
def test_a_process_can_execute_a_program_while_it_is_traced(seize: bool) -> None:
    # Fails where only the thread that is waited for is reaped, and where none is while a third one is seized: the
    # program waits for the other one's end.
    command = [sys.executable, "-c", EXECUTES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as target:
        assert target.stdout is not None and target.stdin is not None
        assert os.read(target.stdout.fileno(), 100) == b"ready"
        tids = procfs.threads_of(target.pid)
        tracer = os.fork()
        if tracer == 0:
            _wait_for_the_first(tids, target.stdin.fileno(), seize)
        _, status = os.waitpid(tracer, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert os.read(target.stdout.fileno(), 100) == b"executed"
        target.kill()


def _wait_for_the_first(tids: list[int], command: int, seize: bool) -> None:
    """Trace threads, have the process execute a program, and wait for its first thread to stop or end.

    With seize, try first to seize the one that executes it.
    """
    try:
        first, _ = [Tracee(tid, architecture(), 0) for tid in (tids[0], tids[2])]
        os.write(command, b"\n")
        try:
            if seize:
                while not _is_about_to_execute(tids[1]):
                    time.sleep(0.001)
                with contextlib.suppress(OSError):  # the thread is another one by then
                    Tracee(tids[1], architecture(), 0)
                os._exit(0)
            first.wait(None)
        except TraceeError:
            os._exit(0)
    finally:
        os._exit(1)


def _is_about_to_execute(tid: int) -> bool:
    """Return whether a thread waits in the kernel for the others to end."""
    state = procfs.status_field(tid, "State")
    return state.startswith(("D", "Z")) or not state


SIGNALS = """
import os, signal, sys, threading, time
program = "import os, signal, time; signal.signal(signal.SIGALRM, lambda *_: None); " \\
    "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001); os.write(1, b'executed'); time.sleep(1e6)"
def execute():
    os.read(0, 1)
    os.execv(sys.executable, [sys.executable, "-c", program])
threading.Thread(target=execute).start()
while len(os.listdir("/proc/self/task")) < 2:
    time.sleep(0.001)
os.write(1, b"ready")
time.sleep(1e6)
"""


def test_a_thread_that_another_one_has_become_is_stopped() -> None:
    # Fails (hangs) where the stop was requested once, of the thread that had this number before the exec, and
    # where each of the many signals starts the time limit anew.
    command = [sys.executable, "-c", SIGNALS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as target:
        assert target.stdout is not None and target.stdin is not None
        assert os.read(target.stdout.fileno(), 100) == b"ready"
        tids = procfs.threads_of(target.pid)
        tracer = os.fork()
        if tracer == 0:
            try:
                first, _ = [Tracee(tid, architecture(), 0) for tid in tids]
                os.write(target.stdin.fileno(), b"\n")
                first.wait_for_stop(PATIENCE_S)
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(tracer, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        target.kill()
