"""The overview: all processes by their write faults. Enter traces one of them."""

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
from redirty.tui.readers.overview import Overview, by_cgroup, matching
from redirty.tui.render.columns import OVERVIEW, Processes
from redirty.tui.render.overview import heading
from redirty.tui.screens.base import Watch
from redirty.tui.screens.live import LiveScreen
from redirty.tui.snapshots.convergence import ConvergenceQuestion
from redirty.tui.snapshots.snapshot import OverviewSnapshot, ProcessRow
from redirty.tui.widgets.picture import Picture
from redirty.tui.widgets.plain import TYPED
from redirty.tui.widgets.table import FieldTable
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Footer, Input

_HELP = """\
All processes by their write faults: writes at which the processor trapped into the kernel because no page was \
present (1st), the page was shared and had to be copied (COW), or the file system had to be notified (mkw). They \
are counted in the kernel for all processes at once. Nothing is armed, so this screen shows who touches new \
memory; press enter to see who writes to the same memory repeatedly. A ? means that this kernel cannot count them.

Enter traces the process under the cursor: for a virtual machine the guest's memory, with g the whole cgroup. \
The target is stopped for about a millisecond, once. Escape returns here, and nothing stays attached.
"""


class OverviewScreen(Watch):
    """Counts write faults while it is shown; detaches from the kernel while a target is traced."""

    HELP = _HELP
    VIEW = "overview"
    SCOPED_CSS = False
    CSS = """
    OverviewScreen #heading { height: 1; }
    OverviewScreen #filter { height: 1; border: none; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "filter", id="filter", key_display="/",
                tooltip="filter by words in name, pid or cgroup"),
        Binding("g", "group", "by cgroup", id="group", tooltip="one row per cgroup, or per process"),
        Binding("v", "machines", "VMs", id="machines", tooltip="virtual machines only, or all processes"),
        Binding("space", "pause", "pause", id="pause", tooltip="pause the screen, or resume it"),
        Binding("minus", "interval(-1)", "interval", show=False, id="interval.down",
                key_display="-", tooltip="- update twice as often, + half as often"),
        Binding("plus,equals_sign", "interval(1)", "update half as often", show=False,
                id="interval.up", key_display="+"),
        Binding("escape", "clear", "clear", show=False, id="leave", tooltip="clear the filters"),
    ]  # fmt: skip

    def __init__(
        self, options: TopOptions, question: ConvergenceQuestion, link: LinkWatch | None = None
    ) -> None:
        super().__init__()
        self.reader = Overview()
        self.paused = False
        self.grouped = False
        self.machines = False
        self.words = ""
        self.shown: OverviewSnapshot | None = None
        self.rows: Processes = ()
        self._options = options
        self._question = question
        self._link = link

    def compose(self) -> ComposeResult:
        """See Screen."""
        yield Picture[OverviewSnapshot](self._heading, id="heading")
        yield Input(placeholder="words in name, pid or cgroup", id="filter", restrict=TYPED)
        yield FieldTable(OVERVIEW, id="processes", sorted_by="write_faults_per_s")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Start counting."""
        self.query_one(Input).display = False
        self.query_one(FieldTable).focus()
        self.reader.on_snapshot = self.waker()
        self.register(self.reader)
        self.reader.start()

    def on_screen_suspend(self) -> None:
        """Detach from the kernel if the new screen traces a target."""
        if isinstance(self.app.screen, LiveScreen):
            self.reader.suspend(True)

    def on_screen_resume(self) -> None:
        """Attach again."""
        self.reader.suspend(False)

    def on_resize(self) -> None:
        """Draw for the new size: a message may need more lines, or fewer."""
        self._show()

    def on_unmount(self) -> None:
        """Detach from the kernel."""
        self.reader.request_stop()

    def _heading(self, s: OverviewSnapshot, width: int, height: int) -> list[list[tuple[str, str]]]:
        view = [
            "paused" if self.paused else "",
            f"filter: {self.words}" if self.words else "",
            "VMs only" if self.machines else "",
            "by cgroup" if self.grouped else "",
        ]
        shown = sum(p.members for p in self.rows)
        return heading(s, shown, ", ".join(filter(None, view)), width)

    def show_latest(self) -> None:
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
        found = matching(s.processes, self.words, "vm" if self.machines else "")
        self.rows = tuple(by_cgroup(found) if self.grouped else found)
        self.query_one(FieldTable).show(self.rows, len(self.rows), _key)
        picture = self.query_one(Picture)
        picture.styles.height = len(self._heading(s, self.size.width, 0))
        picture.show(s)

    # ---- keys ----

    def action_filter(self) -> None:
        """Show the line for the filter and focus it."""
        line = self.query_one(Input)
        line.display = True  # at once: the next key belongs to it
        line.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while the words are typed."""
        self.words = event.value
        self._show()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Return to the table."""
        table = self.query_one(FieldTable)
        if (
            self.focused is table
        ):  # a second enter, before the line lost the focus: it was meant for the table
            table.action_choose()
            return
        event.input.display = bool(event.value)
        self.set_focus(table)

    def action_clear(self) -> None:
        """Clear the filters."""
        line = self.query_one(Input)
        line.value = ""
        line.display = False
        self.machines = False
        self.query_one(FieldTable).focus()
        self._show()

    def action_group(self) -> None:
        """Group by cgroup, or not."""
        self.grouped = not self.grouped
        self._show()

    def action_machines(self) -> None:
        """Show virtual machines only, or all processes."""
        self.machines = not self.machines
        self._show()

    def action_pause(self) -> None:
        """Pause the screen, or resume it."""
        self.paused = not self.paused
        if self.paused:
            self._show()
        else:
            self.show_latest()

    def action_interval(self, steps: int) -> None:
        """Double the interval (1) or halve it (-1)."""
        self.reader.set_interval(self.reader.interval_s * 2.0**steps)

    def on_field_table_chosen(self, event: FieldTable.Chosen) -> None:
        """Trace the chosen row."""
        find = partial(target_of, self.rows[event.row])
        self.app.push_screen(
            LiveScreen(
                lambda options: Live(find, options, self._question), self._options, link=self._link
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
    """Return the target that a row stands for.

    Raises:
        RedirtyError: the target no longer exists.
    """
    if p.kind == "vm":
        # Without memory that looks like QEMU's guest RAM, it is traced as a process.
        with contextlib.suppress(RedirtyError):
            return Guest(p.pid)
    return Pids([p.pid]) if p.pid else Cgroup(p.cgroup)
