"""The build of the workload programs, and the base of their drivers: a line and an answer at a time."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.processes import ManagedProcess
from tests.support.waiting import PATIENCE_S

HERE = Path(__file__).resolve().parent

Answer = dict[str, Any]
"""One line of JSON. Its fields depend on the command; the drivers give the common ones types."""


class WorkloadError(RuntimeError):
    """A workload answered with an error, ended early, or gave no answer in time."""


@functools.cache
def build() -> Path:
    """Run make, once per process, and return the directory of the programs.

    With REDIRTY_WORKLOADS_SAN=thread,undefined they are built with these sanitizers, in a directory of their own.
    """
    sanitizers = os.environ.get("REDIRTY_WORKLOADS_SAN", "")
    directory = HERE / "build" / sanitizers.replace(",", "-")
    if (directory / "phases").exists() and not os.access(directory, os.W_OK):
        return directory  # built before, outside of the VM that sees this checkout read-only
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        # Several test processes may want the programs at the same time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = subprocess.run(
            ["make", "-s", "-C", str(HERE), f"BUILD={directory}", f"SAN={sanitizers}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if result.returncode:
        raise WorkloadError(f"building the workloads failed:\n{result.stdout}")
    return directory


class Program(ManagedProcess):
    """A running workload program.

    Attributes:
        name: of the program.
        pid: of the process that was started: of the wrapper, when that forks (into a PID namespace, say).
        greeting: its first answer; greeting["pid"] is always its own PID, as the program sees it.
    """

    def __init__(
        self, name: str, arguments: Sequence[object] = (), *, wrapper: Sequence[str] = ()
    ) -> None:
        command = [*wrapper, str(build() / name), *map(str, arguments)]
        self.name = name
        self._buffer = bytearray()
        # A file, not a pipe: it is not read while the program runs, and a full pipe would block it.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0
        )
        super().__init__(process, grace_s=5)
        try:
            self.greeting = self.receive()
        except BaseException:
            self.close()
            raise

    def send(self, *words: object) -> None:
        """Send one command without waiting for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        except BrokenPipeError:
            raise WorkloadError(self._obituary()) from None

    def receive(self, timeout_s: float = PATIENCE_S) -> Answer:
        """Wait for one answer.

        Raises: WorkloadError on an error answer, at the program's end, or after `timeout_s`.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise WorkloadError(f"{self.name} gave no answer within {timeout_s} s")
            data = os.read(descriptor, 1 << 20)
            if not data:
                raise WorkloadError(self._obituary())
            self._buffer += data
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise WorkloadError(f"{self.name}: {answer['error']}")
        return answer

    def command(self, *words: object, timeout_s: float = PATIENCE_S) -> Answer:
        """Send one command and return its answer."""
        self.send(*words)
        return self.receive(timeout_s)

    def close(self) -> None:
        """End the program and reap it. A second call does nothing."""
        super().close()
        self._stderr.close()

    def _request_end(self) -> None:
        """Close the program's input, on which every workload program ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _obituary(self) -> str:
        status = self._process.wait(PATIENCE_S)
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip()
        return f"{self.name} ended with status {status}" + (f": {said}" if said else "")


class ProgramWithFiles(Program):
    """A program with files, in `directory` or in a temporary one."""

    def __init__(self, directory: Path | str | None) -> None:
        self._temporary = (
            tempfile.TemporaryDirectory(prefix="workload-") if directory is None else None
        )
        self.directory = Path(self._temporary.name if self._temporary else str(directory))

    def _start(self, name: str, arguments: Sequence[object], wrapper: Sequence[str]) -> None:
        Program.__init__(self, name, arguments, wrapper=wrapper)

    def close(self) -> None:
        """End the program and remove its temporary directory."""
        super().close()
        if self._temporary:
            self._temporary.cleanup()
