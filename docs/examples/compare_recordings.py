"""Compare two recordings of a workload: before and after a change of its settings, say.

    python docs/examples/compare_recordings.py BEFORE AFTER

A worked example of redirty.collector.analyze.load, which loads each file of a recording as a pandas frame.
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
    """Return dirty, re-dirtied and new MiB per second over all complete rounds, and MiB present."""
    page_size = load.load_meta(directory)["page_size"]
    rounds = load.load_rounds(directory)
    seconds = rounds["duration_s"].sum()
    columns = ["dirty_pages", "redirtied_pages", "new_pages"]
    per_s = rounds[columns].sum() * page_size / MIB / max(seconds, 1e-9)
    per_s.index = pd.Index(["dirty MiB/s", "re-dirtied MiB/s", "new MiB/s"])
    per_s["present MiB"] = rounds["present_pages"].mean() * page_size / MIB
    return per_s


def write_curve(directory: Path, times: list[float]) -> pd.Series:
    """Return W(t) in MiB: what a pass of that many seconds leaves to be copied again."""
    found = fit(observe(directory))
    labels = [f"W({t:g} s) MiB" for t in times]
    return pd.Series([found.curve(t) * found.page_size / MIB for t in times], index=labels)


def hot_pages(directory: Path) -> pd.Series:
    """Count the pages that were ever dirty, and those dirty in at least nine rounds of ten."""
    rounds = len(load.load_rounds(directory))
    dirty = load.load_pages(directory)["rounds_dirty"]
    return pd.Series({"pages ever dirty": len(dirty), "hot pages": (dirty >= 0.9 * rounds).sum()})


def by_mapping(directory: Path) -> pd.Series:
    """Return re-dirtied MiB per second by class and path of mappings: addresses differ between runs."""
    page_size = load.load_meta(directory)["page_size"]
    seconds = load.load_rounds(directory)["duration_s"].sum()
    frame = load.load_mappings(directory)
    name = frame["mapping_class"] + " " + frame["path"].replace("", "(anonymous)")
    sums = frame.groupby(name)["redirtied_pages"].sum() * page_size / MIB / max(seconds, 1e-9)
    return sums[sums > 0]


def side_by_side(before: pd.Series, after: pd.Series) -> pd.DataFrame:
    """Return both as a table, with the ratio of after to before."""
    table = pd.DataFrame({"before": before, "after": after}).fillna(0.0)
    table["ratio"] = table["after"] / table["before"].where(table["before"] > 0)
    return table


def main(before: Path, after: Path) -> None:
    """Print the comparison."""
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
