"""Bounds what a reader process may use, and lets it end with the process that started it."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys

_PR_SET_PDEATHSIG = 1


def link(memory_bytes: int) -> socket.socket:
    """Bound this process, and return its end of the socket that its command line names.

    memory_bytes: limit of its address space.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[2]):
        os._exit(1)
    for what, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (value, hard))
    return socket.socket(fileno=int(sys.argv[1]))
