"""Loads a recording into pandas: a function for each file, with the types that its columns should have.

Every file also loads with plain pandas.read_csv and no options; these functions add what only
redirty can: complete rounds only, and addresses as numbers. recording/writer.py writes the files.

All functions raise RedirtyError when a file cannot be read, or is damaged.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redirty.collector.analyze.meta_schema import RESTORE, is_count, require_rounds, wrong_field
from redirty.collector.errors import RedirtyError, why
from redirty.collector.recording.columns import (
    CURVE,
    CURVES,
    MAPPINGS,
    PAGES,
    ROUNDS,
    RUNS,
    SCHEMA,
    STACKS,
    TLB,
    WORKING_SET,
    ZEROS,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

_TEXT = ("start", "end", "perms", "mapping_class", "path", "address", "reason", "stack")
_COUNTS = ("pages", "faults", "flushes", "events", "round")
# Columns without empty fields, in every file.
_FILLED = ("round", "pid", "duration_s", "dirty_pages", "rounds_dirty", "first_round", "last_round")


def load_meta(directory: Path) -> dict[str, Any]:
    """Load meta.json.

    Raises: RedirtyError when the directory is not a recording, or was written by a newer redirty; when
        meta.json is damaged, or reports rounds that rounds.csv does not have.
    """
    path = directory / "meta.json"
    try:
        meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RedirtyError(f"{directory} is not a recording: it has no meta.json") from None
    except OSError as e:
        raise RedirtyError(f"cannot read {path}: {why(e)}") from None
    except (ValueError, RecursionError):
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


def _read(
    directory: Path, name: str, columns: tuple[str, ...], max_bytes: int | None = None
) -> pd.DataFrame:
    """Load a CSV file. max_bytes: of a longer file, load only the rows in about that many bytes at its end."""
    import io

    import pandas as pd

    path = directory / name
    try:
        data = path.read_bytes() if max_bytes is None else _end_of(path, max_bytes)
    except FileNotFoundError:
        return pd.DataFrame({column: [] for column in columns})
    except OSError as e:
        raise RedirtyError(f"cannot read {path}: {why(e)}") from None
    # A recorder that was killed may have left half a row.
    data = data[: data.rfind(b"\n") + 1]
    if not data:
        return pd.DataFrame({column: [] for column in columns})
    try:
        frame = pd.read_csv(
            io.BytesIO(data), keep_default_na=False, na_values={c: [""] for c in columns}
        )
    except (ValueError, pd.errors.ParserError) as e:
        raise RedirtyError(f"{path} is damaged: {e}") from None
    numbers = [c for c in columns if c in frame and c not in _TEXT]
    wrong = [c for c in numbers if not _has_numbers(frame[c])]
    if wrong and len(frame):
        raise RedirtyError(f"{path} is damaged: column {wrong[0]} has a value that is not a number")
    missing = [c for c in columns if c not in frame.columns]
    if missing and len(frame.columns) and tuple(frame.columns) == columns[: len(frame.columns)]:
        return frame.reindex(columns=list(columns))  # an older redirty wrote fewer columns
    if missing:
        raise RedirtyError(f"{path} is damaged: it has no column {missing[0]}")
    return frame


def _has_numbers(column: pd.Series[Any]) -> bool:
    """Return whether a column has only finite numbers, and empty fields only where these are allowed."""
    import numpy as np
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return False
    if pd.api.types.is_integer_dtype(column):
        return True
    values = column.to_numpy(np.float64)
    return bool(np.isfinite(values).all() if column.name in _FILLED else not np.isinf(values).any())


# The start of a row of mappings.csv or curves.csv. A path may contain line breaks, but no such line except
# on purpose.
_ROW = re.compile(rb"\r\n(?=\d+,\d+,(0x|[a-z_]*,\d))")


def _end_of(path: Path, max_bytes: int) -> bytes:
    """Read the header of a file, and the whole rows in about max_bytes at its end."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size <= max_bytes:
            return file.read()
        header = file.readline()
        file.seek(size - max_bytes)
        tail = file.read()
    row = _ROW.search(tail)
    return header + (tail[row.end() :] if row else b"")


def load_rounds(directory: Path) -> pd.DataFrame:
    """Load rounds.csv: a row for each complete round."""
    return _read(directory, "rounds.csv", ROUNDS)


def _complete_only(frame: pd.DataFrame, directory: Path) -> pd.DataFrame:
    """Keep the rows of rounds that have a row in rounds.csv, which is written last."""
    done = load_rounds(directory)["round"]
    return frame[frame["round"].isin(done)].reset_index(drop=True)


def load_mappings(directory: Path, most: int | None = None) -> pd.DataFrame:
    """Load mappings.csv, with start and end as numbers.

    A mapping has a row for each round in which it was written, and for the one in which it first appeared.
    most: of a longer file only the rows in about that many bytes at its end.
    """
    frame = _complete_only(_read(directory, "mappings.csv", MAPPINGS, most), directory)
    frame["path"] = _text(frame["path"])
    return _with_addresses(directory / "mappings.csv", frame, "start", "end")


