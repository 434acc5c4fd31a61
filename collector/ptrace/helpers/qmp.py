"""A QEMU's guest, stopped and resumed through its QMP socket. Run by the freezer with the bare library.

Source: QEMU's docs/interop/qmp-spec.rst.
"""

import json
import socket
import time

_MAX_ANSWER_BYTES = 16 << 20  # "info mtree -f" of a large machine has some 100 KiB
_MAX_EVENTS = 10_000  # before an answer


class QmpError(OSError):
    """The guest could not be stopped; its former state is restored as far as possible."""


class Monitor:
    """A connection to a QMP socket. What answers may be any program: its answers are bounded in size and time.

    Attributes:
        until: When all requests end, whatever their own limits (time.monotonic()); None: no such time.

    Raises:
        OSError: The connection failed, QEMU refused, or has not answered in time; also by every method.
        ValueError: The answer is not QMP; also by every method.
    """

    def __init__(self, path: str, timeout_s: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._timeout_s = timeout_s
        self.until: float | None = None
        self._data = bytearray()
        self._start()
        try:
            self._socket.connect(path)
            self._line()  # its greeting
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def _start(self) -> None:
        """Start the time limit of a request."""
        now = time.monotonic()
        self._end = now + self._timeout_s
        if self.until is not None:
            self._end = min(self._end, self.until)
        self._socket.settimeout(max(self._end - now, 0.001))

    def _line(self) -> "dict[str, object]":
        searched = 0
        while (at := self._data.find(b"\n", searched)) < 0:
            searched = len(self._data)
            left_s = self._end - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("timed out")
            self._socket.settimeout(left_s)
            part = self._socket.recv(65536)
            if not part:
                raise OSError("QEMU closed the connection")
            if len(self._data) + len(part) > _MAX_ANSWER_BYTES:
                raise ValueError("an answer without end")
            self._data += part
        line = bytes(self._data[:at])
        del self._data[: at + 1]
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError("not a QMP socket") from None
        if not isinstance(found, dict):
            raise ValueError("not a QMP socket")
        return found

    def execute(self, command: str, **arguments: object) -> object:
        """Run a command; return its result."""
        request = {"execute": command, "arguments": arguments}
        self._start()
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        for _ in range(_MAX_EVENTS):
            answer = self._line()
            if "error" in answer:
                raise OSError(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]
        raise ValueError("events without end")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class StoppedGuest:
    """A guest that is stopped until resume(), within timeout_s in all.

    Attributes:
        running: Whether it ran before, and is to run again.

    Raises:
        QmpError: It cannot be stopped.
    """

    def __init__(self, path: str, timeout_s: float) -> None:
        self.running = False
        self._monitor: Monitor | None = None
        until = time.monotonic() + timeout_s
        try:
            self._monitor = Monitor(path, timeout_s)
            self._monitor.until = until
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
        self._monitor.until = None
        try:
            if self.running:
                self._monitor.execute("cont")
        except (OSError, ValueError):
            pass  # QEMU ended or stopped listening: nothing else can be tried
        self.running = False
        self._monitor.close()
