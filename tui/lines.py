"""Prints what redirty top shows, for scripts: a line of JSON for each round, or one round as text."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from redirty.collector import files, json_text
from redirty.collector.errors import RedirtyError, TargetEndedError, one_line, why
from redirty.collector.units import show_bytes, show_pages

if TYPE_CHECKING:
    from redirty.tui.options import TopChoices
    from redirty.tui.render.rows import Row
    from redirty.tui.snapshots.convergence import Convergence
    from redirty.tui.snapshots.history import MappingTable
    from redirty.tui.snapshots.snapshot import OverviewSnapshot, TargetSnapshot

_WIDTH = 100
_LISTED = 10
_VERDICTS = {True: "converges", False: "does not converge", None: "uncertain"}


def run(choices: TopChoices, *, once: bool, as_json: bool) -> int:
    """Print each round as it ends, or the first one only; return the exit code.

    Raises:
        RedirtyError: the target cannot be traced.
        TargetEndedError: it has ended.
    """
    if choices.measure is not None:
        bandwidth, source = choices.measure()
        choices = replace(
            choices, question=replace(choices.question, bandwidth=bandwidth, source=source)
        )
    looks = _processes(choices) if choices.target is None else _rounds(choices)
    for values, text in looks:
        if as_json:
            line = json_text.dump({"schema": json_text.SCHEMA, **values}, indent=None) + "\n"
            # Not by print(): interrupted in its flush, it would write the line again at the end.
            try:
                files.write_all(sys.stdout.fileno(), [line.encode()])
            except BrokenPipeError:
                raise
            except OSError as e:
                raise RedirtyError(f"cannot write to stdout: {why(e)}") from None
        else:
            print("\n".join(text()), flush=True)
        if once:
            break
    return 0


Look = tuple[dict[str, Any], Callable[[], list[str]]]


def _snapshots(reader: Any) -> Iterator[Any]:
    """Yield the snapshots of a reader, until it ends or the caller has seen enough.

    Raises: RedirtyError, TargetEndedError as the reader reports them.
    """
    from redirty.tui.snapshots.snapshot import ReaderState

    changed = threading.Event()
    reader.on_snapshot = changed.set
    reader.start()
    try:
        while True:
            changed.wait()
            changed.clear()
            shown = reader.latest
            yield shown
            if shown.state is ReaderState.FAILED:
                raise RedirtyError(shown.message)
            if shown.state is ReaderState.ENDED:
                raise TargetEndedError(shown.message)
            if shown.state is ReaderState.DONE:
                return
    finally:
        reader.close()


# ---- a target ----


def _rounds(choices: TopChoices) -> Iterator[Look]:
    from redirty.tui.readers.live import Live

    target = choices.target
    assert target is not None
    reader = Live(lambda: target, choices.trace, choices.question)
    printed = -1
    for s in _snapshots(reader):
        for at, number in enumerate(s.series["round"].tolist() if len(s.series) else ()):
            if number > printed and s.convergence is not None:
                printed = int(number)
                yield round_values(s, at), lambda s=s: _target_text(s)  # type: ignore[misc]


def round_values(s: TargetSnapshot, at: int) -> dict[str, Any]:
    """Return a round of a snapshot as a JSON-serializable dict: rounds.csv, the verdict, the mappings written most.

    at: index of the round in the snapshot's series.
    """
    from redirty.collector.recording.columns import ROUNDS

    row = s.series.values[at].tolist()
    values = dict(zip(ROUNDS, row, strict=True))
    return {
        "event": "round",
        "target": one_line(s.about.title),
        **{name: _number(name, value) for name, value in values.items()},
        "verdict": None if s.convergence is None else _verdict(s.convergence),
        "mappings": _mappings(s.mappings),
    }


def _number(column: str, value: float) -> float | int | None:
    """Return a value of rounds.csv as it is there: counts are whole, what is not known is null."""
    if math.isnan(value):
        return None
    return value if column.endswith("_s") else int(value)


def _verdict(c: Convergence) -> dict[str, Any]:
    return {
        "verdict": _VERDICTS[c.good],
        "bandwidth_bytes_per_s": c.question.bandwidth,
        "downtime_goal_s": c.question.downtime_s,
        "total_s": c.total_s if math.isfinite(c.total_s) else None,
        "downtime_s": c.downtime_s if math.isfinite(c.downtime_s) else None,
        "passes": len(c.passes),
        "min_bandwidth_bytes_per_s": c.sufficient,
    }


def _mappings(table: MappingTable) -> list[dict[str, Any]]:
    found = []
    for i in range(min(len(table), _LISTED)):
        mapping = table[i]
        found.append(
            {
                "pid": int(table.pid[i]),
                "start": f"{mapping.start:#x}",
                "mapping_class": mapping.mapping_class,
                "path": one_line(mapping.path),
                "dirty_pages_per_s": round(float(table.dirty_per_s[i]), 3),
                "redirtied_pages_per_s": round(float(table.redirtied_per_s[i]), 3),
                "present_pages": int(table.present[i]),
            }
        )
    return found


def _target_text(s: TargetSnapshot) -> list[str]:
    from redirty.tui.render.convergence import question_row, verdict_rows
    from redirty.tui.render.target import details, heading

    rows: list[Row] = [*heading(s, _WIDTH, paused=False), *details(s, _WIDTH)]
    if s.convergence is not None:
        rows += [question_row(s.convergence, _WIDTH), *verdict_rows(s.convergence, _WIDTH)]
    lines = [_plain(row) for row in rows]
    for m in _mappings(s.mappings):
        again = show_pages(m["redirtied_pages_per_s"])
        what = m["path"] or "(anonymous)"
        lines.append(
            f"{again:>12}/s re-dirtied  {m['mapping_class']:<14} {m['start']}  {what}"[:_WIDTH]
        )
    return lines


def _plain(row: Row) -> str:
    return "".join(text for text, _ in row).rstrip()


# ---- all processes ----


def _processes(choices: TopChoices) -> Iterator[Look]:
    from redirty.tui.readers.overview import Overview
    from redirty.tui.snapshots.snapshot import ReaderState

    for s in _snapshots(Overview(choices.trace.interval_s)):
        if s.state is ReaderState.LIVE:
            yield process_values(s), lambda s=s: _overview_text(s)  # type: ignore[misc]


def process_values(s: OverviewSnapshot) -> dict[str, Any]:
    """Return all processes that had write faults as a JSON-serializable dict."""
    return {
        "event": "processes",
        "seconds": round(s.seconds, 6),
        "lost": s.lost,
        "processes": [
            {
                "pid": p.pid,
                "comm": one_line(p.comm),
                "kind": p.kind,
                "cgroup": one_line(p.cgroup),
                "rss_bytes": p.rss_bytes,
                "write_faults_per_s": p.write_faults,
                "first_touch_per_s": p.first_touch,
                "cow_per_s": p.cow,
                "mkwrite_per_s": p.mkwrite,
                "tlb_flushes_per_s": p.tlb_flushes,
            }
            for p in s.processes
            if p.write_faults
        ],
    }


def _overview_text(s: OverviewSnapshot) -> list[str]:
    from redirty.tui.render.overview import heading

    lines = [_plain(row) for row in heading(s, len(s.processes), "", _WIDTH)]
    lines.append(f"{'write faults/s':>14}  {'resident':>10}  {'pid':>7}  name")
    for p in s.processes[:_LISTED]:
        lines.append(
            f"{p.write_faults:>14,.0f}  {show_bytes(p.rss_bytes):>10}  {p.pid:>7}  {one_line(p.comm)}"
        )
    return lines
