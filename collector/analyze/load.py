"""Loads a recording into pandas: a function for each file, with the types that its columns should have.

Every file also loads with plain pandas.read_csv and no options; these functions add what only
redirty can: complete rounds only, and addresses as numbers. recording/writer.py writes the files.

All functions raise RedirtyError when a file cannot be read, or is damaged.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redirty.collector import json_text
from redirty.collector.analyze.meta_schema import RESTORE, is_count, require_rounds, wrong_field
from redirty.collector.analyze.tables import read_csv, read_parquet
from redirty.collector.checked_files import memory_limit, read_regular
from redirty.collector.errors import RedirtyError, why
from redirty.collector.recording.columns import SCHEMA

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

_META_BYTES = 64 << 20  # of a tree of a hundred thousand processes


def load_meta(directory: Path) -> dict[str, Any]:
    """Load meta.json.

    Raises: RedirtyError when the directory is not a recording, or was written by a newer redirty; when
        meta.json is damaged, or reports rounds that rounds.csv does not have.
    """
    path = directory / "meta.json"
    try:
        meta = json_text.parse(read_regular(path, _META_BYTES))
    except FileNotFoundError:
        raise RedirtyError(f"{directory} is not a recording: it has no meta.json") from None
    except OSError as e:
        raise RedirtyError(f"cannot read {path}: {why(e)}") from None
    except ValueError:
        raise RedirtyError(f"{path} is damaged: it is not JSON; {RESTORE}") from None
    if not isinstance(meta, dict) or "schema" not in meta:
        raise RedirtyError(
            f"{directory} is not a recording: its meta.json belongs to another program"
        )
    if not is_count(meta["schema"]):
        raise RedirtyError(f"{path} is damaged: schema is not a count; {RESTORE}")
    if meta["schema"] > SCHEMA:
        raise RedirtyError(
            f"{directory} was written by a newer redirty (schema {meta['schema']}, this one knows "
            f"{SCHEMA}): update redirty"
        )
    wrong = wrong_field(meta)
    if wrong:
        raise RedirtyError(f"{path} is damaged: {wrong}; {RESTORE}")
    require_rounds(directory / "rounds.csv", meta.get("rounds", 0))
    return meta


def load_rounds(directory: Path) -> pd.DataFrame:
    """Load rounds.csv: a row for each complete round."""
    return read_csv(directory, "rounds")


def _complete_only(frame: pd.DataFrame, directory: Path) -> pd.DataFrame:
    """Keep the rows of rounds that have a row in rounds.csv, which is written last."""
    done = load_rounds(directory)["round"]
    return frame[frame["round"].isin(done)].reset_index(drop=True)


def load_mappings(directory: Path, most: int | None = None) -> pd.DataFrame:
    """Load mappings.csv, with start and end as numbers.

    A mapping has a row for each round in which it was written, and for the one in which it first appeared.
    most: of a longer file only the rows in about that many bytes at its end.
    """
    return _complete_only(read_csv(directory, "mappings", most), directory)


def load_pages(directory: Path) -> pd.DataFrame:
    """Load pages.csv, with address as a number."""
    return read_csv(directory, "pages")


def load_curve(directory: Path) -> pd.DataFrame:
    """Load curve.csv: W(t) by process."""
    return read_csv(directory, "curve")


def load_curves(directory: Path, most: int | None = None) -> pd.DataFrame:
    """Load curves.csv: points of the write curves of single rounds, and of windows of several rounds.

    Empty when an older redirty wrote the recording. most: as in load_mappings().
    """
    return _complete_only(read_csv(directory, "curves", most), directory)


def load_tlb(directory: Path) -> pd.DataFrame:
    """Load tlb.csv."""
    return _complete_only(read_csv(directory, "tlb"), directory)


def load_runs(directory: Path) -> pd.DataFrame:
    """Load runs.csv: lengths of streaks of dirty rounds, by process.

    Empty when an older redirty wrote the recording.
    """
    return read_csv(directory, "runs")


def load_working_set(directory: Path) -> pd.DataFrame:
    """Load working_set.csv: distinct pages over windows of several rounds.

    Empty when an older redirty wrote the recording.
    """
    frame = read_csv(directory, "working_set")
    # A window is written before the row of the round that ends it.
    done = load_rounds(directory)["round"]
    ends = frame["first_round"] + frame["rounds"] - 1
    return frame[ends.isin(done)].reset_index(drop=True)


def load_zeros(directory: Path) -> pd.DataFrame:
    """Load zeros.csv: zero pages at the end of the recording, with start and end as numbers.

    Empty when it was recorded without --zeros.
    """
    return read_csv(directory, "zeros")


def load_stacks(directory: Path) -> pd.DataFrame | None:
    """Load stacks.csv: the stack of each stack_id of events.parquet, and the pages it dirtied.

    None when it was recorded without --stacks, or by an older redirty.
    """
    if not os.path.lexists(directory / "stacks.csv"):
        return None
    return read_csv(directory, "stacks")


def load_events(directory: Path) -> pd.DataFrame:
    """Load events.parquet, or the parts of it that an interrupted recording left behind.

    Raises: RedirtyError when it was recorded without --events.
    """
    frame = read_parquet(directory, "events")
    if frame is None:
        raise RedirtyError(f"{directory} has no events: record with --events")
    return frame


def load_folded_stacks(directory: Path) -> pd.DataFrame:
    """Load stacks.folded: stack (outermost function first, after the name of the process), pages.

    Raises: RedirtyError when it was recorded without --stacks.
    """
    import pandas as pd

    path = directory / "stacks.folded"
    try:
        text = read_regular(path, memory_limit()).decode("utf-8", errors="replace")
    except FileNotFoundError:
        raise RedirtyError(f"{directory} has no stacks: record with --stacks") from None
    except OSError as e:
        raise RedirtyError(f"cannot read {path}: {why(e)}") from None
    rows = [line.rpartition(" ") for line in text.split("\n")]
    rows = [row for row in rows if row[2].isascii() and row[2].isdigit() and len(row[2]) < 19]
    return pd.DataFrame(
        {
            "stack": pd.Series([row[0] for row in rows], dtype="str"),
            "pages": pd.Series([int(row[2]) for row in rows], dtype="int64"),
        }
    )


def _physical(directory: Path, name: str) -> pd.DataFrame:
    frame = read_parquet(directory, name)
    if frame is None:
        raise RedirtyError(f"{directory} has no page frames: record with --physical")
    return _complete_only(frame, directory)


def load_physical(directory: Path) -> pd.DataFrame:
    """Load physical.parquet: the bitmap of dirty frames, a row for each round and 64 frames.

    Raises: RedirtyError when it was recorded without --physical.
    """
    return _physical(directory, "physical")


def frame_numbers(bitmap: pd.DataFrame) -> npt.NDArray[np.uint64]:
    """Return the frames in rows of load_physical(), ascending and unique."""
    import numpy as np

    if bitmap.empty:
        return np.empty(0, np.uint64)
    ordered = bitmap.sort_values("first_pfn", kind="stable")
    firsts = ordered["first_pfn"].to_numpy(np.uint64)
    starts = np.flatnonzero(np.concatenate(([True], firsts[1:] != firsts[:-1])))
    # A frame may occur in several rounds.
    words = np.bitwise_or.reduceat(ordered["bits"].to_numpy(np.uint64), starts)
    row, bit = np.nonzero(words[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1))
    found: npt.NDArray[np.uint64] = firsts[starts][row] + bit.astype(np.uint64)
    return found


def load_frames(directory: Path, number: int | None = None) -> pd.DataFrame:
    """Load frames.parquet: the frame of each dirty page, where it changed. pfn is NA for no frame.

    number: instead return one row per page, with its last known frame at the end of that round.

    Raises: RedirtyError when it was recorded without --physical.
    """
    frame = _physical(directory, "frames").astype({"pfn": "UInt64"})
    if number is None:
        return frame
    frame = frame[frame["round"] <= number]
    return frame.drop_duplicates(["pid", "address"], keep="last").reset_index(drop=True)
