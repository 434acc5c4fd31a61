"""Processes that a test starts and ends, each by its own PID."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.support.closing import Closing
from tests.support.waiting import PATIENCE_S


def has_ended(pid: int) -> bool:
    """Return whether a process is gone, or a zombie that somebody has still to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


class ManagedProcess(Closing):
    """A child process; leaving its `with` block ends it, by its PID, and reaps it.

    Attributes:
        pid: of the process that was started: a wrapper's own when one runs the program.
    """

    def __init__(
        self,
        process: subprocess.Popen[Any],
        *,
        stop: signal.Signals = signal.SIGTERM,
        grace_s: float = 10.0,
    ) -> None:
        """Take over a started process.

        Args:
            process: the process; nothing else may reap it.
            stop: the signal that asks it to end.
            grace_s: how long it has to end after that, before SIGKILL.
        """
        self._process = process
        self._stop = stop
        self._grace_s = grace_s
        self.pid: int = process.pid

    @property
    def alive(self) -> bool:
        """True as long as the process runs."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has been reaped already."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the end; return the exit status, or minus the signal that killed the process."""
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """End the process by SIGKILL and reap it."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ask the process to end, kill it when it does not within the grace period, and reap it.

        A second call does nothing.
        """
        if self.alive:
            self._request_end()
            try:
                self._process.wait(self._grace_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _request_end(self) -> None:
        self._process.send_signal(self._stop)


def idle_process() -> ManagedProcess:
    """Start a process that sleeps until its `with` block ends."""
    return ManagedProcess(subprocess.Popen(["sleep", "infinity"]))
