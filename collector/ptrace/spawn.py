"""Starting a process beside the collector that holds targets by ptrace: the injector, the holder.

Its command line names no path of ours: "pkill -9 -f redirty" must not hit the one process that may not die
while it holds a target.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from redirty.collector.linux.process import HELPERS

_PYTHON: str = getattr(sys, "_base_executable", None) or sys.executable
_RUN = (
    "import os, sys; from importlib import import_module; "
    "sys.path.insert(0, os.environ['HELPERS_PARENT']); "
    "import_module('helpers.' + os.environ['HELPER']).main()"
)


def start_helper(helper: str, theirs: socket.socket) -> subprocess.Popen[bytes]:
    """Runs a module of helpers/ with the bare library; argv[1] is its end of a socket, closed here."""
    process = subprocess.Popen(
        [_PYTHON, "-I", "-S", "-c", _RUN, str(theirs.fileno())],
        env={**os.environ, "HELPERS_PARENT": str(Path(__file__).parent), "HELPER": helper},
        pass_fds=[theirs.fileno()],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    theirs.close()
    HELPERS.add(process.pid)
    return process


def reap(process: subprocess.Popen[bytes]) -> None:
    """Waits for it; its number may be another process's from then on."""
    process.wait()
    HELPERS.discard(process.pid)
