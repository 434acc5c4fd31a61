"""Statistics of mappings: the most re-dirtied ones, and how their pages are re-dirtied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from redirty.collector.analyze import redirtying
from redirty.collector.errors import one_line
from redirty.collector.units import plural, show_pages

if TYPE_CHECKING:
    import pandas as pd

I64 = npt.NDArray[np.int64]
_TOP = 8
# Identity of a mapping, which it keeps when it grows.
_KEYS = ["pid", "start", "mapping_class", "path"]


def by_mapping(
    frame: pd.DataFrame, pages: pd.DataFrame, duration_s: float, last_round: int
) -> list[dict[str, Any]]:
    """Return the mappings that were written, the most re-dirtied first.

    A mapping is identified by its process, start, class and path, so one that grows stays a single one. In
    addition to sums of mappings.csv each has `dirty_next_round` (share of its dirty pages that are dirty in
    the next round, too), `mean_run_rounds`, `pages` (ever dirty) and `hot_pages` (the fewest that account for
    redirtying.HOT percent of its page-rounds); None where there is no pages.csv.

    Args:
        frame, pages: mappings.csv and pages.csv as loaded.
        duration_s: total length of all rounds.
        last_round: number of the last round.
    """
    if frame.empty:
        return []
    summed = frame.groupby(_KEYS, as_index=False).agg(
        end=("end", "max"),
        perms=("perms", "last"),
        dirty_pages=("dirty_pages", "sum"),
        redirtied_pages=("redirtied_pages", "sum"),
        write_faults=("write_faults", "sum"),
    )
    summed = summed[summed["dirty_pages"] > 0].sort_values(
        ["redirtied_pages", "dirty_pages"], ascending=False
    )
    rows = []
    for row in summed.to_dict("records"):
        rows.append(
            {
                **{str(k): v for k, v in row.items()},
                "start": f"{int(row['start']):#x}",
                "end": f"{int(row['end']):#x}",
                "redirtied_pages_per_s": (
                    round(row["redirtied_pages"] / duration_s, 3) if duration_s else 0.0
                ),
            }
        )
    _add_page_statistics(rows, frame, pages, last_round)
    return rows


def by_class(mappings: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Return dirty and re-dirtied pages by mapping class. mappings: from by_mapping()."""
    found: dict[str, dict[str, int]] = {}
    for row in mappings:
        entry = found.setdefault(row["mapping_class"], {"dirty_pages": 0, "redirtied_pages": 0})
        entry["dirty_pages"] += int(row["dirty_pages"])
        entry["redirtied_pages"] += int(row["redirtied_pages"])
    return found


def _add_page_statistics(
    rows: list[dict[str, Any]], mappings: pd.DataFrame, pages: pd.DataFrame, last_round: int
) -> None:
    """Add the statistics of pages. A page counts for the last mapping at its address."""
    before_last = mappings[mappings["round"] < last_round].groupby(_KEYS)["dirty_pages"].sum()
    stayed = mappings.groupby(_KEYS)["stayed_dirty_pages"].sum(min_count=1).to_dict()
    followed = before_last.to_dict()
    lists = mappings.groupby(_KEYS, as_index=False).agg(end=("end", "max"), seen=("round", "max"))
    numbers = {
        (int(row[0]), int(row[1]), str(row[2]), str(row[3])): i
        for i, row in enumerate(lists[_KEYS].to_numpy(object).tolist())
    }
    owners = owner(pages, lists)
    order = np.argsort(owners, kind="stable")
    bounds = np.searchsorted(owners[order], np.arange(len(lists) + 1))
    dirty = pages["rounds_dirty"].to_numpy(np.int64)[order]
    runs = pages["runs"].to_numpy(np.float64)[order]
    for row in rows:
        key = (int(row["pid"]), int(row["start"], 16), row["mapping_class"], row["path"])
        i = numbers[key]
        own = slice(bounds[i], bounds[i + 1])
        row["dirty_next_round"] = redirtying.share(stayed.get(key, np.nan), followed.get(key, 0))
        row["mean_run_rounds"] = redirtying.mean_run(dirty[own], runs[own])
        row["pages"] = None if pages.empty else len(dirty[own])
        row["hot_pages"] = None if pages.empty else redirtying.hot_set(dirty[own], redirtying.HOT)


def owner(pages: pd.DataFrame, lists: pd.DataFrame) -> I64:
    """Return (n,) the row of the mapping that each page is in; -1 for none. Of several, the most recent one.

    pages: pid and address, ascending within a process. lists: pid, start, end (addresses, end exclusive) and
    seen (round), by row.
    """
    found: I64 = np.full(len(pages), -1, np.int64)
    pids = pages["pid"].to_numpy(np.int64)
    address = pages["address"].to_numpy(np.uint64)
    for pid, group in lists.sort_values("seen", kind="stable").groupby("pid", sort=False):
        first, last = np.searchsorted(pids, [int(str(pid)), int(str(pid)) + 1])
        own = address[first:last]
        lows = first + np.searchsorted(own, group["start"].to_numpy(np.uint64))
        highs = first + np.searchsorted(own, group["end"].to_numpy(np.uint64))
        for i, low, high in zip(group.index.tolist(), lows.tolist(), highs.tolist(), strict=True):
            found[low:high] = i
    return found


def as_lines(s: dict[str, Any]) -> list[str]:
    """Format the table of the report. s: the summary."""
    rows = s["mappings"]
    if not rows and s["dirty_pages"]:
        return ["the written mappings are unknown: mappings.csv has none"]
    if not rows:
        return ["no mapping was written"]
    head = f"{'re-dirtied':>13} {'dirty':>11}  {redirtying.HEAD}"
    lines = [redirtying.LEGEND, f"  {head}  {'class':<13} {'pid':>7}  mapping"]
    for row in rows[:_TOP]:
        dirty = show_pages(row["dirty_pages"] / max(s["duration_s"], 1e-9))
        redirtied = show_pages(row["redirtied_pages_per_s"])
        lines.append(
            f"  {redirtied:>11}/s {dirty:>9}/s  {redirtying.columns(row)}  {row['mapping_class']:<13} "
            f"{row['pid']:>7}  {row['start']} {one_line(row['path']) or '(anonymous)'}"
        )
    if len(rows) > _TOP:
        lines.append(f"  and {plural(len(rows) - _TOP, 'more mapping')} (mappings.csv)")
    return lines
