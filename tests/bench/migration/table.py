"""The tables that a run ends with, made from its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.bench.migration.results import Load, Predicted, PreDump, Settings
from tests.bench.migration.verdicts import NEAR, PLAIN, Comparison, Summary

_MIB = 1 << 20
TOTAL_GOAL, BYTES_GOAL, PAGES_GOAL, DOWNTIME_GOAL = 0.05, 0.05, 0.05, 0.20
_HEADINGS = (
    "workload", "policy", "MiB/s", "critical", "ends", "real", "passes", "real", "total s", "interval", "real",
    "error", "MiB", "real", "error", "down ms", "real", "QEMU's", "late s", "throttled",
)  # fmt: skip


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Align cells in columns: the first one to the left, all others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *rest = (
            cell.ljust(width) if not index else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines) + "\n"


def migrations(rows: Sequence[Comparison]) -> str:
    """Return a line for each migration; in each group the prediction is first, then the result."""
    policies = list(dict.fromkeys(row.real.policy for row in rows))
    ordered = sorted(rows, key=lambda r: (policies.index(r.real.policy), r.real.bandwidth))
    names = dict.fromkeys(row.load.workload for row in rows)
    cells = [_cells(row) for name in names for row in ordered if row.load.workload == name]
    return columns([_HEADINGS, *cells])


def _cells(row: Comparison) -> tuple[str, ...]:
    real, predicted = row.real, row.prediction
    mark = " !" if row.wrong and not row.near else " ~" if row.wrong else ""
    ended = real.converged
    return (
        row.load.workload,
        real.policy,
        f"{real.bandwidth / _MIB:.1f}",
        f"{row.times_critical:.2f}",
        row.predicted_verdict + mark,
        row.happened,
        number(predicted.passes, "d"),
        str(real.passes),
        number(predicted.total_s, ".2f"),
        _interval(predicted),
        f"{real.total_s:.2f}" if ended else f"> {real.total_s:.0f}",
        percent(row.total_error),
        number(_over(predicted.transferred_bytes, _MIB), ".0f"),
        f"{real.transferred_bytes / _MIB:.0f}",
        percent(row.bytes_error),
        number(_over(predicted.downtime_s, 1e-3), ".0f"),
        number(_over(real.downtime_s, 1e-3), ".0f") if ended else "",
        number(_over(real.expected_downtime_s, 1e-3), ".0f"),
        number(real.guest_late_s, ".2f"),
        f"{real.throttle_percent} %" if real.throttle_percent else "",
    )


def workloads(loads: Sequence[Load], rows: Sequence[Comparison]) -> str:
    """Return a line for each guest: its memory, the critical bandwidth and what bounds it in truth."""
    headings = ("workload", "memory MiB", "of that zero", "critical MiB/s", "by formula", "failed at",
                "ended at", "QEMU's dirty rate MiB/s")  # fmt: skip
    cells = []
    for load in loads:
        own = [
            row.real
            for row in rows
            if row.load.workload == load.workload and row.real.policy == PLAIN
        ]
        failed = max((real.bandwidth for real in own if not real.converged), default=None)
        ended = min((real.bandwidth for real in own if real.converged), default=None)
        cells.append(
            (
                load.workload,
                f"{load.memory_bytes / _MIB:.0f}",
                f"{load.zero_bytes / _MIB:.0f}",
                f"{load.critical_bytes_per_s / _MIB:.1f}",
                number(_over(load.formula_bytes_per_s, _MIB), ".1f"),
                number(_over(failed, _MIB), ".1f"),
                number(_over(ended, _MIB), ".1f"),
                number(_over(load.qemu_dirty_bytes_per_s, _MIB), ".1f"),
            )
        )
    return columns([headings, *cells])


def totals(found: Summary, settings: Settings) -> str:
    """Return the medians and verdicts next to the goals."""
    lines = [
        f"{found.migrations} migrations, {found.predictions} predicted; {found.compared} came to an "
        "end that was predicted, too",
        f"median error of total time {middle(found.total_error)} (goal {TOTAL_GOAL:.0%}), of "
        f"bytes {middle(found.bytes_error)} (goal {BYTES_GOAL:.0%}), of downtime "
        f"{middle(found.downtime_error)} (goal {DOWNTIME_GOAL:.0%})",
        f"wrong verdicts: {found.wrong_far} (goal 0); within {NEAR:.0%} of the critical bandwidth "
        f"{found.wrong_near}; uncertain: {found.uncertain_near} there, {found.uncertain_far} elsewhere",
        f"does not converge: not ended within {settings.patience_s:g} s",
    ]
    if found.guests_wrong:
        lines.append(f"GUESTS WHOSE MEMORY WAS WRONG AFTERWARDS: {found.guests_wrong}")
    return "\n".join(lines) + "\n"


def problems(predicted: Sequence[Predicted]) -> str:
    """Return why there are no predictions, each reason once."""
    return "".join(
        f"not predicted: {p}\n" for p in dict.fromkeys(p.problem for p in predicted) if p
    )


def predumps(rows: Sequence[PreDump]) -> str:
    """Return a line for each pre-dump."""
    headings = ("workload", "pre-dump", "after s", "predicted pages", "written", "error", "scanned",
                "frozen ms", "took s")  # fmt: skip
    cells = [
        (
            row.workload,
            str(row.number),
            f"{row.after_s:.2f}" if row.number else "",
            number(row.predicted_pages, ".0f"),
            str(row.pages_written),
            percent(page_error(row)),
            str(row.pages_scanned),
            f"{row.frozen_s * 1e3:.0f}",
            f"{row.took_s:.2f}",
        )
        for row in rows
    ]
    return columns([headings, *cells])


def page_error(row: PreDump) -> float | None:
    """Return predicted pages over those written, less 1."""
    if row.predicted_pages is None or not row.pages_written:
        return None
    return row.predicted_pages / row.pages_written - 1


def percent(value: float | None) -> str:
    """Format an error, with its sign."""
    return "" if value is None else f"{value:+.1%}"


def middle(value: float | None) -> str:
    """Format a median of errors, which has no sign."""
    return "-" if value is None else f"{value:.1%}"


def number(value: float | None, form: str) -> str:
    """Format a number; empty for an unknown one."""
    if value is None:
        return ""
    return "never" if math.isinf(value) else format(value, form)


def _interval(predicted: Predicted) -> str:
    if predicted.low_total_s is None or predicted.high_total_s is None:
        return ""
    return f"{number(predicted.low_total_s, '.1f')}-{number(predicted.high_total_s, '.1f')}"


def _over(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
