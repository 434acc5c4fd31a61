"""The target screen: the rounds of a live target or of a recording."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from redirty.collector.units import RateUnit, parse_rate, rate_unit
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
from redirty.tui.snapshots.convergence import AS_TYPED, parse_downtime
from redirty.tui.snapshots.history import MappingTable
from redirty.tui.snapshots.snapshot import TargetSnapshot
from redirty.tui.widgets.picture import Picture
from redirty.tui.widgets.table import FieldTable
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widgets import Footer

_STEP = 1.25  # factor of bandwidth and downtime per key


class TargetScreen(Watch):
    """Shows one of several views, chosen by digits; the summary has more panels on a large terminal."""

    HELP = target_layout.HELP
    CSS = target_layout.CSS
    SCOPED_CSS = False
    BINDINGS: ClassVar[list[BindingType]] = [
        *target_layout.VIEW_KEYS,
        Binding("space", "pause", "pause", id="pause",
                tooltip="pause the screen (tracing continues); play or pause a replay"),
        Binding("left_square_bracket", "bandwidth(-1)", "link", id="bandwidth.down",
                key_display="[ ]", tooltip="[ slower link, ] faster link"),
        Binding("right_square_bracket", "bandwidth(1)", "faster link", show=False,
                id="bandwidth.up", key_display="]"),
        Binding("left_curly_bracket", "downtime(-1)", "downtime", id="downtime.down",
                key_display="{ }", tooltip="{ shorter downtime, } longer downtime"),
        Binding("right_curly_bracket", "downtime(1)", "longer downtime", show=False,
                id="downtime.up", key_display="}"),
        Binding("b", "type_bandwidth", "enter link", show=False, id="bandwidth.type",
                tooltip="enter the link's bandwidth: 10Gbit, 200MiB"),
        Binding("d", "type_downtime", "enter downtime", show=False, id="downtime.type",
                tooltip="enter the downtime: 300ms, 2s"),
        Binding("p", "policy", "policy", show=False, id="policy", tooltip="next policy"),
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
        """The reader, if it replays a recording."""
        return self.reader if isinstance(self.reader, Replay) else None

    def compose(self) -> ComposeResult:
        """See Screen."""
        yield Picture[TargetSnapshot](self._heading, id="heading")
        yield Picture[TargetSnapshot](self._details, id="details")
        with Container(id="top"):
            yield Picture(draw.rates, id="rates", title="dirty: █ re-dirtied ░ new")
            yield Picture(verdict.curve, id="curve", title="W(t)")
        with Container(id="middle"):
            yield Picture(verdict.convergence, id="convergence", title="would mirroring converge?")
            yield Picture(draw.heat, id="heat", title="addresses over time")
        with Container(id="bottom"):
            yield Picture(draw.faults, id="faults", title="write faults by type")
            yield Picture(draw.tlb, id="tlb", title="TLB")
        yield Picture(draw.writers, id="writers", title="who writes")
        yield FieldTable(MAPPINGS, id="mappings", sorted_by="redirtied_pages_per_s")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Start the reader."""
        self._arrange()
        self.query_one(FieldTable).focus()
        self.reader.on_snapshot = self.waker()
        self.register(self.reader)
        self.reader.start()
        if self.link is not None:
            self.link.start(self.reader)
        self.show_latest()
        self.set_timer(0.5, self.show_latest)  # a snapshot may have arrived before the screen ran

    def on_unmount(self) -> None:
        """Make the reader release the target."""
        if self.link is not None:
            self.link.close()
        self.reader.request_stop()

    def _heading(self, s: TargetSnapshot, width: int, height: int) -> list[Row]:
        return draw.heading(s, width, self.paused)

    def _details(self, s: TargetSnapshot, width: int, height: int) -> list[Row]:
        return draw.details(s, width)

    # ---- snapshots ----

    def show_latest(self) -> None:
        """See Watch. A paused screen keeps its values, but shows the answer to a new question."""
        latest = self.reader.latest
        if latest is None or latest is self.shown:
            return
        if self.paused and self.shown is not None and self.replay is None:
            self.shown = replace(
                self.shown,
                convergence=(
                    latest.convergence
                    if self._answers_new_question(latest)
                    else self.shown.convergence
                ),
                state=latest.state,
                message=latest.message,
            )
        else:
            self.shown = latest
        self._show()

    def _answers_new_question(self, latest: TargetSnapshot) -> bool:
        old = self.shown.convergence if self.shown is not None else None
        new = latest.convergence
        return new is not None and (old is None or new.question != old.question)

    def _show(self) -> None:
        s = self.shown
        if s is None:
            return
        rows = len(self._heading(s, self.size.width, 0))
        self.query_one("#heading").styles.height = rows
        details = self.query_one("#details")
        rows = len(self._details(s, self.size.width, 0))
        details.styles.height, details.display = rows, rows > 0
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
        """Show another view."""
        self.view = view
        self._arrange()
        self._show()

    def on_resize(self, event: events.Resize) -> None:
        """Arrange the panels for the new size."""
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
        """Pause or resume the screen, while tracing continues; play or pause a replay."""
        if self.replay is not None:
            self.replay.toggle()
            return
        self.paused = not self.paused
        if not self.paused:
            self.show_latest()
        self._show()

    def action_bandwidth(self, steps: int) -> None:
        """Scale the assumed link bandwidth by steps."""
        self.reader.ask(self.reader.question.scale_bandwidth(_STEP**steps))

    def action_downtime(self, steps: int) -> None:
        """Scale the downtime goal by steps."""
        self.reader.ask(self.reader.question.scale_downtime(_STEP**steps))

    def action_policy(self) -> None:
        """Switch to the next policy."""
        self.reader.ask(self.reader.question.next_policy())

    def action_type_bandwidth(self) -> None:
        """Ask for the link's bandwidth."""

        def apply(found: tuple[float, RateUnit | None]) -> None:
            bandwidth, unit = found
            question = self.reader.question
            self.reader.ask(replace(question, bandwidth=bandwidth, source=AS_TYPED, unit=unit))

        def parse(text: str) -> tuple[float, RateUnit | None]:
            return parse_rate(text, "bandwidth"), rate_unit(text)

        prompt(self.app, "bandwidth: 10Gbit, 1.25GB, 200MiB", parse, apply)

    def action_type_downtime(self) -> None:
        """Ask for the downtime goal."""

        def apply(downtime_s: float) -> None:
            self.reader.ask(self.reader.question.with_downtime(downtime_s))

        prompt(self.app, "downtime: 300ms, 2s", parse_downtime, apply)

    def action_leave(self) -> None:
        """Return to the overview, or end the program if there is none."""
        if len(self.app.screen_stack) > 2:
            self.reader.request_stop()
            self.forget(self.reader)  # its end does not concern the overview
            self.dismiss()
        else:
            self.app.exit()

    # ---- export ----

    def csv_rows(self) -> tuple[str, export.Rows]:
        """See Watch."""
        s = self.shown
        if s is None:
            return self.view, iter(())
        exports = {
            "heat": export.heat, "convergence": export.passes, "faults": export.tlb,
            "writers": export.writers,
        }  # fmt: skip
        if self.view == "mappings":
            fields = [f for f in MAPPINGS if f.name]
            table = self.query_one(FieldTable)
            rows = ([f.value(s.mappings, i) for f in fields] for i in table.order)
            return self.view, iter([[f.name for f in fields], *rows])
        return self.view, exports.get(self.view, export.rounds)(s)


def _mapping_key(table: MappingTable, i: int) -> object:
    return int(table.pid[i]), int(table.start[i])
