"""The target screen: one target's rounds as they end, or a recording's as they went."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from redirty.collector.units import parse_rate
from redirty.tui import export
from redirty.tui.readers.link_watch import LinkWatch
from redirty.tui.readers.replay import Replay
from redirty.tui.readers.target import TargetReader
from redirty.tui.render import convergence as verdict
from redirty.tui.render import target as draw
from redirty.tui.render.columns import MAPPINGS
from redirty.tui.render.rows import Row
from redirty.tui.screens import target_layout
from redirty.tui.screens.base import Watch
from redirty.tui.screens.prompt import prompt
from redirty.tui.snapshots.convergence import parse_downtime
from redirty.tui.snapshots.history import MappingTable
from redirty.tui.snapshots.snapshot import TargetSnapshot
from redirty.tui.widgets.picture import Picture
from redirty.tui.widgets.table import FieldTable
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widgets import Footer

_STEP = 1.25  # of bandwidth and downtime, by a key


class TargetScreen(Watch):
    """Views are chosen by digits; the summary has more panels on a large terminal."""

    HELP = target_layout.HELP
    CSS = target_layout.CSS
    SCOPED_CSS = False
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(n), f"view('{name}')", name, show=False, id=f"view.{name}",
                    tooltip=f"view {name}: {what}")
            for n, (name, what) in enumerate(target_layout.VIEWS.items(), 1)
        ),
        Binding("space", "pause", "pause", id="pause",
                tooltip="pause the screen (tracing goes on); play or pause a replay"),
        Binding("left_square_bracket", "bandwidth(-1)", "link", id="bandwidth.down",
                key_display="[ ]", tooltip="[ a slower link, ] a faster one"),
        Binding("right_square_bracket", "bandwidth(1)", "faster link", show=False,
                id="bandwidth.up", key_display="]"),
        Binding("left_curly_bracket", "downtime(-1)", "downtime", id="downtime.down",
                key_display="{ }", tooltip="{ a shorter downtime, } a longer one"),
        Binding("right_curly_bracket", "downtime(1)", "longer downtime", show=False,
                id="downtime.up", key_display="}"),
        Binding("b", "type_bandwidth", "type link", show=False, id="bandwidth.type",
                tooltip="type the link's bandwidth: 10Gbit, 200MiB"),
        Binding("d", "type_downtime", "type downtime", show=False, id="downtime.type",
                tooltip="type the downtime: 300ms, 2s"),
        Binding("p", "policy", "policy", show=False, id="policy", tooltip="the next policy"),
        Binding("escape", "leave", "back", id="leave"),
    ]  # fmt: skip

    def __init__(
        self, reader: TargetReader, view: str = "summary", link: LinkWatch | None = None
    ) -> None:
        super().__init__()
        self.reader = reader
        self.link = link
        self.view = view
        self.paused = False
        self.shown: TargetSnapshot | None = None

    @property
    def replay(self) -> Replay | None:
        """The reader, when it reads a recording."""
        return self.reader if isinstance(self.reader, Replay) else None

    def compose(self) -> ComposeResult:
        """See Screen."""
        yield Picture[TargetSnapshot](self._heading, id="heading")
        yield Picture[TargetSnapshot](self._beneath, id="beneath")
        with Container(id="top"):
            yield Picture(draw.rates, id="rates", title="dirty: █ again ░ new")
            yield Picture(verdict.curve, id="curve", title="W(t)")
        with Container(id="middle"):
            yield Picture(verdict.convergence, id="convergence", title="would a mirror converge?")
            yield Picture(draw.heat, id="heat", title="addresses by time")
        with Container(id="bottom"):
            yield Picture(draw.faults, id="faults", title="kinds of fault")
            yield Picture(draw.tlb, id="tlb", title="TLB")
        yield Picture(draw.writers, id="writers", title="who dirties")
        yield FieldTable(MAPPINGS, id="mappings", sorted_by="redirtied_pages_per_s")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begins to read."""
        self._arrange()
        self.query_one(FieldTable).focus()
        self.reader.told = self.waker()
        self.keep(self.reader)
        self.reader.start()
        if self.link is not None:
            self.link.follow(self.reader)
        self.newest()
        self.set_timer(0.5, self.newest)  # news that came before the screen could hear of it

    def on_unmount(self) -> None:
        """Lets go of the target."""
        if self.link is not None:
            self.link.close()
        self.reader.request_stop()

    def _heading(self, s: TargetSnapshot, width: int, height: int) -> list[Row]:
        return draw.heading(s, width, self.paused)

    def _beneath(self, s: TargetSnapshot, width: int, height: int) -> list[Row]:
        return draw.beneath(s, width)

    # ---- snapshots ----

    def newest(self) -> None:
        """See Watch. A paused screen shows what it has, but for what was asked."""
        latest = self.reader.latest
        if latest is None or latest is self.shown:
            return
        if self.paused and self.shown is not None and self.replay is None:
            self.shown = replace(
                self.shown,
                convergence=latest.convergence
                if self._asked_anew(latest)
                else self.shown.convergence,
                state=latest.state,
                message=latest.message,
            )
        else:
            self.shown = latest
        self._show()

    def _asked_anew(self, latest: TargetSnapshot) -> bool:
        old = self.shown.convergence if self.shown is not None else None
        new = latest.convergence
        return new is not None and (old is None or new.asked != old.asked)

    def _show(self) -> None:
        s = self.shown
        if s is None:
            return
        rows = len(self._heading(s, self.size.width, 0))
        self.query_one("#heading").styles.height = rows
        beneath = self.query_one("#beneath")
        rows = len(self._beneath(s, self.size.width, 0))
        beneath.styles.height, beneath.display = rows, rows > 0
        for picture in self.query(Picture):
            if picture.display:
                picture.show(s)
        table = self.query_one(FieldTable)
        if table.display:
            table.show(s.mappings, len(s.mappings), _mapping_key)
        if not self.reader.drawn.is_set():
            self.call_after_refresh(self.reader.drawn.set)

    # ---- views ----

    def action_view(self, view: str) -> None:
        """Another view."""
        self.view = view
        self._arrange()
        self._show()

    def on_resize(self, event: events.Resize) -> None:
        """More or less fits now."""
        self._arrange()
        self._show()

    def _arrange(self) -> None:
        wide = target_layout.is_wide(self.size.width, self.size.height)
        shown = target_layout.panels(self.view, wide)
        for name in target_layout.PANELS:
            self.query_one(f"#{name}").display = name in shown
        for name, inside in target_layout.CONTAINERS.items():
            self.query_one(f"#{name}").display = bool(shown & inside)
        self.set_class(wide, "wide")
        for view in target_layout.VIEWS:
            self.set_class(view == self.view, f"view-{view}")

    # ---- keys ----

    def action_pause(self) -> None:
        """The screen stands still, and tracing goes on; a replay stops or goes on."""
        if self.replay is not None:
            self.replay.toggle()
            return
        self.paused = not self.paused
        if not self.paused:
            self.newest()
        self._show()

    def action_bandwidth(self, steps: int) -> None:
        """Of the link, by steps."""
        self.reader.ask(self.reader.asked.faster(_STEP**steps))

    def action_downtime(self, steps: int) -> None:
        """The goal, by steps."""
        self.reader.ask(self.reader.asked.longer(_STEP**steps))

    def action_policy(self) -> None:
        """The next one."""
        self.reader.ask(self.reader.asked.next_policy())

    def action_type_bandwidth(self) -> None:
        """Asks for it."""

        def apply(bandwidth: float) -> None:
            asked = self.reader.asked
            self.reader.ask(replace(asked, bandwidth=bandwidth, source="as typed"))

        prompt(self.app, "bandwidth: 10Gbit, 1.25GB, 200MiB", parse_rate, apply)

    def action_type_downtime(self) -> None:
        """Asks for it."""

        def apply(downtime_s: float) -> None:
            self.reader.ask(replace(self.reader.asked, downtime_s=downtime_s))

        prompt(self.app, "downtime: 300ms, 2s", parse_downtime, apply)

    def action_leave(self) -> None:
        """To the overview, or out when there is none."""
        if len(self.app.screen_stack) > 2:
            self.reader.request_stop()
            self.drop(self.reader)  # what becomes of it is no matter of the overview's
            self.dismiss()
        else:
            self.app.exit()

    # ---- export ----

    def csv_rows(self) -> tuple[str, export.Rows]:
        """See Watch."""
        s = self.shown
        if s is None:
            return self.view, iter(())
        made = {
            "heat": export.heat, "convergence": export.passes, "faults": export.tlb,
            "writers": export.writers,
        }  # fmt: skip
        if self.view == "mappings":
            fields = [f for f in MAPPINGS if f.name]
            table = self.query_one(FieldTable)
            rows = ([f.value(s.mappings, i) for f in fields] for i in table.order)
            return self.view, iter([[f.name for f in fields], *rows])
        return self.view, made.get(self.view, export.rounds)(s)


def _mapping_key(table: MappingTable, i: int) -> object:
    return int(table.pid[i]), int(table.start[i])
