"""The heading of the overview."""

from __future__ import annotations

from redirty.tui.render.rows import Row, clipped, message_rows
from redirty.tui.snapshots.snapshot import OverviewSnapshot, ReaderState


def heading(s: OverviewSnapshot, shown: int, view: str, width: int) -> list[Row]:
    """Return the number of processes and their total rate, or a message.

    Args:
        s: the snapshot.
        shown: number of processes that the filters leave.
        view: the filters, for display.
        width: in cells.
    """
    row: Row = [(" redirty top ", "title"), (" ", "")]
    if s.message:
        style = "bad" if s.state is ReaderState.FAILED else "warn"
        row.append((s.state.value, style))
        return [clipped(row, width), *message_rows(s.message, width, style)]
    row.append((s.state.value, "good" if s.state is ReaderState.LIVE else "dim"))
    row.append((f"  {shown} of {len(s.processes)} processes", ""))
    if s.state is ReaderState.LIVE:
        faults = sum(p.write_faults for p in s.processes)
        row.append((f"  {faults:,.0f} write faults/s", "again"))
        row.append((f"  over {s.seconds:.1f} s", "dim"))
    if s.lost:
        row.append((f"  {s.lost} events lost", "warn"))
    if view:
        row.append((f"  {view}", "warn"))
    return [clipped(row, width)]
