"""Parquet files that grow: parts while recording, so that nothing is lost if it is cut off; one
file at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from redirty.collector.errors import RedirtyError
from redirty.collector.files import write_error


def arrow(option: str) -> tuple[Any, Any]:
    """The packages pyarrow and pyarrow.parquet. option: what needs them, for the message.

    Errors: RedirtyError when they are missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise RedirtyError(f"{option} needs the package pyarrow: run 'make setup' again") from None
    return pyarrow, pyarrow.parquet


class ParquetParts:
    """NAME.parquet, whose parts lie in .NAME/ while recording."""

    def __init__(self, directory: Path, name: str, parquet: Any) -> None:
        self._parquet = parquet
        self._directory = directory / f".{name}"
        self._path = directory / f"{name}.parquet"
        self._parts: list[Path] = []

    def add(self, table: Any) -> None:
        """Writes a table as the next part. Errors: RedirtyError."""
        path = self._directory / f"part-{len(self._parts):05d}.parquet"
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._write(path, [table])
        except OSError as e:
            raise write_error(self._directory, e) from None
        except RedirtyError:
            _remove_if_empty(self._directory)
            raise
        self._parts.append(path)

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
            raise write_error(path, plain) from None

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

    def close(self, nothing: Any) -> None:
        """Joins the parts; nothing: an empty table, for when there is none.

        Errors: RedirtyError; the parts are then kept.
        """
        if self._parts:
            self._write(self._path, (self._parquet.read_table(part) for part in self._parts))
        else:
            self._write(self._path, [nothing])
        with contextlib.suppress(OSError):
            for part in self._parts:
                part.unlink()
        _remove_if_empty(self._directory)


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()
