"""Starts libvirt if it does not run: on a machine without systemd, its daemons are started from here."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vagrant.commands import StepError, run

DAEMONS = ("virtlogd", "libvirtd")
TIMEOUT_S = 30.0


def answers() -> bool:
    """Return True if libvirt's system daemon answers."""
    try:
        line = ["virsh", "-c", "qemu:///system", "version"]
        done = subprocess.run(line, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@contextmanager
def running(leave: bool) -> Iterator[str]:
    """Keep libvirt running inside the context; yield how it was started.

    Args:
        leave: do not end the daemons that were started here: machines that are kept need them.

    Raises:
        StepError: libvirt cannot be started.
    """
    if answers():
        yield "was running"
        return
    if Path("/run/systemd/system").is_dir():
        run(["systemctl", "start", "libvirtd"])
        _wait()
        yield "started by systemd, left running"
        return
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name in DAEMONS:
            try:
                # In a session of its own, so that ctrl+c does not end it before the machines.
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
        yield "started directly: no systemd on this machine"
    finally:
        ended = [] if leave else started[::-1]
        for daemon in ended:
            daemon.terminate()
        for daemon in ended:
            try:
                daemon.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _wait() -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not answers():
        if time.monotonic() > deadline:
            raise StepError("libvirtd was started, but does not answer at qemu:///system")
        time.sleep(0.2)
