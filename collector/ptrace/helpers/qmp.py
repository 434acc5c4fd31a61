"""A QEMU's guest, stopped and resumed through its QMP socket. Run by the freezer with the bare library.

Source: QEMU's docs/interop/qmp-spec.rst.
"""

import json
import socket


class QmpError(OSError):
    """The guest could not be stopped; its former state is restored as far as possible."""


class Monitor:
    """A connection to a QMP socket.

    Raises:
        OSError: The connection failed, or QEMU refused; also by every method.
        ValueError: The answer is not QMP; also by every method.
    """

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
            raise ValueError("not a QMP socket")
        return found

    def execute(self, command: str, **arguments: object) -> object:
        """Run a command; return its result."""
        request = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._line()
            if "error" in answer:
                raise OSError(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class StoppedGuest:
    """A guest that is stopped until resume().

    Attributes:
        running: Whether it ran before, and is to run again.

    Raises:
        QmpError: It cannot be stopped.
    """

    def __init__(self, path: str, timeout_s: float) -> None:
        self.running = False
        self._monitor: Monitor | None = None
        try:
            self._monitor = Monitor(path, timeout_s)
            status = self._monitor.execute("query-status")
            # set before the stop: should the answer never come, the guest is resumed nevertheless
            self.running = isinstance(status, dict) and bool(status.get("running"))
            if self.running:
                self._monitor.execute("stop")
        except (OSError, ValueError) as e:
            self.resume()
            raise QmpError(f"the guest cannot be stopped through {path}: {e}") from None

    def resume(self) -> None:
        """Resume the guest if it ran before."""
        if self._monitor is None:
            return
        try:
            if self.running:
                self._monitor.execute("cont")
        except (OSError, ValueError):
            pass  # QEMU ended or stopped listening: nothing else can be tried
        self.running = False
        self._monitor.close()
