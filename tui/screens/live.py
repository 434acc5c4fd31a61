"""The target screen over a running target: with keys for the interval, for threads and stacks, and for a
mirror of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from redirty.tui.readers.link_watch import LinkWatch
from redirty.tui.readers.live import Live, TopOptions
from redirty.tui.readers.mirror_process import Mirror, pids_of, words_of
from redirty.tui.readers.target import TargetReader
from redirty.tui.screens.mirror import MirrorScreen
from redirty.tui.screens.mirror_confirm import MirrorConfirmScreen, destination
from redirty.tui.screens.prompt import prompt
from redirty.tui.screens.target import TargetScreen
from redirty.tui.snapshots.mirror import MirrorCommand
from redirty.tui.snapshots.snapshot import ReaderState
from textual.binding import Binding, BindingType


class LiveScreen(TargetScreen):
    """begin: makes a reader of the target, again when threads and stacks are asked for."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("minus", "interval(-1)", "interval", id="interval.down", key_display="- +",
                tooltip="- shorter rounds, + longer ones"),
        Binding("plus,equals_sign", "interval(1)", "longer rounds", show=False, id="interval.up",
                key_display="+"),
        Binding("w", "writers", "who", show=False, id="writers",
                tooltip="trace anew with threads and stacks, or without"),
        Binding("m", "mirror", "mirror", id="mirror",
                tooltip="mirror the target's memory, after a question"),
    ]  # fmt: skip

    def __init__(
        self,
        begin: Callable[[TopOptions], Live],
        wanted: TopOptions,
        view: str = "summary",
        link: LinkWatch | None = None,
    ) -> None:
        self._begin = begin
        self._wanted = wanted
        super().__init__(begin(wanted), view, link)

    @property
    def live(self) -> Live:
        """The reader."""
        reader: TargetReader = self.reader
        assert isinstance(reader, Live)
        return reader

    def action_interval(self, steps: int) -> None:
        """Twice as long, or half."""
        self.live.set_interval(self.live.interval_s * 2.0**steps)

    def action_writers(self) -> None:
        """Begins anew: what is traced is compiled into the BPF programs."""
        if self._wanted.directory is not None:
            self.notify(
                "not while recording (-o): end it, then redirty record --events --stacks",
                severity="warning",
            )
            return
        if self.live.target_is_command:
            self.notify("not with -- COMMAND, which ends with its recording", severity="warning")
            return
        self._wanted = replace(
            self._wanted, writers=not self._wanted.writers, interval_s=self.live.interval_s
        )
        self.run_worker(self._anew(), exclusive=True)

    async def _anew(self) -> None:
        old = await self._let_go()
        self._go_on(old)
        self.action_view("writers" if self._wanted.writers else self.view)

    async def _let_go(self) -> Live:
        """Ends the reader, and waits until the target is free."""
        old = self.live
        old.told = lambda: None
        await asyncio.to_thread(old.close)
        self.drop(old)
        return old

    def _go_on(self, old: Live) -> None:
        """With a new reader."""
        self.reader = self._begin(self._wanted)
        self.reader.asked = old.asked
        self.reader.told = self.waker()
        self.keep(self.reader)
        self.reader.start()
        if self.link is not None:
            self.link.close()
            self.link.follow(self.reader)

    # ---- mirror ----

    def action_mirror(self) -> None:
        """Asks where to, then whether."""
        refused = self._why_no_mirror()
        if refused:
            self.notify(refused, severity="warning")
            return
        title = "mirror to: a directory that does not exist yet, or HOST:PORT"
        prompt(self.app, title, destination, self._confirm_mirror)

    def _why_no_mirror(self) -> str:
        live = self.live
        if self._wanted.directory is not None:
            return "not while recording (-o): end it, then redirty mirror"
        if live.target_is_command:
            return "not with -- COMMAND, which ends with its recording; redirty mirror -p does it"
        if live.target is None:
            return "the target is not known yet"
        if live.latest is not None and live.latest.state is ReaderState.ENDED:
            return "the target has ended"
        return ""

    def _confirm_mirror(self, to: str) -> None:
        target = self.live.target
        words = None if target is None else words_of(target)
        if target is None or words is None:
            return
        s = self.shown
        c = None if s is None else s.convergence
        wish = MirrorCommand(
            title=self.live.about.title,
            words=words,
            pids=pids_of(target),
            to=to,
            downtime_s=self.live.asked.downtime_s,
            arm=self._wanted.arm,
            probe=self._wanted.probe,
            present_pages=int(s.series["present_pages"][-1])
            if s is not None and len(s.series)
            else 0,
        )

        def answered(wish: MirrorCommand | None) -> None:
            if wish is not None:
                self.run_worker(self._mirror(wish), exclusive=True)

        self.app.push_screen(MirrorConfirmScreen(wish, "" if c is None else c.verdict), answered)

    async def _mirror(self, wish: MirrorCommand) -> None:
        mirror = Mirror(wish)  # holds the process before it is let go of
        self._wanted = replace(self._wanted, interval_s=self.live.interval_s)
        old = await self._let_go()  # memory has room for one that write-protects it
        await self.app.push_screen(MirrorScreen(mirror), lambda _: self._go_on(old))
