"""The target screen over a running target: with keys for the interval, and for threads and stacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from redirty.tui.reading.link import LinkWatch
from redirty.tui.reading.live import Live, Wanted
from redirty.tui.reading.target import TargetReader
from redirty.tui.screens.target import TargetScreen
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
    ]  # fmt: skip

    def __init__(
        self,
        begin: Callable[[Wanted], Live],
        wanted: Wanted,
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
        old = self.live
        self._wanted = replace(
            self._wanted, writers=not self._wanted.writers, interval_s=old.interval_s
        )
        old.told = lambda: None
        self.run_worker(self._anew(old), exclusive=True)

    async def _anew(self, old: Live) -> None:
        import asyncio

        await asyncio.to_thread(old.close)  # it lets go of the target first
        self.reader = self._begin(self._wanted)
        self.reader.asked = old.asked
        self.reader.told = self.waker()
        self.drop(old)
        self.keep(self.reader)
        self.reader.start()
        self.action_view("writers" if self._wanted.writers else self.view)
