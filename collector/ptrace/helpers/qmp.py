"""A QEMU's guest through its QMP socket: stopping it and letting it go on. Bare library: the holder runs it.

Source: QEMU's docs/interop/qmp-spec.rst.
"""

import json
import socket


class QmpError(OSError):
    """It could not be done; the guest is as it was, as far as that can be."""


class Monitor:
    """A connection. Errors: OSError, ValueError, here and in every method."""

    def __init__(self, path: str, timeout_s: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        self._data = b""
        try:
            self._socket.connect(path)
            self._line()  # its greeting
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def _line(self) -> "dict[str, object]":
        while b"\n" not in self._data:
            part = self._socket.recv(65536)
            if not part:
                raise OSError("QEMU closed the connection")
            self._data += part
        line, _, self._data = self._data.partition(b"\n")
        found = json.loads(line)
        if not isinstance(found, dict):
            raise ValueError("this is no QMP socket")
        return found

    def execute(self, command: str, **arguments: object) -> object:
        """What a command returns."""
        request = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._line()
            if "error" in answer:
                raise OSError(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def close(self) -> None:
        self._socket.close()


class StoppedGuest:
    """A guest that was stopped. running: whether it ran before, and is to run again."""

    def __init__(self, path: str, timeout_s: float) -> None:
        self.running = False
        self._monitor: Monitor | None = None
        try:
            self._monitor = Monitor(path, timeout_s)
            status = self._monitor.execute("query-status")
            # before it is stopped: should its answer never come, it is told to go on all the same
            self.running = isinstance(status, dict) and bool(status.get("running"))
            if self.running:
                self._monitor.execute("stop")
        except (OSError, ValueError) as e:
            self.go()
            raise QmpError(f"the guest cannot be stopped through {path}: {e}") from None

    def go(self) -> None:
        """Lets it run again, if it ran before."""
        if self._monitor is None:
            return
        try:
            if self.running:
                self._monitor.execute("cont")
        except (OSError, ValueError):
            pass  # it ended, or QEMU does not listen any more: nothing else can be tried
        self.running = False
        self._monitor.close()