def load_pages(directory: Path) -> pd.DataFrame:
    """Load pages.csv, with address as a number."""
    frame = _read(directory, "pages.csv", PAGES)
    frame["mapping_class"] = _text(frame["mapping_class"])
    return _with_addresses(directory / "pages.csv", frame, "address")


def load_curve(directory: Path) -> pd.DataFrame:
    """Load curve.csv: W(t) by process."""
    return _read(directory, "curve.csv", CURVE)


def load_curves(directory: Path, most: int | None = None) -> pd.DataFrame:
    """Load curves.csv: points of the write curves of single rounds, and of windows of several rounds.

    Empty when an older redirty wrote the recording. most: as in load_mappings().
    """
    frame = _read(directory, "curves.csv", CURVES, most)
    frame["mapping_class"] = _text(frame["mapping_class"])
    return _complete_only(frame, directory)


def load_tlb(directory: Path) -> pd.DataFrame:
    """Load tlb.csv."""
    return _complete_only(_read(directory, "tlb.csv", TLB), directory)


def load_runs(directory: Path) -> pd.DataFrame:
    """Load runs.csv: lengths of streaks of dirty rounds, by process.

    Empty when an older redirty wrote the recording.
    """
    return _read(directory, "runs.csv", RUNS)


def load_working_set(directory: Path) -> pd.DataFrame:
    """Load working_set.csv: distinct pages over windows of several rounds.

    Empty when an older redirty wrote the recording.
    """
    frame = _read(directory, "working_set.csv", WORKING_SET)
    # A window is written before the row of the round that ends it.
    done = load_rounds(directory)["round"]
    ends = frame["first_round"] + frame["rounds"] - 1
    return frame[ends.isin(done)].reset_index(drop=True)


def load_zeros(directory: Path) -> pd.DataFrame:
    """Load zeros.csv: zero pages at the end of the recording, with start and end as numbers.

    Empty when it was recorded without --zeros.
    """
    frame = _read(directory, "zeros.csv", ZEROS)
    return _with_addresses(directory / "zeros.csv", frame, "start", "end")


def load_stacks(directory: Path) -> pd.DataFrame | None:
    """Load stacks.csv: the stack of each stack_id of events.parquet, and the pages it dirtied.

    None when it was recorded without --stacks, or by an older redirty.
    """
    if not (directory / "stacks.csv").exists():
        return None
    return _read(directory, "stacks.csv", STACKS)


def load_events(directory: Path) -> pd.DataFrame:
    """Load events.parquet, or the parts of it that an interrupted recording left behind.

    Raises: RedirtyError when it was recorded without --events.
    """
    frame = _parquet(directory, "events")
    if frame is None:
        raise RedirtyError(f"{directory} has no events: record with --events")
    return frame


def _parquet(directory: Path, name: str) -> pd.DataFrame | None:
    import pandas as pd

    path = directory / f"{name}.parquet"
    if path.exists():
        return pd.read_parquet(path)
    parts = sorted((directory / f".{name}").glob("part-*.parquet"))
    if not parts:
        return None
    return pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)


def load_folded_stacks(directory: Path) -> pd.DataFrame:
    """Load stacks.folded: stack (outermost function first, after the name of the process), pages.

    Raises: RedirtyError when it was recorded without --stacks.
    """
    import pandas as pd

    path = directory / "stacks.folded"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise RedirtyError(f"{directory} has no stacks: record with --stacks") from None
    except OSError as e:
        raise RedirtyError(f"cannot read {path}: {why(e)}") from None
    rows = [line.rpartition(" ") for line in text.split("\n")]
    rows = [row for row in rows if row[2].isdigit()]
    return pd.DataFrame(
        {
            "stack": pd.Series([row[0] for row in rows], dtype="str"),
            "pages": pd.Series([int(row[2]) for row in rows], dtype="int64"),
        }
    )


def _physical(directory: Path, name: str) -> pd.DataFrame:
    frame = _parquet(directory, name)
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


def _text(column: pd.Series[Any]) -> pd.Series[Any]:
    """Replace empty fields by "", also where all are empty."""
    return column.astype("str").where(column.notna(), "")


def _with_addresses(path: Path, frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Convert addresses to numbers."""
    import numpy as np
    import pandas as pd

    for name in columns:
        try:
            texts = frame[name].to_numpy(
                object
            )  # accessing them one by one in pandas takes ten times as long
            numbers = np.array([int(text, 16) for text in texts], np.uint64)
        except (ValueError, TypeError, OverflowError) as e:
            raise RedirtyError(f"{path} is damaged: column {name}: {e}") from None
        frame[name] = pd.Series(numbers, index=frame.index, name=name)
    return frame
