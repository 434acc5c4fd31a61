"""Recordings as an older redirty wrote them: without the columns that were added since, which are at the end."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def drop_columns(recording: Path, table: str, first: str) -> None:
    """Take away a column of a table, and all that were added after it; nothing if the table has no such column."""
    path = recording / f"{table}.csv"
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if first in frame.columns:
        frame = frame.iloc[:, : list(frame.columns).index(first)]
        frame.to_csv(path, index=False, lineterminator="\r\n")
