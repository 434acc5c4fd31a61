"""Reads a file of a recording as a table: what every loader goes through, whatever the file is or contains."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redirty.collector.analyze.schema import (
    TABLES,
    Address,
    DamageError,
    Number,
    Table,
    Text,
    require_columns,
    require_values,
)
from redirty.collector.checked_files import (
    memory_limit,
    open_regular,
    read_regular,
    require_size,
)
from redirty.collector.errors import RedirtyError, why
from redirty.collector.units import plural

if TYPE_CHECKING:
    import pandas as pd

_HEADER_BYTES = 1 << 16  # a header is far shorter
_EVENT_BYTES = 64  # of a row in memory, and more


def read_csv(directory: Path, name: str, most: int | None = None) -> pd.DataFrame:
    """Load NAME.csv: checked, addresses as numbers, empty if the file is missing.

    most: of a longer file, load only the rows in about that many bytes at its end.

    Raises: RedirtyError when the file cannot be read, or is damaged.
    """
    path = directory / f"{name}.csv"
    schema = TABLES[name]
    try:
        data = read_csv_bytes(path, most)
    except FileNotFoundError:
        return _empty(schema)
    except OSError as e:
        raise RedirtyError(f"cannot read {path}: {why(e)}") from None
    try:
        return _parse(data, schema)
    except DamageError as e:
        raise RedirtyError(f"{path} is damaged: {e}") from None


def read_csv_bytes(path: Path, most: int | None = None) -> bytes:
    """Read the complete rows of a CSV file. most: as for read_csv().

    Raises: OSError when that fails, or the file is not a regular one, or too large.
    """
    limit = memory_limit()
    data = read_regular(path, limit) if most is None else _end_of(path, most, limit)
    # After a crash of the machine, what was not yet written may be zeros.
    whole = data.rstrip(b"\0")
    # A recorder that was killed may have left half a row.
    return whole[: whole.rfind(b"\n") + 1]


# The start of a row of mappings.csv or curves.csv. A path may contain line breaks, but no such line except
# on purpose.
_ROW = re.compile(rb"\r\n(?=\d+,\d+,(0x|[a-z_]*,\d))")


def _end_of(path: Path, most: int, limit: int) -> bytes:
    """Read the header of a file, and the whole rows in about `most` bytes at its end."""
    with os.fdopen(open_regular(path), "rb") as file:
        size = file.seek(0, 2)
        require_size(size, limit)
        file.seek(0)
        if size <= most:
            return file.read(most)
        header = file.readline(_HEADER_BYTES)
        file.seek(size - most)
        tail = file.read(most)
    row = _ROW.search(tail)
    return header + (tail[row.end() :] if row else b"")


def _empty(schema: Table) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame({column: [] for column in schema.kinds})
    texts = {name: "str" for name, kind in schema.kinds.items() if isinstance(kind, Text)}
    return _with_addresses(frame.astype(texts), schema)


def _parse(data: bytes, schema: Table) -> pd.DataFrame:
    """Parse and check a table. Raises: DamageError."""
    import pandas as pd

    if not data:
        return _empty(schema)
    if b"\0" in data:
        raise DamageError(f"it has zero bytes, the first at {data.index(0)}")
    try:
        frame = pd.read_csv(
            io.BytesIO(data),
            keep_default_na=False,
            na_values={c: [""] for c, kind in schema.kinds.items() if isinstance(kind, Number)},
            dtype={c: "str" for c, kind in schema.kinds.items() if not isinstance(kind, Number)},
            low_memory=False,
        )
    except (ValueError, OverflowError, pd.errors.ParserError) as e:
        raise DamageError(str(e)) from None
    # pandas takes the first field as a label when rows have more fields than the header
    if not isinstance(frame.index, pd.RangeIndex):
        raise DamageError("its rows have more fields than columns")
    missing = require_columns(frame.columns.tolist(), schema)
    if missing:
        frame = frame.reindex(columns=[*frame.columns, *missing])
    frame = _with_addresses(frame, schema)
    for name, kind in schema.kinds.items():
        if isinstance(kind, Text):
            frame[name] = frame[name].astype("str").where(frame[name].notna(), "")
    known = Table(
        {name: kind for name, kind in schema.kinds.items() if name not in missing},
        schema.oldest,
        schema.order,
        schema.unique,
        tuple(pair for pair in schema.at_most if not set(pair) & set(missing)),
    )
    require_values(frame, known)
    return frame


def _with_addresses(frame: pd.DataFrame, schema: Table) -> pd.DataFrame:
    """Convert addresses to numbers. Raises: DamageError."""
    import numpy as np
    import pandas as pd

    for name, kind in schema.kinds.items():
        if not isinstance(kind, Address):
            continue
        try:
            # accessing them one by one in pandas takes ten times as long
            texts = frame[name].to_numpy(object)
            numbers = np.array([int(text, 16) for text in texts], np.uint64)
        except (ValueError, TypeError, OverflowError) as e:
            raise DamageError(f"column {name}: {e}") from None
        frame[name] = pd.Series(numbers, index=frame.index, name=name)
    return frame


# ---- Parquet ----


def read_parquet(directory: Path, name: str) -> pd.DataFrame | None:
    """Load NAME.parquet, or the parts of it that an interrupted recording left behind; None without either.

    Raises: RedirtyError when a file cannot be read, or is damaged.
    """
    import pandas as pd

    parts = parquet_files(directory, name)
    if not parts:
        return None
    schema = TABLES[name]
    found, rows = [], 0
    for path in parts:
        try:
            table = _read_arrow(path, schema, rows)
            rows += len(table)
            found.append(table)
        except OSError as e:
            raise RedirtyError(f"cannot read {path}: {why(e)}") from None
        except DamageError as e:
            raise RedirtyError(f"{path} is damaged: {e}") from None
    frame = found[0] if len(found) == 1 else pd.concat(found, ignore_index=True)
    try:
        require_values(frame, schema)
    except DamageError as e:
        raise RedirtyError(f"{parts[0]} is damaged: {e}") from None
    return frame


def parquet_files(directory: Path, name: str) -> list[Path]:
    """Return NAME.parquet, or its parts in .NAME/; an empty list without either.

    Raises: RedirtyError when the directory cannot be read.
    """
    path, parts = directory / f"{name}.parquet", directory / f".{name}"
    try:
        if os.path.lexists(path):
            return [path]
        return sorted(parts.glob("part-*.parquet"))
    except OSError as e:
        raise RedirtyError(f"cannot read {directory}: {why(e)}") from None


def _read_arrow(path: Path, schema: Table, before: int) -> pd.DataFrame:
    """Read a Parquet file; its values are not checked yet.

    before: rows of the parts before it.

    Raises: OSError; DamageError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    limit = memory_limit()
    with os.fdopen(open_regular(path), "rb") as file:
        require_size(os.fstat(file.fileno()).st_size, limit)
        try:
            # Values are read by position: metadata of pandas or Arrow in the file has no effect.
            opened = pq.ParquetFile(file, arrow_extensions_enabled=False)
            _require_types(opened.schema_arrow, schema)
            rows = before + opened.metadata.num_rows
            if rows * _EVENT_BYTES > limit or opened.metadata.num_rows < 0:
                raise DamageError(
                    f"it has {plural(rows, 'row')}, too many for this machine's memory"
                )
            table = opened.read(columns=list(schema.kinds), use_threads=False)
        except (pa.ArrowException, ValueError, KeyError, IndexError, OverflowError, OSError) as e:
            raise DamageError(str(e).partition("\n")[0]) from None
    frame: pd.DataFrame = table.replace_schema_metadata(None).to_pandas()
    return frame


def _require_types(found: Any, schema: Table) -> None:
    """Check the types of the columns of a Parquet file. Raises: DamageError."""
    from pyarrow import types

    require_columns(found.names, schema)
    for name, kind in schema.kinds.items():
        if found.names.count(name) != 1:
            raise DamageError(f"it has column {name} twice")
        of = found.field(name).type
        if isinstance(kind, Text):
            if types.is_dictionary(of):
                of = of.value_type
            right = types.is_string(of)
        elif isinstance(kind, Number) and not kind.whole:
            right = types.is_floating(of)
        else:
            right = types.is_integer(of)
        if not right:
            raise DamageError(f"column {name} has values of another type")
