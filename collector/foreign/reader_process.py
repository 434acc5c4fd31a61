"""Starts and ends the processes that read what a target controls, and finds out whether one still gets anywhere."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from redirty.collector.linux import helper_pids, procfs

_CPU_TICKS = slice(11, 13)  # utime, stime: proc(5), from the state on
_PYTHON: str = getattr(sys, "_base_executable", None) or sys.executable
_RUN = (
    "import sys; from importlib import import_module; sys.path.append(sys.argv[3]); "
    "import_module('readers.' + sys.argv[4]).main()"
)


class ReaderProcess:
    """A reader that runs. Its other end of a socket is `link`, which carries datagrams.

    Attributes:
        link: the socket, non-blocking.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, module: str, descriptors: Sequence[int] = ()) -> None:
        """Start a module of readers/; it inherits these descriptors, whose numbers are its last arguments."""
        self.link, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link.setblocking(False)
        words = [peer.fileno(), os.getpid(), Path(__file__).parent, module, *descriptors]
        try:
            with peer:
                self._process = subprocess.Popen(
                    [_PYTHON, "-I", "-S", "-c", _RUN, *map(str, words)],
                    pass_fds=[peer.fileno(), *descriptors],
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
        except BaseException:
            self.link.close()
            raise
        helper_pids.add(self._process.pid)
        self._ran: list[str] = []
        self._since = time.monotonic()

    @property
    def pid(self) -> int:
        """PID of the process."""
        return self._process.pid

    def awake(self) -> None:
        """Note that the reader has answered, or is asked for something."""
        self._since = time.monotonic()

    def asleep_s(self) -> float:
        """Return for how long the reader has not run although it is asked for something.

        A reader that only is slow, or that gets no processor, does not count as asleep.
        """
        stat = procfs.read_stat(self._process.pid)
        now = time.monotonic()
        if stat is None or stat.state == "R" or stat.fields[_CPU_TICKS] != self._ran:
            self._ran = [] if stat is None else stat.fields[_CPU_TICKS]
            self._since = now
        return now - self._since

    def end(self) -> None:
        """Kill the process.

        One that waits for a file server in user space ends only when that answers or ends: it is left behind, and
        holds nothing but the file.
        """
        self._process.kill()
        self.link.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            _left_behind.append(self._process)
        helper_pids.discard(self._process.pid)


_END_S = 0.5
# kept, as Python would otherwise wait for them at some time later
_left_behind: list[subprocess.Popen[bytes]] = []
