"""Figures of the whole target with shared memory counted once: columns, the summary, and lines for people.

A recording of an older redirty has only sums over processes: those stand for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from redirty.collector.analyze import load
from redirty.collector.units import show_pages

if TYPE_CHECKING:
    import pandas as pd

TIMES_S = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
"""Times of W(t) in a summary."""
NOTE = "shared memory counts once for each process of the target: an older redirty recorded this; record again"
_CURVES_BYTES = 8 << 20  # of a longer file only the end is read


def column(frame: pd.DataFrame, name: str) -> pd.Series[Any]:
    """Return a column of page counts, every page counted once where that is known.

    Args:
        frame: rounds.csv or curves.csv as loaded.
        name: present, dirty or redirtied.
    """
    return frame[f"{name}_once_pages"].fillna(frame[f"{name}_pages"])


def raced(curves: pd.DataFrame) -> pd.Series[Any]:
    """Return the raced pages of curves.csv: as many of them as of all pages are counted once."""
    share = column(curves, "dirty") / curves["dirty_pages"]
    return (curves["raced_pages"] * share).fillna(curves["raced_pages"])


def notes(meta: dict[str, Any], rounds: pd.DataFrame) -> list[str]:
    """Return a caveat if the recording counts shared memory more than once. rounds: rounds.csv as loaded."""
    several = len(meta["target"].get("pids", ())) > 1
    return [NOTE] if several and rounds["dirty_once_pages"].isna().all() else []


def summarise(directory: Path, rounds: pd.DataFrame, duration_s: float) -> dict[str, Any]:
    """Return the main counts with every page counted once; None where a recording lacks them."""
    found: dict[str, Any] = {}
    for name in ("dirty_once_pages", "redirtied_once_pages"):
        total = _total(rounds[name])
        found[name] = total
        per_s = None if total is None or not duration_s else round(total / duration_s, 3)
        found[f"{name}_per_s"] = per_s
    present = rounds["present_once_pages"].dropna()
    found["present_once_pages_mean"] = None if present.empty else round(float(present.mean()), 1)
    found["curve_once"] = _curve(directory)
    return found


def _curve(directory: Path) -> list[dict[str, float]]:
    """Return W(t) of the target, every page counted once, at a few times: the mean of the latest rounds."""
    import numpy as np

    frame = load.load_curves(directory, _CURVES_BYTES)
    frame = frame[(frame["mapping_class"] == "") & (frame["rounds"] <= 1)]
    frame = frame.dropna(subset=["dirty_once_pages"])
    if frame.empty or not frame["dirty_once_pages"].any():
        return []
    curves = [
        (part["elapsed_s"].to_numpy(), part["dirty_once_pages"].to_numpy())
        for _, part in frame.sort_values(["round", "elapsed_s"]).groupby("round")
    ]
    usual = float(np.median([times[-1] for times, _ in curves]))
    found = []
    for t in (*(t for t in TIMES_S if t < usual), usual):
        values = [
            float(np.interp(t, np.append(0.0, times), np.append(0.0, pages)))
            for times, pages in curves
            if times[-1] >= t
        ]
        mean = sum(values) / len(values)
        found.append({"elapsed_s": round(t, 6), "unique_dirty_pages": round(mean, 1)})
    return found


def _total(column: pd.Series[Any]) -> int | None:
    known = column.dropna()
    return None if known.empty else int(known.sum())


def counted(s: dict[str, Any], name: str, unit: str = "") -> float:
    """Return a count of dirty, redirtied or present pages, with every page counted once if that is known."""
    once = s[f"{name}_once_pages{unit}"]
    return float(s[f"{name}_pages{unit}"] if once is None else once)


def as_lines(s: dict[str, Any]) -> list[str]:
    """Format how much more the sum over processes is, if shared memory makes a difference."""
    once, pages = s["dirty_once_pages"], s["dirty_pages"]
    if once is None:
        several = len(s["target"].get("pids", ())) > 1
        return [f"  {NOTE}"] if several else []
    if once >= pages:
        return []
    return [f"  summed over processes, dirty: {show_pages(s['dirty_pages_per_s'])}/s"]
