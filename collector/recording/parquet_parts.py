"""Parquet files that grow.

Written in parts while recording, so that nothing is lost if redirty is killed; one file at the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from redirty.collector.errors import RedirtyError
from redirty.collector.files import write_error
from redirty.collector.folders import Folder


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

    def __init__(self, folder: Folder, name: str, parquet: Any) -> None:
        self._parquet = parquet
        self._folder = folder
        self._name = name
        self._parts: list[str] = []
        self._part_folder: Folder | None = None

    def add(self, table: Any) -> None:
        """Write a table as the next part. Raises: RedirtyError when that fails."""
        part = f"part-{len(self._parts):05d}.parquet"
        if self._part_folder is None:
            self._part_folder = self._folder.make(f".{self._name}")
        try:
            self._write(self._part_folder, part, [table])
        except RedirtyError:
            self._remove_part_folder()
            raise
        self._parts.append(part)

    def _write(self, folder: Folder, name: str, tables: Iterable[Any]) -> None:
        new = f".{name}.new"
        folder.remove(new)
        try:
            self._write_tables(folder.new_file(new), tables)
            folder.rename(new, name)
        except OSError as e:
            folder.remove(new)
            # Arrow prepends its own text to the reason.
            plain = OSError(e.errno, os.strerror(e.errno)) if e.errno else e
            raise write_error(folder.path / name, plain) from None

    def _write_tables(self, fd: int, tables: Iterable[Any]) -> None:
        writer = None
        with os.fdopen(fd, "wb") as file:
            try:
                for table in tables:
                    writer = writer or self._parquet.ParquetWriter(
                        file, table.schema, compression="zstd"
                    )
                    writer.write_table(table)
            finally:
                if writer is not None:
                    writer.close()  # also writes, and fails when the disk is full

    def close(self, empty: Any) -> None:
        """Join the parts. empty: a table without rows, for when there is no part.

        Raises: RedirtyError when that fails; the parts are then kept.
        """
        if self._part_folder is None:
            self._write(self._folder, f"{self._name}.parquet", [empty])
            return
        self._write(self._folder, f"{self._name}.parquet", self._tables(self._part_folder))
        self._part_folder.remove(*self._parts)
        self._parts = []
        self._remove_part_folder()

    def _tables(self, folder: Folder) -> Iterator[Any]:
        for part in self._parts:
            with os.fdopen(folder.open_file(part, os.O_RDONLY), "rb") as file:
                yield self._parquet.read_table(file)

    def _remove_part_folder(self) -> None:
        """Remove the directory of the parts unless there are some."""
        if self._part_folder is not None and not self._parts:
            self._part_folder.close()
            self._part_folder = None
            self._folder.remove_empty(f".{self._name}")
