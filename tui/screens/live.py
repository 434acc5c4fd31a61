"""The target screen on a running target, with keys for the interval, for writers, and for a mirror of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from redirty.tui.readers.link_watch import LinkWatch
from redirty.tui.readers.live import Live, TopOptions
from redirty.tui.readers.mirror_process import Mirror
from redirty.tui.readers.target import TargetReader
from redirty.tui.screens.mirror import MirrorScreen
from redirty.tui.screens.mirror_confirm import MirrorConfirmScreen, destination
from redirty.tui.screens.prompt import prompt
from redirty.tui.screens.target import TargetScreen
from redirty.tui.snapshots.mirror import MirrorCommand
from redirty.tui.snapshots.snapshot import ReaderState
from textual.binding import Binding, BindingType


class LiveScreen(TargetScreen):
    """The target screen on a running target.

    make_reader() returns a reader of the target; it is called again when tracing restarts.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("minus", "interval(-1)", "interval", id="interval.down", key_display="- +",
                tooltip="- shorter rounds, + longer rounds"),
        Binding("plus,equals_sign", "interval(1)", "longer rounds", show=False, id="interval.up",
                key_display="+"),
        Binding("w", "writers", "writers", show=False, id="writers",
                tooltip="restart tracing with threads and stacks, or without"),
        Binding("m", "mirror", "mirror", id="mirror",
                tooltip="mirror the target's memory; asks for confirmation"),
    ]  # fmt: skip

    def __init__(
        self,
        make_reader: Callable[[TopOptions], Live],
        options: TopOptions,
        view: str = "summary",
        link: LinkWatch | None = None,
    ) -> None:
        self._make_reader = make_reader
        self._options = options
        super().__init__(make_reader(options), view, link)

    @property
    def live(self) -> Live:
        """The reader."""
        reader: TargetReader = self.reader
        assert isinstance(reader, Live)
        return reader

    def action_interval(self, steps: int) -> None:
        """Double the interval (1) or halve it (-1)."""
        self.live.set_interval(self.live.interval_s * 2.0**steps)

    def action_writers(self) -> None:
        """Restart tracing with or without writers: the BPF programs are compiled for either."""
        if self._options.directory is not None:
            self.notify(
                "not possible while recording (-o); stop, then use redirty record --events --stacks",
                severity="warning",
            )
            return
        if self.live.target_is_command:
            self.notify(
                "not possible with -- COMMAND, which ends with its recording", severity="warning"
            )
            return
        self._options = replace(
            self._options, writers=not self._options.writers, interval_s=self.live.interval_s
        )
        self.run_worker(self._restart(), exclusive=True)

    async def _restart(self) -> None:
        old = await self._close_reader()
        self._start_reader(old)
        self.action_view("writers" if self._options.writers else self.view)

    async def _close_reader(self) -> Live:
        """Close the reader, wait until the target is released, and return the reader."""
        old = self.live
        old.on_snapshot = lambda: None
        await asyncio.to_thread(old.close)
        self.forget(old)
        return old

    def _start_reader(self, old: Live) -> None:
        """Start a new reader with the question of the old one."""
        self.reader = self._make_reader(self._options)
        self.reader.question = old.question
        self.reader.on_snapshot = self.waker()
        self.register(self.reader)
        self.reader.start()
        if self.link is not None:
            self.link.close()
            self.link.start(self.reader)

    # ---- mirror ----

    def action_mirror(self) -> None:
        """Ask for a destination and for confirmation, then mirror the target."""
        reason = self._why_no_mirror()
        if reason:
            self.notify(reason, severity="warning")
            return
        title = "mirror to: a new directory, or HOST:PORT"
        prompt(self.app, title, destination, self._confirm_mirror)

    def _why_no_mirror(self) -> str:
        """Return why the target cannot be mirrored; empty if it can."""
        live = self.live
        if self._options.directory is not None:
            return "not possible while recording (-o); stop, then use redirty mirror"
        if live.target_is_command:
            return (
                "not possible with -- COMMAND, which ends with its recording; use redirty mirror -p"
            )
        if live.target is None:
            return "the target is not known yet"
        if live.latest is not None and live.latest.state is ReaderState.ENDED:
            return "the target has ended"
        return ""

    def _confirm_mirror(self, to: str) -> None:
        target = self.live.target
        arguments = None if target is None else target.arguments()
        if target is None or arguments is None:
            return
        s = self.shown
        verdict = "" if s is None or s.convergence is None else s.convergence.verdict
        present = 0 if s is None or not len(s.series) else int(s.series.once("present")[-1])
        command = MirrorCommand(
            title=self.live.about.title,
            target=arguments,
            pids=tuple(target.pids),
            to=to,
            downtime_s=self.live.question.downtime_s,
            arm=self._options.arm,
            probe=self._options.probe,
            present_pages=present,
        )

        def answered(confirmed: MirrorCommand | None) -> None:
            if confirmed is not None:
                self.run_worker(self._mirror(confirmed), exclusive=True)

        self.app.push_screen(MirrorConfirmScreen(command, verdict), answered)

    async def _mirror(self, command: MirrorCommand) -> None:
        mirror = Mirror(command)  # opens pidfds of the processes before they are released
        self._options = replace(self._options, interval_s=self.live.interval_s)
        old = await self._close_reader()  # memory can be write-protected by one tracer only
        await self.app.push_screen(MirrorScreen(mirror), lambda _: self._start_reader(old))
