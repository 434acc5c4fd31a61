"""Draws W(t) with the link's line across it, and the verdict on convergence."""

from __future__ import annotations

import math

import numpy as np
from redirty.collector.pageset import PAGE_SIZE
from redirty.collector.units import show_bits, show_bytes, show_pages, show_rate, show_time
from redirty.tui.render.charts import LABEL, Canvas, axis, nice
from redirty.tui.render.rows import Row, clipped, wrapped
from redirty.tui.render.target import waiting
from redirty.tui.snapshots.convergence import Convergence
from redirty.tui.snapshots.snapshot import TargetSnapshot


def curve(s: TargetSnapshot, width: int, height: int) -> list[Row]:
    """Draw W(t) and what the link sends in t.

    Where the link's line is above the curve, a pass of that length leaves less than it copied.
    """
    c = s.convergence
    if c is None:
        return waiting(s)
    room, lines = max(width - LABEL - 1, 8), max(height - 2, 2)
    first, last = float(c.elapsed_s[0]), float(c.elapsed_s[-1])
    known = c.elapsed_s <= c.measured_s
    top = nice(float(max(c.pages.max(), min(c.high[known].max(initial=0), 1.5 * c.pages.max()))))
    x = np.log(c.elapsed_s / first) / math.log(last / first)
    canvas = Canvas(room, lines)
    canvas.curve(x, c.high / top, "dim", every=3)
    canvas.curve(x, c.low / top, "dim", every=3)
    steps = np.linspace(0, 1, room)
    sent = c.question.bandwidth * first * (last / first) ** steps / PAGE_SIZE / top
    for a, b in zip(steps.tolist(), sent.tolist(), strict=True):
        canvas.mark(a, b, "+", "link")
    canvas.curve(x[known], c.pages[known] / top, "curve")
    if not known.all():
        canvas.curve(x[~known], c.pages[~known] / top, "curve", every=2)
    rows: list[Row] = [
        [(axis(show_pages(top), show_pages(top / 2), n, lines), "dim"), *row]
        for n, row in enumerate(canvas.rows())
    ]
    left, middle, right = (show_time(t) for t in (first, math.sqrt(first * last), last))
    half = max(room // 2 - len(middle) // 2, len(left))
    text = f"{left:<{half}}{middle:<{max(room - half - len(right), 0)}}{right}"
    rows.append([(f"{'t':>{LABEL}} {text}"[:width], "dim")])
    legend: Row = [("  ⠒⠒ ", "curve"), ("W(t)", ""), (" ⠂⠂ ", "curve"), ("extrapolated", "dim")]
    legend += [("  ++ ", "link"), (f"sent at {show_bits(c.question.bandwidth)} in t", "")]
    return [*rows, clipped(legend, width)]


def question_row(c: Convergence, width: int) -> Row:
    """Return the question: bandwidth, downtime and policy."""
    return clipped(
        [
            ("link ", "dim"),
            (f"{show_bits(c.question.bandwidth)} = {show_bytes(c.question.bandwidth)}/s", "link"),
            (f" ({c.question.source})", "dim"),
            ("  downtime ", "dim"),
            (show_time(c.question.downtime_s), "link"),
            ("  policy ", "dim"),
            (c.question.policy, "link"),
        ],
        width,
    )


def verdict_rows(c: Convergence, width: int, max_rows: int = 2) -> list[Row]:
    """Return the verdict, wrapped."""
    style = {True: "good", False: "bad", None: "warn"}[c.good]
    mark = {True: "✔ ", False: "✘ ", None: "? "}[c.good]
    return wrapped(mark + c.verdict, width, style, "  ")[:max_rows]


def convergence(s: TargetSnapshot, width: int, height: int) -> list[Row]:
    """Return the question, the verdict, the passes as bars, and notes."""
    c = s.convergence
    if c is None:
        return waiting(s)
    rows = [question_row(c, width), *verdict_rows(c, width)]
    if c.sufficient is not None and c.good:
        rows.append([("  needs at least ", "dim"), (show_rate(c.sufficient, c.question.unit), "")])
    if c.stop_s and c.stopped:
        sent = show_time(c.downtime_s - c.stop_s)
        rows.append([("  stopped for ", "dim"), (f"{show_time(c.stop_s)} + {sent} of sending", "")])
    note_rows = [row for note in c.notes for row in wrapped("note: " + note, width, "dim", "  ")]
    space = max(height - len(rows) - min(len(note_rows), max(height // 4, 1)), 1)
    rows += _passes(c, width, space)
    return [*rows, *note_rows][:height]


def _passes(c: Convergence, width: int, room: int) -> list[Row]:
    """Return a bar for each pass; only the first and last ones if there are too many."""
    passes = c.passes
    longest_s = max((p.duration_s for p in passes), default=0.0) or 1.0
    shown: list[int | None] = list(range(len(passes)))
    if len(passes) > room:
        tail = max((room - 1) // 2, 1)
        head = max(room - 1 - tail, 0)
        shown = [*range(head), None, *range(len(passes) - tail, len(passes))][:room]
    length = max(min(width - 40, 60), 8)
    rows: list[Row] = []
    for i in shown:
        if i is None:
            rows.append([(f"  …  {len(passes)} passes", "dim")])
            continue
        p = passes[i]
        stopped = c.stopped and i == len(passes) - 1
        bar = "█" * max(round(p.duration_s / longest_s * length), 1)
        style = "warn" if stopped else "again"
        amount = f"{show_bytes(p.bytes):>11} {show_time(p.duration_s):>10}"
        rows.append(
            [(f"{p.number:>4} ", "dim"), (f"{bar:<{length}}", style), (amount, "")]
            + ([(" stopped", "warn")] if stopped else [])
        )
    return [clipped(row, width) for row in rows]
