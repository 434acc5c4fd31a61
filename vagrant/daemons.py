"""libvirt, where nothing has started it: on a machine without systemd its daemons are run from here."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vagrant.commands import StepError, run

DAEMONS = ("virtlogd", "libvirtd")
PATIENCE_S = 30.0


def answers() -> bool:
    """Whether libvirt's daemon for the whole system does."""
    try:
        line = ["virsh", "-c", "qemu:///system", "version"]
        done = subprocess.run(line, capture_output=True, timeout=PATIENCE_S, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@contextmanager
def running(leave: bool) -> Iterator[str]:
    """libvirt is there inside the context; yields how that came.

    What was started by hand is ended, unless it is to be left: machines that are kept need it.

    Raises StepError.
    """
    if answers():
        yield "was running"
        return
    if Path("/run/systemd/system").is_dir():
        run(["systemctl", "start", "libvirtd"])
        _wait()
        yield "started by systemd, and left running"
        return
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name in DAEMONS:
            try:
                # In a session of its own, so that an interrupt leaves it to us to end it.
                started.append(
                    subprocess.Popen(
                        [f"/usr/sbin/{name}"],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                )
            except FileNotFoundError as error:
                raise StepError(f"no {error.filename}: run sudo .ci/setup vagrant") from error
        _wait()
        yield "started by hand: no systemd here"
    finally:
        ended = [] if leave else started[::-1]
        for daemon in ended:
            daemon.terminate()
        for daemon in ended:
            try:
                daemon.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _wait() -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not answers():
        if time.monotonic() > deadline:
            raise StepError("libvirtd is started, but does not answer at qemu:///system")
        time.sleep(0.2)
