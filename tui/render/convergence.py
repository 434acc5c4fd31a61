"""W(t), the link's line across it, and whether a mirror would converge: as rows."""

from __future__ import annotations

import math

import numpy as np
from redirty.collector.units import show_bits, show_bytes, show_pages, show_time
from redirty.tui.render.charts import LABEL, Canvas, axis, nice
from redirty.tui.render.rows import Row, clipped, wrapped
from redirty.tui.render.target import waiting
from redirty.tui.snapshots.convergence import Convergence
from redirty.tui.snapshots.snapshot import TargetSnapshot


def curve(s: TargetSnapshot, width: int, height: int) -> list[Row]:
    """W(t) with the link's line across it: where the line is above the curve, a pass of that length
    leaves less than it copied."""
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
    carried = c.asked.bandwidth * first * (last / first) ** steps / 4096 / top
    for a, b in zip(steps.tolist(), carried.tolist(), strict=True):
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
    legend: Row = [("  ⠒⠒ ", "curve"), ("W(t)", ""), (" ⠂⠂ ", "curve"), ("carried on", "dim")]
    legend += [("  ++ ", "link"), (f"what {show_bits(c.asked.bandwidth)} carry in t", "")]
    return [*rows, clipped(legend, width)]


def asked_row(c: Convergence, width: int) -> Row:
    """What the answer is for."""
    return clipped(
        [
            ("link ", "dim"),
            (f"{show_bits(c.asked.bandwidth)} = {show_bytes(c.asked.bandwidth)}/s", "link"),
            (f" ({c.asked.source})", "dim"),
            ("  downtime ", "dim"),
            (show_time(c.asked.downtime_s), "link"),
            ("  policy ", "dim"),
            (c.asked.policy, "link"),
        ],
        width,
    )


def verdict_rows(c: Convergence, width: int, most: int = 2) -> list[Row]:
    """The verdict."""
    style = {True: "good", False: "bad", None: "warn"}[c.good]
    mark = {True: "✔ ", False: "✘ ", None: "? "}[c.good]
    return wrapped(mark + c.verdict, width, style, "  ")[:most]


def convergence(s: TargetSnapshot, width: int, height: int) -> list[Row]:
    """The question, the verdict, passes as bars, notes."""
    c = s.convergence
    if c is None:
        return waiting(s)
    rows = [asked_row(c, width), *verdict_rows(c, width)]
    if c.enough is not None and c.good:
        rows.append([("  needs ", "dim"), (f"{show_bytes(c.enough)}/s", ""), (" at least", "dim")])
    told = [row for note in c.notes for row in wrapped("note: " + note, width, "dim", "  ")]
    space = max(height - len(rows) - min(len(told), max(height // 4, 1)), 1)
    rows += _passes(c, width, space)
    return [*rows, *told][:height]


def _passes(c: Convergence, width: int, room: int) -> list[Row]:
    """A bar each; of many the first and the last ones."""
    passes = c.passes
    most = max((p.duration_s for p in passes), default=0.0) or 1.0
    ends = math.isfinite(c.total_s)
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
        stopped = ends and i == len(passes) - 1
        bar = "█" * max(round(p.duration_s / most * length), 1)
        style = "warn" if stopped else "again"
        said = f"{show_bytes(p.bytes):>11} {show_time(p.duration_s):>10}"
        rows.append(
            [(f"{p.number:>4} ", "dim"), (f"{bar:<{length}}", style), (said, "")]
            + ([(" stopped", "warn")] if stopped else [])
        )
    return [clipped(row, width) for row in rows]
