"""A tracer that dies takes no signal of its target with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from redirty.collector.ptrace.helpers import tracee
from redirty.collector.ptrace.helpers.arch import architecture
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
