"""A command started so that it can be traced from its first instruction on."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field

from redirty.collector.errors import RedirtyError, why
from redirty.collector.target.targets import WholeProcesses


@dataclass
class Command(WholeProcesses):
    """A child that waits, before it runs the command, until release(). Its tree is the target."""

    argv: list[str]
    kind = "command"
    pids = ()
    apart: bool = (
        False  # from the terminal, which a screen has: nothing to read, its output goes nowhere
    )
    follow_fork: bool = field(default=True, init=False)
    may_join: bool = field(default=False, init=False)
    required: bool = field(default=True, init=False)
    pid: int = field(default=0, init=False)
    status: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        gate_read, self._gate = os.pipe2(os.O_CLOEXEC)
        self._trouble, trouble_write = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._gate)
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
                if self.apart:
                    os.setsid()
                    nowhere = os.open(os.devnull, os.O_RDWR)
                    for descriptor in range(3):
                        os.dup2(nowhere, descriptor)
                if os.read(gate_read, 1) == b"g":
                    os.execvp(self.argv[0], self.argv)
            except OSError as e:
                os.write(trouble_write, str(e.errno).encode())
            finally:
                os._exit(127)
        os.close(gate_read)
        os.close(trouble_write)

    @property
    def description(self) -> str:
        """The command line."""
        import shlex

        return shlex.join(self.argv)

    def arguments(self) -> None:
        """See TargetSet."""

    def members(self) -> list[int]:
        """See TargetSet."""
        return [self.pid]

    def release(self) -> None:
        """Lets the child run the command."""
        os.write(self._gate, b"g")
        os.close(self._gate)
        self._gate = -1

    def check_started(self) -> None:
        """To be called after release(), once the child has run the command or failed to.

        Errors: RedirtyError (not found, not executable).
        """
        number = os.read(self._trouble, 16)
        if number:
            error = OSError(int(number), os.strerror(int(number)))
            os.waitpid(self.pid, 0)
            raise RedirtyError(f"cannot run {self.argv[0]}: {why(error)}")

    def reap(self) -> int | None:
        """Its exit status once it has ended, as the shell shows it; None before."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self.status = code if code >= 0 else 128 - code
        return self.status

    def abandon(self) -> None:
        """Ends the child if it has not run the command yet."""
        if self._gate >= 0:
            os.close(self._gate)  # its read ends, and so does it
            self._gate = -1
            os.waitpid(self.pid, 0)
