"""Observations from a recording, the input of the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from redirty.collector.analyze import counted_once, load
from redirty.collector.errors import RedirtyError
from redirty.collector.model import change_points
from redirty.collector.model.observations import (
    ALL,
    Floats,
    Layout,
    MappingRate,
    Observations,
    Points,
)

if TYPE_CHECKING:
    import pandas as pd

# A prediction is based on the latest rounds: of long files only this many bytes at the end are read.
_CURVES_BYTES = 8 << 20
_MAPPINGS_BYTES = 4 << 20
_AVERAGE_POINTS = 128
_ZEROS = ("pages", "present_pages", "zero_pages")


def observe(directory: Path, meta: dict[str, Any] | None = None) -> Observations:
    """Build the observations of a recording.

    Raises: RedirtyError when it cannot be read, or no round of it is complete.
    """
    meta = meta or load.load_meta(directory)
    rounds = load.load_rounds(directory)
    if rounds.empty:
        raise RedirtyError(
            f"{directory} has no complete round: nothing to predict from; record for longer"
        )
    number = rounds["round"].to_numpy(np.int64)

    def column(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return rounds[name].fillna(0).to_numpy(np.float64)

    def once(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return counted_once.column(rounds, name).to_numpy(np.float64)

    dirty = once("dirty")
    curves = load.load_curves(directory, _CURVES_BYTES)
    classes = tuple(sorted(set(curves["mapping_class"].unique()) - {""}))
    seen = Observations(
        page_size=int(meta["page_size"]),
        number=number,
        duration_s=column("duration_s"),
        arm_s=column("arm_s"),
        present=once("present"),
        dirty=dirty,
        redirtied=once("redirtied"),
        # the share of them is what counts
        missed=column("missed_pages") * dirty / np.maximum(column("dirty_pages"), 1.0),
        points=_points(curves, classes),
        classes=classes,
        average=average_curve(directory) if curves.empty else None,
        layout=layout_of(load.load_zeros(directory), rounds),
        boundary_s=rounds["boundary_s"].to_numpy(np.float64),
        run_pages=_run_pages(rounds),
        busy=_busy(rounds),
    )
    first = change_points.find(change_points.rates_of(seen)).first
    return replace(seen, mappings=_mapping_rates(directory, rounds.iloc[first:]))


def layout_of(zeros: pd.DataFrame, rounds: pd.DataFrame | None = None) -> Layout | None:
    """Return the memory of zeros.csv in the order in which it is copied; None when that file is empty.

    Larger mappings come first, as QEMU copies the blocks of a guest's memory. Pages of anonymous memory that
    were never touched are copied as zero pages; those of files are not. Last come pages of files that no page
    table showed when the zero pages were counted.

    Args:
        zeros: zeros.csv as loaded.
        rounds: rounds.csv as loaded, at least one.
    """
    if zeros.empty:
        return None
    neighbours = (zeros["start"] == zeros["end"].shift()) & (zeros["pid"] == zeros["pid"].shift())
    area = (~neighbours).cumsum()
    size = zeros.groupby(area)["pages"].transform("sum")
    ordered = zeros.assign(area=area, size=size).sort_values(
        ["size", "area", "start"], ascending=[False, True, True]
    )
    once = bool(zeros["once_pages"].notna().all())
    names = ("once_pages", "present_once_pages", "zero_once_pages") if once else _ZEROS
    pages, present, zero = (ordered[name].to_numpy(np.float64) for name in names)
    anonymous = ordered["mapping_class"].str.startswith("anon").to_numpy()
    untouched = np.where(anonymous, pages - present, 0.0)
    pages, zero = present + untouched, zero + untouched
    if once and rounds is not None:
        last = rounds.iloc[-1]
        whole = last["present_once_pages"] + last["dirty_once_pages"] - last["redirtied_once_pages"]
        rest = float(whole) - float(present.sum())
        if rest > 0:
            pages, zero = np.append(pages, rest), np.append(zero, 0.0)
    return Layout(pages, zero)


def _run_pages(rounds: pd.DataFrame) -> float | None:
    known = rounds[rounds["dirty_runs"] > 0]
    if known.empty:
        return None
    return float(known["dirty_pages"].sum() / known["dirty_runs"].sum())


def _busy(rounds: pd.DataFrame) -> float | None:
    known = rounds[rounds["busiest_thread_s"].notna() & (rounds["duration_s"] > 0)]
    share = known["busiest_thread_s"].sum() / known["duration_s"].sum() if len(known) else 0.0
    return min(float(share), 1.0) if share > 0 else None


def _points(curves: pd.DataFrame, classes: tuple[str, ...]) -> Points:
    if curves.empty:
        return Points.none()
    codes = {"": ALL, **{name: i for i, name in enumerate(classes)}}
    return Points(
        curves["round"].to_numpy(np.int64),
        curves["rounds"].to_numpy(np.int64),
        np.asarray(curves["mapping_class"].map(codes), np.int64),
        curves["elapsed_s"].to_numpy(np.float64),
        counted_once.column(curves, "dirty").to_numpy(np.float64),
        counted_once.column(curves, "redirtied").to_numpy(np.float64),
        counted_once.raced(curves).to_numpy(np.float64),
    )


def average_curve(directory: Path) -> tuple[Floats, Floats] | None:
    """Return curve.csv of all processes together: (seconds, pages), ascending. None when it is empty."""
    frame = load.load_curve(directory)
    if frame.empty:
        return None
    elapsed_s = frame["elapsed_s"].to_numpy(np.float64)
    times = np.geomspace(max(elapsed_s.min(), 1e-9), elapsed_s.max(), _AVERAGE_POINTS)
    total = np.zeros(len(times))
    for _, part in frame.groupby("pid"):
        total += np.interp(
            times,
            np.insert(part["elapsed_s"].to_numpy(np.float64), 0, 0.0),
            np.insert(part["unique_dirty_pages"].to_numpy(np.float64), 0, 0.0),
        )
    return times, total


def _mapping_rates(directory: Path, rounds: pd.DataFrame) -> tuple[MappingRate, ...]:
    """Return the write rates of mappings in the last rounds of a recording, the fastest first."""
    frame = load.load_mappings(directory, _MAPPINGS_BYTES)
    seen = frame[frame["round"] >= rounds["round"].iloc[0]]
    # Only the end of the file may have been read.
    read = rounds if seen.empty else rounds[rounds["round"] >= frame["round"].min()]
    read_s = float(read["duration_s"].fillna(0).sum())
    if seen.empty or read_s <= 0:
        return ()
    keys = ["pid", "start", "mapping_class", "path"]
    sums = seen.groupby(keys, as_index=False)["dirty_pages"].sum()
    sums = sums[sums["dirty_pages"] > 0].sort_values("dirty_pages", ascending=False)
    return tuple(
        MappingRate.of(
            int(row["start"]),
            str(row["path"]),
            str(row["mapping_class"]),
            int(row["pid"]),
            float(row["dirty_pages"]) / read_s,
        )
        for row in sums.to_dict("records")
    )
