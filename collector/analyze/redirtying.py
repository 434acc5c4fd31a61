"""How pages are dirtied again: the probability that a dirty page is dirty in the next round, lengths
of runs, hot sets, distinct pages over several rounds; of a recording and of each mapping."""

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
PERCENTS = (50, 80, 90, 99)  # of the writes, that a hot set has
HOT = 90  # the one that is told of mappings, threads and stacks


def hot_set(counts: I64, percent: int) -> int:
    """The least number of pages that have a percentage of all.

    counts: (n,) of each page, not negative: rounds in which it was dirty, say. The pages that have
    most are that set, so their number is exact. 0 when there is nothing.
    """
    if len(counts) == 0:
        return 0
    pages = np.bincount(counts)[::-1]  # by count, the highest first
    each = np.arange(len(pages) - 1, -1, -1)
    sums = np.cumsum(pages * each)
    need = -(-int(sums[-1]) * percent // 100)  # rounded up: counts are whole
    if need <= 0:
        return 0
    at = int(np.searchsorted(sums, need))
    before = int(sums[at - 1]) if at else 0
    return int(pages[:at].sum()) + -(-(need - before) // int(each[at]))


def share(part: float, whole: float) -> float | None:
    """part / whole; None of nothing, or where the recording does not tell."""
    return round(float(part) / float(whole), 4) if whole > 0 and not np.isnan(part) else None


def run_length(page_rounds: float, stayed: float) -> float | None:
    """Rounds that a run is long on average: page-rounds by those that began one."""
    began = page_rounds - stayed
    return round(page_rounds / began, 3) if began > 0 else None


def summarise(directory: Path, rounds: pd.DataFrame, pages: pd.DataFrame) -> dict[str, Any]:
    """For programs. rounds, pages: rounds.csv and pages.csv as loaded.

    `dirty_next_round`: of the pages dirty in a round, the share that is dirty in the next one, too.
    `mean_run_rounds`, `run_lengths`: runs of consecutive dirty rounds. `hot_set`: pages that have so
    many percent of all page-rounds, and of all write faults. `working_set`: distinct pages over
    windows of so many rounds, over all of these windows. None or empty where a recording of an
    older redirty, or one without a file, does not tell. Errors: RedirtyError.
    """
    stayed = rounds["stayed_dirty_pages"]
    followed = float(rounds["dirty_pages"].iloc[:-1].sum())
    known = stayed.notna().any()
    told = not pages.empty or not rounds["dirty_pages"].any()
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
            if told
        ],
        "working_set": _working_set(load.load_working_set(directory), rounds),
    }


def _counts(column: pd.Series[Any]) -> I64:
    return column.to_numpy(np.int64)


def mean_run(rounds_dirty: I64, runs: npt.NDArray[np.float64]) -> float | None:
    """The mean length of runs in rounds, those included that go on at either end of the recording.

    rounds_dirty, runs: (n,) of each page. None when there are none, or it does not tell (NaN).
    """
    page_rounds, began = float(rounds_dirty.sum()), float(runs.sum())
    return run_length(page_rounds, page_rounds - began) if began > 0 else None


def _working_set(windows: pd.DataFrame, rounds: pd.DataFrame) -> list[dict[str, Any]]:
    """One round from rounds.csv, longer windows from working_set.csv, where processes that wrote
    nothing have no rows."""
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
    """Lines of the report. s: as summarise() gives it."""
    lines = []
    if s["dirty_next_round"] is not None:
        run = s["mean_run_rounds"]
        lines.append(
            f"dirty again: {s['dirty_next_round']:.1%} of a round's dirty pages are dirty in the next, "
            "too" + ("" if run is None else f"; runs of dirty rounds are {run:.1f} long on average")
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
    """Of a row with the three values: next, run, hot; '-' for what is not known."""
    again, run, hot = row["dirty_next_round"], row["mean_run_rounds"], row["hot_pages"]
    return (
        f"{'-' if again is None else f'{again:.0%}':>5} {'-' if run is None else f'{run:.1f}':>6} "
        f"{'-' if hot is None else show_pages(hot):>10}"
    )


HEAD = f"{'again':>5} {'run':>6} {'hot':>10}"
LEGEND = (
    "again: of its dirty pages, dirty in the next round too; run: dirty rounds in a row; "
    f"hot: what has {HOT}% of its page-rounds"
)
