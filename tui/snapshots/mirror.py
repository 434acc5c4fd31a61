"""Snapshots of a running mirror, and the command that runs it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from redirty.tui.snapshots.mirror_progress import MirrorProgress
from redirty.tui.snapshots.snapshot import ReaderState

# -P: "-m" alone imports from the working directory first, where others may write
_PROGRAM = (sys.executable, "-P", "-m", "redirty.collector.cli.main")


@dataclass(frozen=True)
class MirrorCommand:
    """A redirty mirror to be run.

    Attributes:
        title: the target, for display.
        target: the target as command-line arguments.
        pids: processes that the arguments name.
        to: a directory, or HOST:PORT.
        downtime_s: longest acceptable downtime.
        bandwidth: limit in bytes per second; None: no limit.
        code_file: file with the pairing code of redirty receive.
        verify: compare the mirror with what was sent, when the target runs again.
        arm: arming method.
        probe: probe type.
        present_pages: pages to copy, as far as known; 0: unknown.
    """

    title: str
    target: tuple[str, ...]
    pids: tuple[int, ...]
    to: str
    downtime_s: float
    bandwidth: float | None = None
    code_file: str | None = None
    verify: bool = False
    arm: str = "auto"
    probe: str = "auto"
    present_pages: int = 0

    @property
    def over_network(self) -> bool:
        """True if the destination is another redirty."""
        from redirty.collector.mirror.transport.listener import parse_address

        return parse_address(self.to) is not None

    def argv(self) -> list[str]:
        """Return the command line."""
        found = [*_PROGRAM, "mirror", "--json-lines", *self.target, "--to", self.to]
        found += ["--downtime", f"{self.downtime_s * 1e6:.0f}us"]
        found += ["--arm", self.arm, "--probe", self.probe]
        if self.bandwidth is not None:
            found += ["--bandwidth", f"{self.bandwidth:.0f}B"]
        if self.code_file is not None:
            found += ["--code-file", self.code_file]
        return [*found, "--verify"] if self.verify else found


@dataclass(frozen=True)
class MirrorSnapshot:
    """A mirror at one moment.

    Attributes:
        number: grows with each snapshot.
        state: of the reader.
        command: the mirror that runs.
        progress: its reports so far.
        message: what happened, one line; empty: nothing.
        elapsed_s: seconds since the start.
    """

    number: int
    state: ReaderState
    command: MirrorCommand
    progress: MirrorProgress
    message: str
    elapsed_s: float
