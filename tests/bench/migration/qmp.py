"""A client of QEMU's monitor: a handful of commands, one after the other, over a unix socket.

The `qemu.qmp` of PyPI is well maintained, but asyncio throughout; for one command at a time it would need more code
than this. Protocol: QEMU's docs/interop/qmp-spec.rst.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_POLL_S = 0.02


class QmpError(RuntimeError):
    """QEMU refused a command, or has ended; the message is QEMU's."""


class Qmp:
    """A monitor connection.

    Raises: QmpError, here and in every method.
    """

    def __init__(self, path: Path, alive: Callable[[], bool], timeout_s: float = 30) -> None:
        self._socket = _connected(path, alive, timeout_s)
        self._socket.settimeout(timeout_s)
        self._file = self._socket.makefile("rb")
        try:
            self._message()  # the greeting
            self.ask("qmp_capabilities")
        except QmpError:
            self.close()
            raise

    def ask(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Return a command's answer."""
        request = {"execute": command, "arguments": dict(arguments or {})}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as e:
            raise QmpError(f"{command}: {e}") from e
        while True:
            message = self._message()
            if "error" in message:
                raise QmpError(f"{command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]
            # else an event, which comes at any time

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self._socket.close()

    def _message(self) -> dict[str, Any]:
        try:
            line = self._file.readline()
        except OSError as e:
            raise QmpError(f"no answer: {e}") from e
        if not line:
            raise QmpError("QEMU is gone")
        message: dict[str, Any] = json.loads(line)
        return message


def _connected(path: Path, alive: Callable[[], bool], timeout_s: float) -> socket.socket:
    deadline = time.monotonic() + timeout_s
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError as e:
            connection.close()
            if not alive() or time.monotonic() > deadline:
                raise QmpError(f"no monitor at {path}: {e}") from e
            time.sleep(_POLL_S)
        else:
            return connection
