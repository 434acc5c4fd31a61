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
    "import os; p = os.environ['ARM_SCRIPT']; "
    "exec(compile(open(p).read(), p, 'exec'), {'__name__': '__main__', '__file__': p})"
)


def start_beside(script: str, theirs: socket.socket) -> subprocess.Popen[bytes]:
    """Runs a script of this folder with the bare library; argv[1] is its end of a socket, closed here."""
    process = subprocess.Popen(
        [_PYTHON, "-I", "-S", "-c", _RUN, str(theirs.fileno())],
        env={**os.environ, "ARM_SCRIPT": str(Path(__file__).with_name(script))},
        pass_fds=[theirs.fileno()],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    theirs.close()
    HELPERS.add(process.pid)
    return process


def end_of(process: subprocess.Popen[bytes]) -> None:
    """Waits for it; its number may be another process's from then on."""
    process.wait()
    HELPERS.discard(process.pid)
