"""Crash-safe files in a held directory, mode 0600: appended to in whole rows, or replaced atomically."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from redirty.collector.errors import RedirtyError, why
from redirty.collector.folders import Folder


def write_error(path: Path, error: OSError) -> RedirtyError:
    """Build the error for a file that cannot be written."""
    return RedirtyError(f"cannot write {path}: {why(error)}; what was recorded before is kept")


class FirstError:
    """Runs several steps to their end, whichever of them fail, and raises the first error afterwards."""

    def __init__(self) -> None:
        self.error: RedirtyError | None = None

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Run one step; keep its RedirtyError for raise_first()."""
        try:
            yield
        except RedirtyError as e:
            self.error = self.error or e

    def raise_first(self) -> None:
        """Raise the first RedirtyError that was caught, if any."""
        if self.error is not None:
            raise self.error


class CsvFile:
    """A CSV file (RFC 4180) that grows by whole blocks of rows.

    Raises: RedirtyError when the file cannot be created.
    """

    def __init__(self, folder: Folder, name: str, columns: Sequence[str]) -> None:
        self.path = folder.path / name
        self._columns = tuple(columns)
        try:
            self._fd = folder.new_file(name)
        except OSError as e:
            raise write_error(self.path, e) from None
        try:
            self.append([columns])
        except RedirtyError:
            os.close(self._fd)
            folder.remove(name)
            raise

    def append(self, rows: Iterable[Sequence[object]]) -> None:
        """Append rows, values in the order of the columns. When the disk is full the file is unchanged.

        Raises: RedirtyError when the rows cannot be written.
        """
        data = memoryview(csv_bytes(rows))
        size = os.lseek(self._fd, 0, os.SEEK_END)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as e:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)
            raise write_error(self.path, e) from None

    def append_record(self, record: Mapping[str, object]) -> None:
        """Append one row given by column name. When the disk is full the file is unchanged.

        Raises: RedirtyError when the row cannot be written; ValueError when the names are not exactly
            the columns of the file.
        """
        if record.keys() != set(self._columns):
            raise ValueError(f"{self.path.name}: {sorted(record.keys() ^ set(self._columns))}")
        self.append([[record[column] for column in self._columns]])

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """Format rows as CSV. None becomes an empty field; bytes of a path that are not UTF-8 are replaced."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)  # text: the one place
    return text.getvalue().encode("utf-8", errors="replace")


def write_all(fd: int, blocks: Iterable[bytes]) -> None:
    """Write blocks to a file, each of them whole. Raises: OSError."""
    for block in blocks:
        left = memoryview(block)
        while left:
            left = left[os.write(fd, left) :]


def replace(folder: Folder, name: str, blocks: Iterable[bytes]) -> None:
    """Replace a file of a directory that only we can write, atomically: write a new one, then rename it.

    Raises: RedirtyError when that fails; the old file is then unchanged.
    """
    new = f".{name}.new"
    folder.remove(new)  # of a run that was killed
    try:
        fd = folder.new_file(new)
        try:
            write_all(fd, blocks)
        finally:
            os.close(fd)
        folder.rename(new, name)
    except OSError as e:
        folder.remove(new)
        raise write_error(folder.path / name, e) from None


def write_json(folder: Folder, name: str, content: object) -> None:
    """Replace a JSON file atomically. Raises: RedirtyError when that fails."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    replace(folder, name, [text.encode("utf-8", "replace")])


def require_new(path: Path) -> None:
    """Check that a path does not exist yet: an early message; who creates it finds out for certain.

    Raises: RedirtyError when it exists, or cannot be checked; ForeignError when a link of another user leads there.
    """
    try:
        Folder.hold(path.parent).close()
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return  # a problem with its parent shows when it is created
    except OSError as e:
        raise RedirtyError(f"cannot create {path}: {why(e)}") from None
    raise RedirtyError(f"{path} exists already: name another directory, or remove it")
