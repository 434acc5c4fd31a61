"""Snapshots of a mirror that runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from redirty.tui.snapshots.mirror_progress import MirrorProgress
from redirty.tui.snapshots.snapshot import ReaderState

_PROGRAM = (sys.executable, "-m", "redirty.collector.cli.main")


@dataclass(frozen=True)
class MirrorCommand:
    """What is to be done. words: the target, as on a command line. to: a directory, or HOST:PORT.
    bandwidth: bytes a second, None without a limit. present_pages: what is to be copied, as known."""

    title: str
    words: tuple[str, ...]
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
        """Whether it goes to another redirty."""
        from redirty.collector.mirror.transport.listener import parse_address

        return parse_address(self.to) is not None

    def command(self) -> list[str]:
        """What does it."""
        found = [*_PROGRAM, "mirror", "--json-lines", *self.words, "--to", self.to]
        found += ["--downtime", f"{self.downtime_s * 1e6:.0f}us"]
        found += ["--arm", self.arm, "--probe", self.probe]
        if self.bandwidth is not None:
            found += ["--bandwidth", f"{self.bandwidth:.0f}B"]
        if self.code_file is not None:
            found += ["--code-file", self.code_file]
        return [*found, "--verify"] if self.verify else found


@dataclass(frozen=True)
class MirrorSnapshot:
    """A mirror at one moment. state: of the reader, as everywhere."""

    number: int
    state: ReaderState
    wish: MirrorCommand
    progress: MirrorProgress
    message: str
    elapsed_s: float
