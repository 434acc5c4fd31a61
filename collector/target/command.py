"""A command that is started so that it can be traced from its first instruction on."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field

from redirty.collector.errors import RedirtyError, why
from redirty.collector.target.targets import WholeProcesses


@dataclass
class Command(WholeProcesses):
    """A child that waits for release() before it runs the command. Its tree is the target.

    Attributes:
        argv: The command line.
        apart: Detach the child from the terminal, which a screen uses: the child has no input, and its output
            is discarded.
        pid: The child's PID.
        status: Its exit status once reaped, as a shell shows it.
    """

    argv: list[str]
    kind = "command"
    pids = ()
    apart: bool = False
    follow_fork: bool = field(default=True, init=False)
    may_join: bool = field(default=False, init=False)
    required: bool = field(default=True, init=False)
    pid: int = field(default=0, init=False)
    status: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        gate_read, self._gate = os.pipe2(os.O_CLOEXEC)
        self._exec_error, error_write = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._gate)
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                if self.apart:
                    os.setsid()
                    null = os.open(os.devnull, os.O_RDWR)
                    for descriptor in range(3):
                        os.dup2(null, descriptor)
                if os.read(gate_read, 1) == b"g":
                    os.execvp(self.argv[0], self.argv)
            except OSError as e:
                os.write(error_write, str(e.errno).encode())
            finally:
                os._exit(127)
        os.close(gate_read)
        os.close(error_write)

    @property
    def description(self) -> str:
        """The command line, quoted for a shell."""
        import shlex

        return shlex.join(self.argv)

    def arguments(self) -> None:
        """See TargetSet."""

    def members(self) -> list[int]:
        """Return the child's PID; see TargetSet."""
        return [self.pid]

    def release(self) -> None:
        """Let the child run the command."""
        os.write(self._gate, b"g")
        os.close(self._gate)
        self._gate = -1

    def check_started(self) -> None:
        """Wait until the child has executed the command; call it after release().

        Raises:
            RedirtyError: The command cannot be run (not found, not executable).
        """
        number = os.read(self._exec_error, 16)
        if number:
            error = OSError(int(number), os.strerror(int(number)))
            os.waitpid(self.pid, 0)
            raise RedirtyError(f"cannot run {self.argv[0]}: {why(error)}")

    def reap(self) -> int | None:
        """Return the exit status once the child has ended, as a shell shows it; None before."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self.status = code if code >= 0 else 128 - code
        return self.status

    def abandon(self) -> None:
        """End the child if it has not executed the command yet."""
        if self._gate >= 0:
            os.close(self._gate)  # the child's read returns, and it exits
            self._gate = -1
            os.waitpid(self.pid, 0)
