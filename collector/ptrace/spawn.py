"""Spawns the helper processes that ptrace the targets: the injector, the freezer.

A helper's command line names no path of redirty: "pkill -9 -f redirty" must not hit the one process
that must not die while it holds a target.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from redirty.collector.linux import helper_pids

_PYTHON: str = getattr(sys, "_base_executable", None) or sys.executable
# The environment names the package, since the command line may not.
_RUN = (
    "import os, sys; from importlib import import_module; "
    "sys.path.insert(0, os.environ['HELPERS_PARENT']); "
    "import_module('helpers.' + os.environ['HELPER']).main()"
)


def start_helper(helper: str, peer: socket.socket) -> subprocess.Popen[bytes]:
    """Run a module of helpers/ with the bare library.

    Args:
        helper: The module's name.
        peer: The helper's end of a socket pair, whose descriptor is its argv[1]; closed here.
    """
    with peer:
        process = subprocess.Popen(
            [_PYTHON, "-I", "-S", "-c", _RUN, str(peer.fileno())],
            env={**os.environ, "HELPERS_PARENT": str(Path(__file__).parent), "HELPER": helper},
            pass_fds=[peer.fileno()],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    helper_pids.add(process.pid)
    return process


def reap(process: subprocess.Popen[bytes]) -> None:
    """Wait until a helper has ended; its PID may be reused from then on."""
    process.wait()
    helper_pids.discard(process.pid)
