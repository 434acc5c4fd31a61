"""The columns of tables: one list per table feeds the screen, its help and the CSV export."""

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
    """A column.

    Attributes:
        name: name in CSV, with its unit; empty: not in CSV.
        heading: heading on the screen.
        width: width on the screen; 0: the remaining width.
        help: its meaning.
        value: returns the value of a row.
        show: returns the text of a value.
        left: whether it is aligned to the left.
        min_width: width of the table below which the column is left out.
    """

    name: str
    heading: str
    width: int
    help: str
    value: Callable[[T, int], Value]
    show: Callable[[Value], str]
    left: bool = False
    min_width: int = 0


def _number(value: Value) -> str:
    return "?" if value is None else f"{value:,.0f}"


def _pages(value: Value) -> str:
    return "?" if value is None else show_pages(float(value))


def _bytes(value: Value) -> str:
    return "?" if value is None else show_bytes(float(value))


def _text(value: Value) -> str:
    return one_line(str(value))


MAPPINGS: tuple[Field[MappingTable], ...] = (
    Field("redirtied_pages_per_s", "re-dirtied/s", 12,
          "written pages that were present when the round started",
          lambda t, i: float(t.redirtied_per_s[i]), _pages),
    Field("dirty_pages_per_s", "dirty/s", 11, "all written pages",
          lambda t, i: float(t.dirty_per_s[i]), _pages),
    Field("write_faults_per_s", "faults/s", 9, "pages in the write-fault log",
          lambda t, i: float(t.faults_per_s[i]), _number, min_width=96),
    Field("present_pages", "present", 10, "pages present when the last round started",
          lambda t, i: int(t.present[i]), _pages, min_width=108),
    Field("mapping_class", "class", 12, "anonymous or file, private or shared",
          lambda t, i: t[i].mapping_class, _text, True),
    Field("pid", "pid", 8, "process", lambda t, i: int(t.pid[i]), str, min_width=118),
    Field("start", "start", 14, "first address",
          lambda t, i: f"{t[i].start:#x}", _text, True),
    Field("path", "path", 0, "file, or the kernel's name for the mapping",
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
    Field("pid", "pid", 8, "process, or the number of processes in a group",
          lambda t, i: t[i].pid or f"({t[i].members})", str),
    Field("comm", "name", 18, "name of the process, or of the virtual machine",
          lambda t, i: t[i].comm, _text, True),
    Field("rss_bytes", "RSS", 10, "resident memory", lambda t, i: t[i].rss_bytes, _bytes),
    Field("write_faults_per_s", "writes/s", 10, "write faults per second",
          lambda t, i: t[i].write_faults, _number),
    Field("first_touch_share", "1st", 5, "share of write faults that found no page",
          lambda t, i: _share(t[i].first_touch, t[i].write_faults), _percent),
    Field("cow_share", "COW", 5, "share that copied a page (?: unknown on this kernel)",
          lambda t, i: _share(t[i].cow, t[i].write_faults), _percent, min_width=92),
    Field("mkwrite_share", "mkw", 5, "share that notified the file system (likewise)",
          lambda t, i: _share(t[i].mkwrite, t[i].write_faults), _percent, min_width=98),
    Field("tlb_flushes_per_s", "TLB/s", 8, "TLB flushes caused, per second",
          lambda t, i: t[i].tlb_flushes, _number),
    Field("", "recent", 12, "write faults over time",
          lambda t, i: sparkline(t[i].recent, 12), str, True),
    Field("kind", "kind", 8, "process, vm or cgroup",
          lambda t, i: t[i].kind, _text, True, min_width=108),
    Field("cgroup", "cgroup", 0, "cgroup path (version 2 if mounted)",
          lambda t, i: t[i].cgroup, _text, True, min_width=120),
)  # fmt: skip
