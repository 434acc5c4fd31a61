"""events.parquet: every write fault. Parts while recording, so that nothing is lost if it is cut
off; one file at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from redirty.collector.attach import abi
from redirty.collector.errors import RedirtyError
from redirty.collector.export.files import trouble

PARTS = ".events"
_ROWS_A_PART = 1 << 20


class EventFile:
    """Collects records of the ring and writes them as Parquet."""

    def __init__(self, directory: Path, started_ns: int) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise RedirtyError(
                "--events needs the package pyarrow: run 'make setup' again"
            ) from None
        self._arrow: Any = pyarrow
        self._parquet: Any = pyarrow.parquet
        self._directory = directory
        self._started_ns = started_ns
        self._waiting: list[npt.NDArray[np.void]] = []
        self._rows = 0
        self._parts: list[Path] = []
        self.total = 0

    def add(self, records: npt.NDArray[np.void]) -> None:
        """Takes records over (attach.ring.RECORD); those of before the start do not count.

        Errors: RedirtyError.
        """
        if len(records) and records["ns"][0] < self._started_ns:
            records = records[records["ns"] >= self._started_ns]
        if len(records):
            self._waiting.append(records)
            self._rows += len(records)
            self.total += len(records)
        if self._rows >= _ROWS_A_PART:
            self.flush()

    def flush(self) -> None:
        """Writes what is waiting as a part. Errors: RedirtyError; it is then still waiting."""
        if not self._rows:
            return
        parts = self._directory / PARTS
        path = parts / f"part-{len(self._parts):05d}.parquet"
        try:
            parts.mkdir(mode=0o700, exist_ok=True)
            self._write(path, [self._table(np.concatenate(self._waiting))])
        except OSError as e:
            raise trouble(parts, e) from None
        except RedirtyError:
            _remove_if_empty(parts)
            raise
        self._waiting, self._rows = [], 0
        self._parts.append(path)

    def _table(self, records: npt.NDArray[np.void]) -> Any:
        a = self._arrow
        kinds = a.DictionaryArray.from_arrays(
            a.array(records["kind"].astype(np.int8)), a.array(list(abi.KIND_NAMES))
        )
        time_s = (records["ns"].astype(np.int64) - self._started_ns) / 1e9
        return a.table(
            {
                "time_s": time_s,
                "pid": (records["space"] & ((1 << abi.TGID_BITS) - 1)).astype(np.int32),
                "tid": records["tid"].astype(np.int32),
                "address": records["address"],
                "ip": a.array(records["ip"], mask=records["ip"] == 0),
                "kind": kinds,
                "stack_id": a.array(records["stack"], mask=records["stack"] < 0),
            }
        )

    def _write(self, path: Path, tables: Iterable[Any]) -> None:
        beside = path.with_name(f".{path.name}.new")
        try:
            beside.touch(mode=0o600)
            self._write_tables(beside, tables)
            beside.replace(path)
        except OSError as e:
            with contextlib.suppress(OSError):
                beside.unlink()
            # Arrow puts words of its own before the system's reason.
            plain = OSError(e.errno, os.strerror(e.errno)) if e.errno else e
            raise trouble(path, plain) from None

    def _write_tables(self, path: Path, tables: Iterable[Any]) -> None:
        writer = None
        try:
            for table in tables:
                writer = writer or self._parquet.ParquetWriter(
                    path, table.schema, compression="zstd"
                )
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()  # writes too, and fails where the disk is full

    def close(self) -> None:
        """Joins the parts into events.parquet. Errors: RedirtyError; the parts are then kept."""
        self.flush()
        path = self._directory / "events.parquet"
        if self._parts:
            self._write(path, (self._parquet.read_table(part) for part in self._parts))
        else:
            self._write(
                path,
                [self._table(np.empty(0, [*[(n, abi.EVENT[n]) for n in abi.EVENT.names or ()]]))],
            )
        with contextlib.suppress(OSError):
            for part in self._parts:
                part.unlink()
        _remove_if_empty(self._directory / PARTS)


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()
