"""The overview: all processes by write faults. Enter traces one."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import ClassVar

from redirty.collector.errors import RedirtyError
from redirty.collector.target.guest import Guest
from redirty.collector.target.targets import Cgroup, Pids, TargetSet
from redirty.tui import export
from redirty.tui.readers.link_watch import LinkWatch
from redirty.tui.readers.live import Live, TopOptions
from redirty.tui.readers.overview import Overview, by_cgroup, chosen
from redirty.tui.render.columns import OVERVIEW, Processes
from redirty.tui.render.overview import heading
from redirty.tui.screens.base import Watch
from redirty.tui.screens.live import LiveScreen
from redirty.tui.snapshots.convergence import ConvergenceQuestion
from redirty.tui.snapshots.snapshot import OverviewSnapshot, ProcessRow
from redirty.tui.widgets.picture import Picture
from redirty.tui.widgets.table import FieldTable
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Footer, Input

_HELP = """\
Every process by its write faults: writes to memory at which the processor asked the kernel, because no page \
was there (1st), it was shared and had to be copied (COW), or its file system had to be asked (mkw). They are \
counted in the kernel for all processes at once; nothing is armed, so this shows who touches new memory, \
and enter shows who writes again and again. ? is what this kernel does not tell.

Enter traces the process, of a virtual machine the guest's memory, or with g the cgroup, that the cursor \
is on: it stands still for about a \
millisecond, once. Escape comes back, and nothing stays attached.
"""


class OverviewScreen(Watch):
    """Counts while it is shown; while a target is traced from here it lets go of the kernel."""

    HELP = _HELP
    VIEW = "overview"
    SCOPED_CSS = False
    CSS = """
    OverviewScreen #heading { height: 1; }
    OverviewScreen #filter { height: 1; border: none; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "filter", id="filter", key_display="/",
                tooltip="only those whose name, pid or cgroup has these words"),
        Binding("g", "group", "by cgroup", id="group", tooltip="one row a cgroup, or a process"),
        Binding("v", "machines", "VMs", id="machines", tooltip="only virtual machines, or all"),
        Binding("space", "pause", "pause", id="pause"),
        Binding("minus", "interval(-1)", "interval", show=False, id="interval.down",
                key_display="-", tooltip="look twice as often"),
        Binding("plus,equals_sign", "interval(1)", "look half as often", show=False,
                id="interval.up", key_display="+"),
        Binding("escape", "clear", "clear", show=False, id="leave", tooltip="no filter any more"),
    ]  # fmt: skip

    def __init__(
        self, wanted: TopOptions, asked: ConvergenceQuestion, link: LinkWatch | None = None
    ) -> None:
        super().__init__()
        self.reader = Overview()
        self.paused = False
        self.grouped = False
        self.machines = False
        self.words = ""
        self.shown: OverviewSnapshot | None = None
        self.rows: Processes = ()
        self._wanted = wanted
        self._asked = asked
        self._link = link

    def compose(self) -> ComposeResult:
        """See Screen."""
        yield Picture[OverviewSnapshot](self._heading, id="heading")
        yield Input(placeholder="words in name, pid or cgroup", id="filter")
        yield FieldTable(OVERVIEW, id="processes", sorted_by="write_faults_per_s")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begins to count."""
        self.query_one(Input).display = False
        self.query_one(FieldTable).focus()
        self.reader.told = self.waker()
        self.keep(self.reader)
        self.reader.start()

    def on_screen_suspend(self) -> None:
        """Another screen is on top: help, or a target."""
        if isinstance(self.app.screen, LiveScreen):
            self.reader.suspend(True)

    def on_screen_resume(self) -> None:
        """Back."""
        self.reader.suspend(False)

    def on_resize(self) -> None:
        """A message may need more lines, or fewer."""
        self._show()

    def on_unmount(self) -> None:
        """Lets go of the kernel."""
        self.reader.request_stop()

    def _heading(self, s: OverviewSnapshot, width: int, height: int) -> list[list[tuple[str, str]]]:
        how = [
            "paused" if self.paused else "",
            f"filter: {self.words}" if self.words else "",
            "VMs only" if self.machines else "",
            "by cgroup" if self.grouped else "",
        ]
        shown = sum(p.members for p in self.rows)
        return heading(s, shown, ", ".join(filter(None, how)), width)

    def newest(self) -> None:
        """See Watch."""
        latest = self.reader.latest
        if latest is None or self.paused:
            return
        self.shown = latest
        self._show()

    def _show(self) -> None:
        s = self.shown
        if s is None:
            return
        found = chosen(s.processes, self.words, "vm" if self.machines else "")
        self.rows = tuple(by_cgroup(found) if self.grouped else found)
        self.query_one(FieldTable).show(self.rows, len(self.rows), _key)
        picture = self.query_one(Picture)
        picture.styles.height = len(self._heading(s, self.size.width, 0))
        picture.show(s)

    # ---- keys ----

    def action_filter(self) -> None:
        """Asks for words."""
        line = self.query_one(Input)
        line.display = True  # at once: the next key is for it
        line.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """As they are typed."""
        self.words = event.value
        self._show()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Back to the table."""
        table = self.query_one(FieldTable)
        if self.focused is table:  # enter again, before the line knew: it was for the table
            table.action_choose()
            return
        event.input.display = bool(event.value)
        self.set_focus(table)

    def action_clear(self) -> None:
        """No filter."""
        line = self.query_one(Input)
        line.value = ""
        line.display = False
        self.machines = False
        self.query_one(FieldTable).focus()
        self._show()

    def action_group(self) -> None:
        """By cgroup, or not."""
        self.grouped = not self.grouped
        self._show()

    def action_machines(self) -> None:
        """Virtual machines only, or all."""
        self.machines = not self.machines
        self._show()

    def action_pause(self) -> None:
        """The screen stands still."""
        self.paused = not self.paused
        if self.paused:
            self._show()
        else:
            self.newest()

    def action_interval(self, steps: int) -> None:
        """Twice as long, or half."""
        self.reader.set_interval(self.reader.interval_s * 2.0**steps)

    def on_field_table_chosen(self, event: FieldTable.Chosen) -> None:
        """Traces it."""
        find = partial(target_of, self.rows[event.row])
        self.app.push_screen(
            LiveScreen(
                lambda wanted: Live(find, wanted, self._asked), self._wanted, link=self._link
            )
        )

    def csv_rows(self) -> tuple[str, export.Rows]:
        """See Watch."""
        fields = [f for f in OVERVIEW if f.name]
        order = self.query_one(FieldTable).order
        rows = ([f.value(self.rows, i) for f in fields] for i in order)
        return self.VIEW, iter([[f.name for f in fields], *rows])


def _key(rows: Processes, i: int) -> object:
    return rows[i].pid or rows[i].cgroup


def target_of(p: ProcessRow) -> TargetSet:
    """What a row stands for. Errors: RedirtyError when it is gone."""
    if p.kind == "vm":
        with contextlib.suppress(
            RedirtyError
        ):  # whose memory is marked as no QEMU does: as a process
            return Guest(p.pid)
    return Pids([p.pid]) if p.pid else Cgroup(p.cgroup)
