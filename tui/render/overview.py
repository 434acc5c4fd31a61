"""The heading of the overview."""

from __future__ import annotations

from redirty.tui.render.rows import Row, clipped, told
from redirty.tui.snapshots.snapshot import OverviewSnapshot, ReaderState


def heading(s: OverviewSnapshot, shown: int, how: str, width: int) -> list[Row]:
    """How many processes, how fast they write in all, or what happened."""
    row: Row = [(" redirty top ", "title"), (" ", "")]
    if s.message:
        how = "bad" if s.state is ReaderState.FAILED else "warn"
        row.append((s.state.value, how))
        return [clipped(row, width), *told(s.message, width, how)]
    row.append((s.state.value, "good" if s.state is ReaderState.LIVE else "dim"))
    row.append((f"  {shown} of {len(s.processes)} processes", ""))
    if s.state is ReaderState.LIVE:
        faults = sum(p.write_faults for p in s.processes)
        row.append((f"  {faults:,.0f} write faults/s", "again"))
        row.append((f"  over {s.seconds:.1f} s", "dim"))
    if s.lost:
        row.append((f"  {s.lost} of processes without room", "warn"))
    if how:
        row.append((f"  {how}", "warn"))
    return [clipped(row, width)]
