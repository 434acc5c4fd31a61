"""Re-dirtying statistics of threads and stacks, from the events of a recording."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from redirty.collector.analyze import load, redirtying, tables
from redirty.collector.errors import one_line
from redirty.collector.pageset import PAGE_SHIFT, U64
from redirty.collector.units import plural

if TYPE_CHECKING:
    import pandas as pd

I64 = npt.NDArray[np.int64]
_PAGE_BITS = 45  # of a page number, with five levels of page tables
_TOP = 8


def statistics(groups: I64, pages: U64, rounds: I64, last_round: int) -> list[dict[str, Any]]:
    """Return the re-dirtying statistics of each group of writers, from single writes in any order.

    For each group: `page_rounds` (pages by round), `pages` (distinct), `dirty_next_round` (share of its pages
    of a round that it writes in the next one, too), `mean_run_rounds`, `hot_pages` (that account for HOT
    percent of its page-rounds).

    Args:
        groups: (n,) number of the group that wrote, from 0.
        pages: (n,) page written.
        rounds: (n,) round of the write.
        last_round: number of the last round recorded.
    """
    if len(groups) == 0:
        return []
    order = np.lexsort((rounds, pages, groups))
    g, p, r = groups[order], pages[order], rounds[order]
    same_page = np.concatenate(([False], (g[1:] == g[:-1]) & (p[1:] == p[:-1])))
    once = ~(same_page & np.concatenate(([False], r[1:] == r[:-1])))
    g, r, same_page = g[once], r[once], same_page[once]
    stayed = same_page & (np.diff(r, prepend=r[0]) == 1)
    number = int(g[-1]) + 1
    page_rounds = np.bincount(g, minlength=number)
    followed = np.bincount(g[r < last_round], minlength=number)
    stayed_of = np.bincount(g[stayed], minlength=number)
    starts = np.flatnonzero(~same_page)
    counts = np.diff(starts, append=len(g))  # of each page, by group
    bounds = np.searchsorted(g[starts], np.arange(number + 1))
    return [
        {
            "page_rounds": int(page_rounds[i]),
            "pages": int(bounds[i + 1] - bounds[i]),
            "dirty_next_round": redirtying.share(int(stayed_of[i]), int(followed[i])),
            "mean_run_rounds": redirtying.run_length(int(page_rounds[i]), int(stayed_of[i])),
            "hot_pages": redirtying.hot_set(counts[bounds[i] : bounds[i + 1]], redirtying.HOT),
        }
        for i in range(number)
    ]


def round_of(time_s: npt.NDArray[np.float64], rounds: pd.DataFrame) -> I64:
    """Return (n,) the complete round of each time; -1 for none. rounds: as loaded."""
    starts = rounds["start_s"].to_numpy(np.float64)
    ends = starts + rounds["duration_s"].to_numpy(np.float64)
    if len(starts) == 0:
        return np.full(len(time_s), -1, np.int64)
    at = np.searchsorted(starts, time_s, side="right") - 1
    inside = (at >= 0) & (time_s < ends[np.maximum(at, 0)])
    numbers = rounds["round"].to_numpy(np.int64)
    return np.where(inside, numbers[np.maximum(at, 0)], -1)


def summarise(directory: Path, rounds: pd.DataFrame) -> dict[str, Any]:
    """Return `threads` and `stacks`, those that dirty most pages first.

    Each has its statistics(), with pid and tid, or pid, stack_id and stack. None without --events; stacks
    are None without --stacks, and have only their pages without --events.

    Raises: RedirtyError when a file cannot be read.
    """
    if not tables.parquet_files(directory, "events"):
        return {"threads": None, "stacks": _stacks_without_events(directory)}
    events = load.load_events(directory)
    number = round_of(events["time_s"].to_numpy(np.float64), rounds)
    events, number = events[number >= 0], number[number >= 0]
    last = int(rounds["round"].iloc[-1]) if len(rounds) else -1
    found: dict[str, Any] = {"threads": _by(events, ["pid", "tid"], number, last), "stacks": None}
    names = load.load_stacks(directory)
    if names is not None:
        known = events["stack_id"].notna().to_numpy()
        chosen = events[known].astype({"stack_id": "int64"})
        found["stacks"] = _by(chosen, ["pid", "stack_id"], number[known], last)
        texts = {
            (int(pid), int(stack)): str(text)
            for pid, stack, text in names.dropna(subset=["stack_id"])[
                ["pid", "stack_id", "stack"]
            ].itertuples(index=False)
        }
        for row in found["stacks"]:
            row["stack"] = texts.get((row["pid"], row["stack_id"]), "")
    return found


def _by(events: pd.DataFrame, keys: list[str], number: I64, last: int) -> list[dict[str, Any]]:
    if events.empty:
        return []
    grouped = events.groupby(keys, sort=True)
    groups = grouped.ngroup().to_numpy().astype(np.int64)
    names: list[Any] = list(grouped.groups)
    pid_codes = np.unique(events["pid"].to_numpy(np.uint64), return_inverse=True)[1]
    pages = events["address"].to_numpy(np.uint64) >> np.uint64(PAGE_SHIFT)
    pages |= pid_codes.astype(np.uint64) << np.uint64(_PAGE_BITS)
    rows = [
        dict(zip(keys, map(int, name), strict=True)) | values
        for name, values in zip(
            names, statistics(groups, pages.astype(np.uint64), number, last), strict=True
        )
    ]
    return sorted(rows, key=lambda row: -int(row["page_rounds"]))


def _stacks_without_events(directory: Path) -> list[dict[str, Any]] | None:
    names = load.load_stacks(directory)
    if names is None:
        return None
    return [
        {
            "pid": int(pid),
            "stack_id": None if np.isnan(stack_id) else int(stack_id),
            "page_rounds": int(pages),
            "stack": str(text),
        }
        for pid, stack_id, pages, text in names.itertuples(index=False)
    ]


def as_lines(s: dict[str, Any]) -> list[str]:
    """Format the tables of the report. s: from summarise()."""
    lines: list[str] = []
    if s["threads"]:
        lines += ["", f"  {'page-rounds':>11} {redirtying.HEAD}  thread"]
        lines += [f"  {_values(row)}  {row['tid']} of {row['pid']}" for row in s["threads"][:_TOP]]
        lines += _more(s["threads"], "thread")
    if s["stacks"]:
        total = sum(row["page_rounds"] for row in s["stacks"])
        lines += ["", f"  {'page-rounds':>11} {redirtying.HEAD}  {'share':>5}  stack"]
        for row in s["stacks"][:_TOP]:
            share = row["page_rounds"] / total if total else 0.0
            lines.append(f"  {_values(row)}  {share:>5.0%}  {_innermost(row['stack'])}")
        lines += _more(s["stacks"], "stack")
    return lines


def _values(row: dict[str, Any]) -> str:
    if "hot_pages" in row:
        return f"{row['page_rounds']:>11} {redirtying.columns(row)}"
    return f"{row['page_rounds']:>11} {'-':>5} {'-':>6} {'-':>10}"


def _more(rows: list[dict[str, Any]], what: str) -> list[str]:
    return [f"  and {plural(len(rows) - _TOP, f'more {what}')} (--json)"] if rows[_TOP:] else []


def _innermost(stack: str) -> str:
    """Format the innermost functions of a folded stack: 'comm: writer < caller < …'."""
    comm, *frames = one_line(stack).split(";")
    return f"{comm}: {' < '.join(reversed(frames[-3:])) or '[stack unknown]'}"
