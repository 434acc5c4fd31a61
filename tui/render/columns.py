"""Tables, one list of fields each: it feeds the screen, its help, and the CSV."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from redirty.collector.errors import one_line
from redirty.collector.units import show_bytes, show_pages
from redirty.tui.render.charts import sparkline
from redirty.tui.snapshots.history import MappingTable
from redirty.tui.snapshots.snapshot import ProcessRow

T = TypeVar("T")
Value = str | int | float | None


@dataclass(frozen=True)
class Field(Generic[T]):
    """A column. name: in CSV, with its unit ("": not in CSV). heading, width, left: on the screen;
    width 0: what is left. value: of a row; show: of a value."""

    name: str
    heading: str
    width: int
    help: str
    value: Callable[[T, int], Value]
    show: Callable[[Value], str]
    left: bool = False
    least: int = 0  # columns of the table below which it is left out


def _number(value: Value) -> str:
    return "?" if value is None else f"{value:,.0f}"


def _pages(value: Value) -> str:
    return "?" if value is None else show_pages(float(value))


def _bytes(value: Value) -> str:
    return "?" if value is None else show_bytes(float(value))


def _text(value: Value) -> str:
    return one_line(str(value))


MAPPINGS: tuple[Field[MappingTable], ...] = (
    Field("redirtied_pages_per_s", "re-dirtied/s", 12, "written again, present when the round began",
          lambda t, i: float(t.redirtied_per_s[i]), _pages),
    Field("dirty_pages_per_s", "dirty/s", 11, "all pages written",
          lambda t, i: float(t.dirty_per_s[i]), _pages),
    Field("write_faults_per_s", "faults/s", 9, "pages in the write-fault log",
          lambda t, i: float(t.faults_per_s[i]), _number, least=96),
    Field("present_pages", "present", 10, "pages there when the last round began",
          lambda t, i: int(t.present[i]), _pages, least=108),
    Field("mapping_class", "class", 12, "anonymous or of a file, private or shared",
          lambda t, i: t[i].mapping_class, _text, True),
    Field("pid", "pid", 8, "the process", lambda t, i: int(t.pid[i]), str, least=118),
    Field("start", "start", 14, "its first address",
          lambda t, i: f"{t[i].start:#x}", _text, True),
    Field("path", "path", 0, "the file, or what the kernel calls it",
          lambda t, i: t[i].path or "(anonymous)", _text, True),
)  # fmt: skip

Processes = tuple[ProcessRow, ...]


def _share(part: float | None, whole: float) -> float | None:
    if part is None:
        return None
    return part / whole if whole > 0 else 0.0


def _percent(value: Value) -> str:
    return "?" if value is None else f"{float(value):.0%}"


OVERVIEW: tuple[Field[Processes], ...] = (
    Field("pid", "pid", 8, "process, or how many there are in a group",
          lambda t, i: t[i].pid or f"({t[i].members})", str),
    Field("comm", "name", 18, "its name; of a virtual machine that of the machine",
          lambda t, i: t[i].comm, _text, True),
    Field("rss_bytes", "RSS", 10, "resident memory", lambda t, i: t[i].rss_bytes, _bytes),
    Field("write_faults_per_s", "writes/s", 10, "write faults a second",
          lambda t, i: t[i].write_faults, _number),
    Field("first_touch_share", "1st", 5, "part of them at which no page was there",
          lambda t, i: _share(t[i].first_touch, t[i].write_faults), _percent),
    Field("cow_share", "COW", 5, "part of them that made a copy (? where the kernel does not tell)",
          lambda t, i: _share(t[i].cow, t[i].write_faults), _percent, least=92),
    Field("mkwrite_share", "mkw", 5, "part of them that asked the file system (likewise)",
          lambda t, i: _share(t[i].mkwrite, t[i].write_faults), _percent, least=98),
    Field("tlb_flushes_per_s", "TLB/s", 8, "TLB flushes it began, a second",
          lambda t, i: t[i].tlb_flushes, _number),
    Field("", "lately", 12, "write faults over time",
          lambda t, i: sparkline(t[i].recent, 12), str, True),
    Field("kind", "kind", 8, "process, vm or cgroup", lambda t, i: t[i].kind, _text, True, least=108),
    Field("cgroup", "cgroup", 0, "its cgroup (version 2 where there is one)",
          lambda t, i: t[i].cgroup, _text, True, least=120),
)  # fmt: skip
