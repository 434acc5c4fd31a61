"""Loads a recording into pandas: one function for each file, with the types it should have.

Every file also loads with plain pandas.read_csv and no options; these functions add what only
redirty knows: which rounds are complete, and addresses as numbers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redirty.collector.analyze.meta_schema import AGAIN, is_count, require_rounds, wrong_field
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
# never empty, in whichever file they are
_FILLED = ("round", "pid", "duration_s", "dirty_pages", "rounds_dirty", "first_round", "last_round")


def load_meta(directory: Path) -> dict[str, Any]:
    """meta.json.

    Errors: RedirtyError when the directory is no recording, or one of a newer redirty; when meta.json
    is damaged, or tells of rounds and rounds.csv has none.
    """
    path = directory / "meta.json"
    try:
        meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RedirtyError(f"{directory} is no recording: it has no meta.json") from None
    except OSError as e:
        raise RedirtyError(f"cannot read {path}: {why(e)}") from None
    except (ValueError, RecursionError):
        raise RedirtyError(f"{path} is damaged: it is not JSON; {AGAIN}") from None
    if not isinstance(meta, dict) or "schema" not in meta:
        raise RedirtyError(f"{directory} is no recording: meta.json is of something else")
    if not is_count(meta["schema"]):
        raise RedirtyError(f"{path} is damaged: schema is not a count; {AGAIN}")
    if meta["schema"] > SCHEMA:
        raise RedirtyError(
            f"{directory} was written by a newer redirty (schema {meta['schema']}, this one knows "
            f"{SCHEMA}): update redirty"
        )
    wrong = wrong_field(meta)
    if wrong:
        raise RedirtyError(f"{path} is damaged: {wrong}; {AGAIN}")
    require_rounds(directory / "rounds.csv", meta.get("rounds", 0))
    return meta


def _read(
    directory: Path, name: str, columns: tuple[str, ...], most: int | None = None
) -> pd.DataFrame:
    """A file. most: of a longer one, only the rows in about so many bytes at its end."""
    import io

    import pandas as pd

    path = directory / name
    try:
        data = path.read_bytes() if most is None else _end_of(path, most)
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
        raise RedirtyError(f"{path} is damaged: column {wrong[0]} has what is no number")
    missing = [c for c in columns if c not in frame.columns]
    if missing and len(frame.columns) and tuple(frame.columns) == columns[: len(frame.columns)]:
        return frame.reindex(columns=list(columns))  # of an older redirty, which had fewer
    if missing:
        raise RedirtyError(f"{path} is damaged: it has no column {missing[0]}")
    return frame


def _has_numbers(column: pd.Series[Any]) -> bool:
    """Finite ones; empty fields only in columns that may have some."""
    import numpy as np
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return False
    if pd.api.types.is_integer_dtype(column):
        return True
    values = column.to_numpy(np.float64)
    return bool(np.isfinite(values).all() if column.name in _FILLED else not np.isinf(values).any())


# How a row of mappings.csv or curves.csv begins. A path may have line breaks in it, but no line like that
# unless on purpose.
_ROW = re.compile(rb"\r\n(?=\d+,\d+,(0x|[a-z_]*,\d))")


def _end_of(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size <= most:
            return file.read()
        header = file.readline()
        file.seek(size - most)
        tail = file.read()
    begin = _ROW.search(tail)
    return header + (tail[begin.end() :] if begin else b"")


def load_rounds(directory: Path) -> pd.DataFrame:
    """rounds.csv: a row a complete round. Errors: RedirtyError."""
    return _read(directory, "rounds.csv", ROUNDS)


def _complete_only(frame: pd.DataFrame, directory: Path) -> pd.DataFrame:
    """Rows of rounds that have their row in rounds.csv, which is written last."""
    done = load_rounds(directory)["round"]
    return frame[frame["round"].isin(done)].reset_index(drop=True)


def load_mappings(directory: Path, most: int | None = None) -> pd.DataFrame:
    """mappings.csv, with start and end as numbers; a mapping has a row for each round in which it
    was written and for the one in which it first appeared. most: of a longer file only the rows in
    about so many bytes at its end. Errors: RedirtyError."""
    frame = _complete_only(_read(directory, "mappings.csv", MAPPINGS, most), directory)
    frame["path"] = _text(frame["path"])
    return _with_addresses(directory / "mappings.csv", frame, "start", "end")


def load_pages(directory: Path) -> pd.DataFrame:
    """pages.csv, with address as a number. Errors: RedirtyError."""
    frame = _read(directory, "pages.csv", PAGES)
    frame["mapping_class"] = _text(frame["mapping_class"])
    return _with_addresses(directory / "pages.csv", frame, "address")


def load_curve(directory: Path) -> pd.DataFrame:
    """curve.csv: W(t) by process. Errors: RedirtyError."""
    return _read(directory, "curve.csv", CURVE)


def load_curves(directory: Path, most: int | None = None) -> pd.DataFrame:
    """curves.csv: points of the write curves of single rounds and of runs of them; without a row when
    an older redirty made the recording. most: as in load_mappings(). Errors: RedirtyError."""
    frame = _read(directory, "curves.csv", CURVES, most)
    frame["mapping_class"] = _text(frame["mapping_class"])
    return _complete_only(frame, directory)


def load_tlb(directory: Path) -> pd.DataFrame:
    """tlb.csv. Errors: RedirtyError."""
    return _complete_only(_read(directory, "tlb.csv", TLB), directory)


def load_runs(directory: Path) -> pd.DataFrame:
    """runs.csv: lengths of runs of consecutive dirty rounds, by process. Empty for a recording of
    an older redirty. Errors: RedirtyError."""
    return _read(directory, "runs.csv", RUNS)


def load_working_set(directory: Path) -> pd.DataFrame:
    """working_set.csv: distinct pages over windows of several rounds. Empty likewise.

    Errors: RedirtyError.
    """
    frame = _read(directory, "working_set.csv", WORKING_SET)
    # Written before the row of the round that ends it.
    done = load_rounds(directory)["round"]
    ends = frame["first_round"] + frame["rounds"] - 1
    return frame[ends.isin(done)].reset_index(drop=True)


def load_zeros(directory: Path) -> pd.DataFrame:
    """zeros.csv: which pages were all zeros at the end; start and end are numbers. Empty when it was
    recorded without --zeros. Errors: RedirtyError."""
    frame = _read(directory, "zeros.csv", ZEROS)
    return _with_addresses(directory / "zeros.csv", frame, "start", "end")


def load_stacks(directory: Path) -> pd.DataFrame | None:
    """stacks.csv: which stack is behind a stack_id of events.parquet, and the pages it dirtied;
    None when it was recorded without --stacks, or by an older redirty. Errors: RedirtyError."""
    if not (directory / "stacks.csv").exists():
        return None
    return _read(directory, "stacks.csv", STACKS)


def load_events(directory: Path) -> pd.DataFrame:
    """events.parquet, or the parts of it that a recording which was cut off left behind.

    Errors: RedirtyError when it was recorded without --events.
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
    """stacks.folded: stack (outermost first, after the program's name), pages.

    Errors: RedirtyError when it was recorded without --stacks.
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
    """physical.parquet: the bitmap of dirty frames, a row for each round and 64 frames.

    Errors: RedirtyError when it was recorded without --physical.
    """
    return _physical(directory, "physical")


def frame_numbers(bitmap: pd.DataFrame) -> npt.NDArray[np.uint64]:
    """The frames in rows of load_physical(), ascending, each once."""
    import numpy as np

    if bitmap.empty:
        return np.empty(0, np.uint64)
    ordered = bitmap.sort_values("first_pfn", kind="stable")
    firsts = ordered["first_pfn"].to_numpy(np.uint64)
    starts = np.flatnonzero(np.concatenate(([True], firsts[1:] != firsts[:-1])))
    # the same frames in several rounds
    words = np.bitwise_or.reduceat(ordered["bits"].to_numpy(np.uint64), starts)
    row, bit = np.nonzero(words[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1))
    found: npt.NDArray[np.uint64] = firsts[starts][row] + bit.astype(np.uint64)
    return found


def load_frames(directory: Path, number: int | None = None) -> pd.DataFrame:
    """frames.parquet: the side list. pfn is missing where a page lay in no frame. With a round's
    number: one row a page, where each lay as far as it was known at the end of that round.

    Errors: RedirtyError when it was recorded without --physical.
    """
    frame = _physical(directory, "frames").astype({"pfn": "UInt64"})
    if number is None:
        return frame
    frame = frame[frame["round"] <= number]
    return frame.drop_duplicates(["pid", "address"], keep="last").reset_index(drop=True)


def _text(column: pd.Series[Any]) -> pd.Series[Any]:
    """With "" for empty fields, also where all are empty."""
    return column.astype("str").where(column.notna(), "")


def _with_addresses(path: Path, frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """With addresses as numbers. Errors: RedirtyError."""
    import numpy as np
    import pandas as pd

    for name in columns:
        try:
            texts = frame[name].to_numpy(object)  # one by one out of pandas takes ten times as long
            numbers = np.array([int(text, 16) for text in texts], np.uint64)
        except (ValueError, TypeError, OverflowError) as e:
            raise RedirtyError(f"{path} is damaged: column {name}: {e}") from None
        frame[name] = pd.Series(numbers, index=frame.index, name=name)
    return frame
