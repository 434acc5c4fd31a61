"""Crash-safe files, mode 0600: appended to in whole rows, or replaced atomically."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from redirty.collector.errors import RedirtyError, why


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

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self._columns = tuple(columns)
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise write_error(path, e) from None
        try:
            self.append([columns])
        except RedirtyError:
            os.close(self._fd)
            path.unlink()
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


def replace(path: Path, blocks: Iterable[bytes]) -> None:
    """Replace a file atomically: write a new one next to it, then rename.

    Raises: RedirtyError when that fails; the old file is then unchanged.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            for block in blocks:
                left = memoryview(block)
                while left:
                    left = left[os.write(fd, left) :]
        finally:
            os.close(fd)
        new.replace(path)
    except OSError as e:
        with contextlib.suppress(OSError):
            new.unlink()
        raise write_error(path, e) from None


def write_json(path: Path, content: object) -> None:
    """Replace a JSON file atomically. Raises: RedirtyError when that fails."""
    replace(
        path,
        [(json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")],
    )


def require_new(path: Path) -> None:
    """Check that a path does not exist yet.

    Raises: RedirtyError when it exists, or cannot be checked.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return  # a problem with its parent shows when it is created
    except OSError as e:
        raise RedirtyError(f"cannot create {path}: {why(e)}") from None
    raise RedirtyError(f"{path} exists already: name another directory, or remove it")


def new_directory(path: Path) -> None:
    """Create a directory, mode 0700, that must not exist yet.

    Raises: RedirtyError when it exists or cannot be created.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        raise RedirtyError(f"{path} exists already: name another directory, or remove it") from None
    except OSError as e:
        if not path.parent.exists():
            raise RedirtyError(f"cannot create {path}: {path.parent} does not exist") from None
        raise RedirtyError(f"cannot create {path}: {why(e)}") from None


def remove_directory(path: Path, names: Iterable[str]) -> None:
    """Remove these files from a directory, and the directory itself if it is then empty.

    Undoes a recording that could not be started. Errors of the file system are ignored.
    """
    with contextlib.suppress(OSError):
        for name in names:
            (path / name).unlink(missing_ok=True)
        path.rmdir()
