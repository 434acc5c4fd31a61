"""The panels of the target screen: pure functions of a snapshot and a size."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from redirty.collector.errors import one_line
from redirty.collector.units import show_bytes, show_pages, show_time
from redirty.tui.render.charts import LABEL, bars, heat_rows, stretch
from redirty.tui.render.rows import Row, cell, clipped, message_rows, width_of, wrapped
from redirty.tui.snapshots.cost import Cost
from redirty.tui.snapshots.history import MEAN, Series
from redirty.tui.snapshots.snapshot import ReaderState, TargetSnapshot

Picture = Callable[[TargetSnapshot, int, int], list[Row]]


def waiting(s: TargetSnapshot) -> list[Row]:
    """Return the contents of a panel that has nothing to show yet."""
    return [[("no data yet" if len(s.series) else "no round yet", "dim")]]


_TYPES = (
    ("first touch", "first_touch_faults"),
    ("write protect", "write_protect_faults"),
    ("COW", "cow_faults"),
    ("page_mkwrite", "mkwrite_faults"),
    ("huge page", "huge_faults"),
)
_BAR = 24
_BOTH_WIDTH = 150  # enough for the cost and a note
_MIN_TITLE = 12


def per_s(pages: float) -> str:
    """Return the text of a rate in pages per second."""
    return f"{show_pages(pages)}/s"


def heading(s: TargetSnapshot | None, width: int, paused: bool) -> list[Row]:
    """Return the target and its state, and below them the latest rates or a message."""
    if s is None:
        return [[("starting …", "dim")], []]
    about = s.about
    state = "PAUSED" if paused and s.playback is None else s.state.value
    style = {ReaderState.FAILED: "bad", ReaderState.ENDED: "warn", ReaderState.DONE: "warn"}.get(
        s.state, "good"
    )
    first: Row = [(" ", "")]
    if s.playback is None:
        first.append((state, "warn" if paused else style))
    else:
        p = s.playback
        mark = "▶" if p.playing else "❚❚"
        first.append((f"{mark} {p.position_s:.1f}/{p.length_s:.1f} s x{p.speed:g}", "warn"))
    if len(s.series):
        first.append((f"  round {int(s.series['round'][-1])}", ""))
    title = one_line(about.title)  # a command line may be long: what follows must stay visible
    title = cell(title, min(len(title), max(width - width_of(first) - 2, _MIN_TITLE)), left=True)
    first.insert(0, (f" {title} ", "title"))
    if about.probe:
        first.append((f" ({about.interval_s:.3g} s)  {about.probe}, {about.arm}", "dim"))
    if s.message:
        style = "bad" if s.state is ReaderState.FAILED else "warn"
        return [clipped(first, width), *message_rows(s.message, width, style)]
    return [clipped(first, width), clipped(_rates(s), width)]


def _rates(s: TargetSnapshot) -> Row:
    if not len(s.series):
        return [("arming …" if s.state is ReaderState.STARTING else "no round yet", "dim")]
    series = s.series
    dirty, again = (float(series.once_per_s(name)[-1]) for name in ("dirty", "redirtied"))
    written = float(series["written_1s_pages"][-1])
    row: Row = []
    if not math.isnan(written):
        row += [("rewrites ", "dim"), (show_pages(written), ""), (" in 1 s  ", "dim")]
    # In this order: what a narrow screen cuts off is at the end.
    row += [
        ("re-dirtied ", "dim"),
        (per_s(again), "again"),
        ("  present ", "dim"),
        (show_pages(float(series.once("present")[-1])), ""),
        ("  dirty ", "dim"),
        (per_s(dirty), ""),
        ("  new ", "dim"),
        (per_s(dirty - again), "new"),
    ]
    missed, lost = float(series["missed_pages"][-1]), float(series["lost_events"].sum())
    row.append((f"  missed {'?' if math.isnan(missed) else int(missed)}", "dim"))
    if lost:
        row.append((f"  lost {int(lost)}", "warn"))
    return row


def details(s: TargetSnapshot, width: int) -> list[Row]:
    """Return the rows below the heading: the cost of tracing and page tables, if known."""
    rows = [_cost(s.cost, s.note, width)] if s.cost is not None else []
    if s.tables is not None:
        rows.append(clipped([(s.tables.text(), "dim")], width))
    return rows


def _cost(cost: Cost, note: str, width: int) -> Row:
    row: Row = [(cost.text(), "warn" if cost.too_high else "dim")]
    if note:  # comes first if there is not enough room for both
        row = (
            [(note, "warn"), ("; ", "dim"), *row]
            if width < _BOTH_WIDTH
            else [*row, (f"; {note}", "warn")]
        )
    return clipped(row, width)


def rates(s: TargetSnapshot, width: int, height: int) -> list[Row]:
    """Draw dirty and re-dirtied pages over time."""
    series = s.series
    if not len(series):
        return waiting(s)
    again, dirty = series.once_per_s("redirtied"), series.once_per_s("dirty")
    rows = bars(again, dirty, width, max(height - 1, 1), show_pages)
    return [*rows, _time_axis(series, width)]


def _time_axis(series: Series, width: int) -> Row:
    room = max(width - LABEL - 1, 1)
    start = series["start_s"]
    rounds = min(room, len(start))
    first = f"{start[-rounds]:.0f} s"
    last = f"{start[-1] + series['duration_s'][-1]:.0f} s"
    text = " " * (room - rounds * stretch(len(start), room)) + first
    text = text[: max(room - len(last), 0)].ljust(max(room - len(last), 0)) + last
    return [(f"{'/s':>{LABEL}} {text}"[:width], "dim")]


def heat(s: TargetSnapshot, width: int, height: int) -> list[Row]:
    """Draw the heat map: a row is a range of used addresses, a column a round."""
    h = s.heat
    if h is None:
        return [[("nothing was written", "dim")]] if len(s.series) else waiting(s)
    label = 21
    room, lines = max(width - label - 1, 4), max(height - 1, 1)
    rows = heat_rows(h.pages, lines, room)
    bounds = np.linspace(0, len(h.first), len(rows) + 1).astype(np.int64)[:-1].tolist()
    found: list[Row] = []
    before = None
    for at, row in zip(bounds, rows, strict=True):
        pid, address = h.first[at]
        who = f"{pid}" if pid != before else ""
        before = pid
        found.append([(f"{who:>7} {address:#x}".ljust(label)[:label] + "│", "dim"), *row])
    each = show_bytes(h.block_bytes)
    legend = f"{h.blocks} blocks of {each}; a column per round; ░▒▓█ dirty pages (log scale)"
    if s.heat_estimated:
        legend = "estimated within mappings (no --events); " + legend
    return [*found, clipped([(legend, "dim")], width)]


def faults(s: TargetSnapshot, width: int, height: int) -> list[Row]:
    """Return recent write faults by type."""
    series = s.series
    if not len(series):
        return waiting(s)
    recent = Series(series.values[-MEAN:])
    seconds = max(float(recent["duration_s"].sum()), 1e-9)
    total = float(np.nansum(recent["write_faults"]))
    rows: list[Row] = [[("write faults ", "dim"), (f"{total / seconds:,.0f}/s", "")]]
    for name, column in _TYPES:
        values = recent[column]
        if np.isnan(values).all():
            rows.append([(f"  {name:<14}", "dim"), ("unknown with this probe", "dim")])
            continue
        rate = float(np.nansum(values)) / seconds
        part = rate * seconds / total if total else 0.0
        bar = "█" * round(min(part, 1.0) * _BAR)
        rows.append(
            [(f"  {name:<14}", "dim"), (f"{rate:>11,.0f}/s {part:>5.0%} ", ""), (bar, "again")]
        )
    return [clipped(row, width) for row in rows][:height]


def tlb(s: TargetSnapshot, width: int, height: int) -> list[Row]:
    """Return recent TLB flushes: those of the target itself, and those caused by arming."""
    if not len(s.series):
        return waiting(s)
    recent = Series(s.series.values[-MEAN:])
    arm = float(recent["arm_s"].mean())
    rows: list[Row] = []
    total = recent.per_s("tlb_flushes")
    if np.isnan(total).all():
        rows.append([("TLB flushes cannot be traced on this kernel", "dim")])
    else:
        rows.append([("TLB flushes ", "dim"), (f"{float(np.nanmean(total)):,.1f}/s", "")])
        waited = recent.per_s("tlb_flush_s")
        if not np.isnan(waited).all():
            rows[-1].append((f", waiting {show_time(float(np.nanmean(waited)))}/s", ""))
    rows[-1].append((f"   arming takes {show_time(arm)}", "dim"))
    if s.tlb:
        rows.append(
            [(f"  {'':<20}{'flushes/s':>11}{'full/s':>9}{'pages/s':>10}{'arm/s':>9}", "dim")]
        )
    for t in s.tlb:
        row = f"{t.flushes:>11,.1f}{_maybe(t.full_flushes):>9}{t.pages:>10,.0f}"
        rows.append(
            [(f"  {cell(t.reason, 20, left=True)}", "dim"), (row, ""),
             (f"{_maybe(t.arm_flushes):>9}", "warn")]
        )  # fmt: skip
    return [clipped(row, width) for row in rows][:height]


def _maybe(value: float | None) -> str:
    return "?" if value is None else f"{value:,.1f}"


def writers(s: TargetSnapshot, width: int, height: int) -> list[Row]:
    """Return the threads and stacks that dirty most."""
    if s.writers is None:
        if s.playback is not None:
            return wrapped(
                "no events: recorded without --events, so writers are unknown", width, "dim"
            )
        return wrapped(
            "not traced: press w to restart tracing with threads and stacks; this costs more (each "
            "write fault is reported individually, and its stack is walked)",
            width,
        )
    rows: list[Row] = []
    for stack in (False, True):
        found = [w for w in s.writers if bool(w.writer.stack) is stack]
        room = max((height - 2) // 2, 1) if not stack else height - len(rows) - 1
        rows.append([(f"{'pages/s':>11} {'share':>5}  {'stack' if stack else 'thread'}", "dim")])
        if not found:
            rows.append([("             none recently", "dim")])
        for w in found[:room]:
            name = _innermost(w.writer.stack) if stack else f"{w.writer.tid} (pid {w.writer.pid})"
            rows.append([(f"{w.pages_per_s:>11,.0f} {w.share:>5.0%}  {name}", "")])
    return [clipped(row, width) for row in rows][:height]


def _innermost(stack: str) -> str:
    comm, *frames = one_line(stack).split(";")
    return f"{comm}: {' < '.join(reversed(frames[-5:])) or '[stack unknown]'}"
