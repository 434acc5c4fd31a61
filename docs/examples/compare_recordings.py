"""Compares two recordings of a workload: say before and after a change of its settings.

    python docs/examples/compare_recordings.py BEFORE AFTER

A worked example of redirty.collector.analyze.load: each file of a recording comes as a pandas frame.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from redirty.collector.analyze import load
from redirty.collector.analyze.observations import observe
from redirty.collector.errors import RedirtyError
from redirty.collector.model.fit import fit

MIB = 1 << 20


def rates(directory: Path) -> pd.Series:
    """MiB per second over all complete rounds, and the share of dirty pages that were re-dirtied."""
    page_size = load.load_meta(directory)["page_size"]
    rounds = load.load_rounds(directory)
    seconds = rounds["duration_s"].sum()
    columns = ["dirty_pages", "redirtied_pages", "new_pages"]
    per_s = rounds[columns].sum() * page_size / MIB / max(seconds, 1e-9)
    per_s.index = pd.Index(["dirty MiB/s", "re-dirtied MiB/s", "new MiB/s"])
    per_s["present MiB"] = rounds["present_pages"].mean() * page_size / MIB
    return per_s


def write_curve(directory: Path, times: list[float]) -> pd.Series:
    """W(t) in MiB: what a pass of so many seconds leaves to be copied again."""
    found = fit(observe(directory))
    labels = [f"W({t:g} s) MiB" for t in times]
    return pd.Series([found.curve(t) * found.page_size / MIB for t in times], index=labels)


def hot_pages(directory: Path) -> pd.Series:
    """How many pages were ever dirty, and in at least nine rounds of ten."""
    rounds = len(load.load_rounds(directory))
    dirty = load.load_pages(directory)["rounds_dirty"]
    return pd.Series({"pages ever dirty": len(dirty), "hot pages": (dirty >= 0.9 * rounds).sum()})


def by_mapping(directory: Path) -> pd.Series:
    """Re-dirtied MiB per second of each mapping, by class and path: addresses differ between runs."""
    page_size = load.load_meta(directory)["page_size"]
    seconds = load.load_rounds(directory)["duration_s"].sum()
    frame = load.load_mappings(directory)
    name = frame["mapping_class"] + " " + frame["path"].replace("", "(anonymous)")
    sums = frame.groupby(name)["redirtied_pages"].sum() * page_size / MIB / max(seconds, 1e-9)
    return sums[sums > 0]


def side_by_side(before: pd.Series, after: pd.Series) -> pd.DataFrame:
    """Both, and how many times as much it is after."""
    table = pd.DataFrame({"before": before, "after": after}).fillna(0.0)
    table["ratio"] = table["after"] / table["before"].where(table["before"] > 0)
    return table


def main(before: Path, after: Path) -> None:
    """Prints the comparison."""
    times = [0.01, 0.1, 1.0]
    pd.options.display.float_format = "{:.2f}".format
    totals = [pd.concat([rates(d), write_curve(d, times), hot_pages(d)]) for d in (before, after)]
    print(side_by_side(*totals).to_string(na_rep="-"))
    print("\nre-dirtied MiB/s by mapping:")
    table = side_by_side(by_mapping(before), by_mapping(after))
    print(table.sort_values("after", ascending=False).head(10).to_string(na_rep="-"))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except RedirtyError as e:
        sys.exit(f"compare_recordings: {e}")
