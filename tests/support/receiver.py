"""A `redirty receive` in the background, and a wire to it that a test can cut."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes import ManagedProcess
from tests.support.redirty_cli import REDIRTY, ProgramError
from tests.support.waiting import PATIENCE_S, wait_until


class Receive(ManagedProcess):
    """Runs `redirty receive`.

    Attributes:
        log: the file with its output.
        port: the port it listens on.
    """

    def __init__(self, to: Path, log: Path, *more: object, port: int = 0) -> None:
        self.log = log
        with log.open("wb") as out:
            process = subprocess.Popen(
                [REDIRTY, "receive", "--listen", f"127.0.0.1:{port}", "--to", to, *map(str, more)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=0,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        super().__init__(process)
        wait_until(lambda: self._port() or not self.alive, "listening")
        if not self._port():
            raise ProgramError(f"receive ended: {self.text()}")
        self.port = self._port()

    def _port(self) -> int:
        match = re.search(r"listening on .*:(\d+)", self.text())
        return int(match[1]) if match else 0

    def text(self) -> str:
        """Return what it has printed."""
        return self.log.read_text(errors="replace")

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end, assert that it printed no internal error, and return its exit code."""
        code = super().wait(timeout_s)
        assert "Traceback" not in self.text(), self.text()
        assert "internal error" not in self.text(), self.text()
        return code


@contextlib.contextmanager
def receive(to: Path, log: Path, *more: object, port: int = 0) -> Iterator[Receive]:
    """Run `redirty receive`; it ends with the block."""
    running = Receive(to, log, *more, port=port)
    try:
        yield running
    finally:
        running.close()


class Wire:
    """Forwards a port to another one.

    Attributes:
        to: the port that connections are forwarded to.
        port: the port that it listens on.
        passed: bytes forwarded to `to`.
    """

    def __init__(self, to: int) -> None:
        self.to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._held_until = 0.0
        self.passed = 0
        self._open = True
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while self._open:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs.append((near, far))
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        try:
            while True:
                while time.monotonic() < self._held_until:
                    time.sleep(0.01)
                for one in select.select([near, far], [], [], 0.5)[0]:
                    data = one.recv(65536)
                    if not data:
                        raise OSError
                    (far if one is near else near).sendall(data)
                    self.passed += len(data) if one is near else 0
        except (OSError, ValueError):
            near.close()
            far.close()

    def cut(self) -> None:
        """Break all connections."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def hold(self, seconds: float) -> None:
        """Forward nothing for a while."""
        self._held_until = time.monotonic() + seconds

    def close(self) -> None:
        """Break all connections and accept no more."""
        self._open = False
        self._listener.close()
        self.cut()
