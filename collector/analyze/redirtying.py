"""Re-dirtying statistics: how likely a dirty page is dirty in the next round, streaks, hot sets, working sets.

Computed for a recording as a whole, and for each mapping.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from redirty.collector.analyze import load
from redirty.collector.units import show_pages, show_time

if TYPE_CHECKING:
    import pandas as pd

I64 = npt.NDArray[np.int64]
PERCENTS = (50, 80, 90, 99)  # of the writes: sizes of hot sets
HOT = 90  # the percentage shown for mappings, threads and stacks


def hot_set(counts: I64, percent: int) -> int:
    """Return the smallest number of pages that account for a percentage of all counts.

    counts: (n,) by page, not negative, such as rounds in which it was dirty. The pages with the highest counts
    form the set, so their number is exact. 0 when all counts are 0.
    """
    if len(counts) == 0:
        return 0
    # by count, the highest first
    each, pages = (found[::-1] for found in np.unique(counts, return_counts=True))
    sums = np.cumsum(pages * each)
    need = -(-int(sums[-1]) * percent // 100)  # rounded up: counts are whole
    if need <= 0:
        return 0
    at = int(np.searchsorted(sums, need))
    before = int(sums[at - 1]) if at else 0
    return int(pages[:at].sum()) + -(-(need - before) // int(each[at]))


def share(part: float, whole: float) -> float | None:
    """Return part / whole; None when whole is 0, or part is unknown (NaN)."""
    return round(float(part) / float(whole), 4) if whole > 0 and not np.isnan(part) else None


def run_length(page_rounds: float, stayed: float) -> float | None:
    """Return the mean length of a streak in rounds: page-rounds by streaks that started."""
    started = page_rounds - stayed
    return round(page_rounds / started, 3) if started > 0 else None


def summarise(directory: Path, rounds: pd.DataFrame, pages: pd.DataFrame) -> dict[str, Any]:
    """Return the statistics of a recording as a JSON-serializable dict.

    `dirty_next_round`: of the pages dirty in a round, the share that is dirty in the next one, too.
    `mean_run_rounds`, `run_lengths`: streaks of dirty rounds. `hot_set`: number of pages that account for a
    percentage of all page-rounds, and of all write faults. `working_set`: distinct pages over windows of a
    number of rounds. None or empty where an older redirty wrote the recording, or a file is missing.

    rounds, pages: rounds.csv and pages.csv as loaded.

    Raises: RedirtyError when a file cannot be read.
    """
    stayed = rounds["stayed_dirty_pages"]
    followed = float(rounds["dirty_pages"].iloc[:-1].sum())
    known = stayed.notna().any()
    has_pages = not pages.empty or not rounds["dirty_pages"].any()
    runs = load.load_runs(directory)
    lengths = runs.groupby(["rounds_from", "rounds_to"], as_index=False)[
        ["runs", "runs_going_on"]
    ].sum()
    return {
        "dirty_next_round": share(float(stayed.sum()), followed) if known else None,
        "mean_run_rounds": mean_run(
            _counts(pages["rounds_dirty"]), pages["runs"].to_numpy(np.float64)
        ),
        "run_lengths": [
            {str(k): int(v) for k, v in row.items()} for row in lengths.to_dict("records")
        ],
        "hot_set": [
            {
                "percent": percent,
                "pages": hot_set(_counts(pages["rounds_dirty"]), percent),
                "pages_of_write_faults": hot_set(_counts(pages["write_faults"]), percent),
            }
            for percent in PERCENTS
            if has_pages
        ],
        "working_set": _working_set(load.load_working_set(directory), rounds),
    }


def _counts(column: pd.Series[Any]) -> I64:
    return column.to_numpy(np.int64)


def mean_run(rounds_dirty: I64, runs: npt.NDArray[np.float64]) -> float | None:
    """Return the mean length of streaks in rounds, including those cut off by the ends of the recording.

    rounds_dirty, runs: (n,) dirty rounds, and streaks, by page. None when there are none, or they are
    unknown (NaN).
    """
    page_rounds, started = float(rounds_dirty.sum()), float(runs.sum())
    return run_length(page_rounds, page_rounds - started) if started > 0 else None


def _working_set(windows: pd.DataFrame, rounds: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the working sets by length of window.

    Single rounds are taken from rounds.csv, longer windows from working_set.csv, where processes that wrote
    nothing have no rows.
    """
    if rounds.empty:
        return []
    mean_s = float(rounds["duration_s"].mean())
    sizes = {1: rounds["dirty_pages"].to_numpy(np.float64)}
    for length, part in windows.groupby("rounds"):
        number = len(rounds) // int(str(length))
        by_window = part.groupby("first_round")["dirty_pages"].sum().to_numpy(np.float64)
        sizes[int(str(length))] = np.append(by_window, np.zeros(max(0, number - len(by_window))))
    return [
        {
            "rounds": length,
            "duration_s": round(length * mean_s, 6),
            "windows": len(pages),
            "mean_pages": round(float(pages.mean()), 1),
            "most_pages": int(pages.max()),
        }
        for length, pages in sorted(sizes.items())
    ]


# ---- lines ----


def as_lines(s: dict[str, Any]) -> list[str]:
    """Format the lines of the report. s: from summarise()."""
    lines = []
    if s["dirty_next_round"] is not None:
        run = s["mean_run_rounds"]
        lines.append(
            f"dirty again: {s['dirty_next_round']:.1%} of a round's dirty pages are dirty in the next "
            "one, too" + ("" if run is None else f"; a streak lasts {run:.1f} rounds on average")
        )
    if s["hot_set"]:
        hot = ", ".join(f"{h['percent']}% in {show_pages(h['pages'])}" for h in s["hot_set"])
        lines.append(f"hot pages, of all page-rounds: {hot}")
    if len(s["working_set"]) > 1:
        sizes = ", ".join(
            f"{show_time(w['duration_s'])}: {show_pages(w['mean_pages'])}" for w in s["working_set"]
        )
        lines.append(f"distinct pages dirty within: {sizes}")
    return lines


def columns(row: dict[str, Any]) -> str:
    """Format the three columns of a row: again, run, hot; '-' for unknown values."""
    again, run, hot = row["dirty_next_round"], row["mean_run_rounds"], row["hot_pages"]
    return (
        f"{'-' if again is None else f'{again:.0%}':>5} {'-' if run is None else f'{run:.1f}':>6} "
        f"{'-' if hot is None else show_pages(hot):>10}"
    )


HEAD = f"{'again':>5} {'run':>6} {'hot':>10}"
LEGEND = (
    "again: share of its dirty pages that are dirty in the next round, too; run: mean streak of dirty "
    f"rounds; hot: pages with {HOT}% of its page-rounds"
)
