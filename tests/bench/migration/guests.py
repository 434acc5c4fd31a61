"""Emulated machines that can migrate: each a QEMU with a monitor, started to boot or as a destination.

A guest's program reports its state from time to time, as a JSON line on the console: the writes it has made
(`writes`), and how much of its memory is wrong (`wrong`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.bench.migration.qmp import Qmp, QmpError
from tests.bench.migration.workloads import Workload
from tests.support.servers import guest
from tests.vm.kernels import Kernel

_BOOT_S = 300.0
_POLL_S = 0.1
# QEMU 7.2 loses writes of an emulated guest that migrates, and the guest dies of it: when it
# reads the dirty bits of whole pieces of 256 KiB (cpu_physical_memory_sync_dirty_bitmap) it leaves the
# emulated TLB unchanged, and pages writable there are written unseen. Memory that is not a multiple of
# that is read page by page, which is correct: 8 KiB, the least that QEMU accepts, are left out.
_ODD_KIB = 8
# Read so, each dirty page costs a walk over the emulated TLB, which is small when it is emptied often:
# page-table isolation empties it at every entry to the guest's kernel.
_APPEND = "pti=on"
Line = Mapping[str, Any]


class GuestError(RuntimeError):
    """A guest failed; the message ends with the last of its console."""


class Machine:
    """A QEMU process. Leaving its `with` block ends it.

    Attributes:
        pid: of QEMU.
        qmp: its monitor.
        control: the socket of a second monitor, which nothing here uses.
        uri: where it waits for a migration.
    """

    def __init__(
        self,
        work: Path,
        number: int,
        kernel: Kernel,
        load: Workload,
        *,
        arriving: bool = False,
        uri: str | None = None,
        wrapper: Sequence[object] = (),
    ) -> None:
        """Start it.

        Args:
            work: the directory in which its own is created.
            number: distinguishes it from others there.
            arriving: it does not boot, but waits for an incoming migration.
            uri: where, for QEMU (default: a unix socket).
            wrapper: a command that runs it.
        """
        directory = work / f"machine{number}"
        directory.mkdir()
        monitor, self.control = directory / "monitor", directory / "control"
        self.uri = uri or f"unix:{directory / 'incoming'}"
        more = ["-qmp", f"unix:{monitor},server=on,wait=off"]
        more += ["-qmp", f"unix:{self.control},server=on,wait=off"]
        more += ["-m", f"{load.memory_mib * 1024 - _ODD_KIB}K"]
        if arriving:
            more += ["-incoming", self.uri]
        archive = load.initramfs(directory / "initramfs")
        append = f"{_APPEND} {load.append}"
        self._server = guest(directory, kernel.image, archive, append, more=more, wrapper=wrapper)
        self.pid = self._server.pid
        try:
            self.qmp = Qmp(monitor, lambda: self._server.alive)
        except QmpError as e:
            self._server.close()
            raise GuestError(self._explained(str(e))) from e

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, in whatever state."""
        self.qmp.close()
        self._server.close()

    def lines(self) -> list[Line]:
        """Return what the guest's program has reported here, oldest first."""
        return progress(self._server.text())

    def wait_lines(self, count: int, timeout_s: float = _BOOT_S) -> list[Line]:
        """Wait until it has reported `count` more lines.

        Raises: GuestError.
        """
        wanted = len(self.lines()) + count
        deadline = time.monotonic() + timeout_s
        while len(found := self.lines()) < wanted:
            if not self._server.alive:
                raise GuestError(self._explained("QEMU ended"))
            if time.monotonic() > deadline:
                raise GuestError(self._explained(f"nothing from the guest in {timeout_s:g} s"))
            time.sleep(_POLL_S)
        return found

    def _explained(self, problem: str) -> str:
        return f"{problem}: {self._server.text()[-1000:]!r}"


def progress(console: str) -> list[Line]:
    """Return the progress lines of a console, whose text may start and end in the middle of one."""
    found = []
    for line in console.splitlines(keepends=True):
        if line.startswith('{"event":"progress"') and line.endswith("\n"):
            found.append(json.loads(line))
    return found
