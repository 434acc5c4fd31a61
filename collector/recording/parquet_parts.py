"""Parquet files that grow.

Written in parts while recording, so that nothing is lost if redirty is killed; one file at the end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from redirty.collector.errors import RedirtyError
from redirty.collector.files import write_error


def arrow(option: str) -> tuple[Any, Any]:
    """Import the packages pyarrow and pyarrow.parquet. option: the option that needs them, for the message.

    Raises: RedirtyError when they are missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise RedirtyError(f"{option} needs the package pyarrow: run 'make setup' again") from None
    return pyarrow, pyarrow.parquet


class ParquetParts:
    """NAME.parquet, whose parts are in .NAME/ while recording."""

    def __init__(self, directory: Path, name: str, parquet: Any) -> None:
        self._parquet = parquet
        self._directory = directory / f".{name}"
        self._path = directory / f"{name}.parquet"
        self._parts: list[Path] = []

    def add(self, table: Any) -> None:
        """Write a table as the next part. Raises: RedirtyError when that fails."""
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
        new = path.with_name(f".{path.name}.new")
        try:
            new.touch(mode=0o600)
            self._write_tables(new, tables)
            new.replace(path)
        except OSError as e:
            with contextlib.suppress(OSError):
                new.unlink()
            # Arrow prepends its own text to the reason.
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
                writer.close()  # also writes, and fails when the disk is full

    def close(self, empty: Any) -> None:
        """Join the parts. empty: a table without rows, for when there is no part.

        Raises: RedirtyError when that fails; the parts are then kept.
        """
        if self._parts:
            self._write(self._path, (self._parquet.read_table(part) for part in self._parts))
        else:
            self._write(self._path, [empty])
        with contextlib.suppress(OSError):
            for part in self._parts:
                part.unlink()
        _remove_if_empty(self._directory)


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()
