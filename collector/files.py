"""Files of a recording: 0600, appended to in whole rows, replaced as a whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from redirty.collector.errors import RedirtyError, why


def write_error(path: Path, error: OSError) -> RedirtyError:
    """What a user is told when a file cannot be written."""
    return RedirtyError(f"cannot write {path}: {why(error)}; what was recorded before is kept")


class FirstError:
    """Tries several files, each whatever became of the others, and tells of the first error."""

    def __init__(self) -> None:
        self.error: RedirtyError | None = None

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Around one file."""
        try:
            yield
        except RedirtyError as e:
            self.error = self.error or e

    def tell(self) -> None:
        """After the last file. Errors: the first RedirtyError, if there was one."""
        if self.error is not None:
            raise self.error


class CsvFile:
    """A CSV file (RFC 4180) that grows by whole blocks of rows."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
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
        """Adds rows. When the disk is full the file is left as it was.

        Errors: RedirtyError.
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

    def close(self) -> None:
        """Done."""
        os.close(self._fd)


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """Rows as CSV; None becomes an empty field. Bytes of a path that are no UTF-8 are replaced."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode("utf-8", errors="replace")


def replace(path: Path, blocks: Iterable[bytes]) -> None:
    """Writes a file beside the old one and puts it in its place.

    Errors: RedirtyError; the old file is then still there.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            for block in blocks:
                left = memoryview(block)
                while left:
                    left = left[os.write(fd, left) :]
        finally:
            os.close(fd)
        beside.replace(path)
    except OSError as e:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise write_error(path, e) from None


def write_json(path: Path, content: object) -> None:
    """Replaces a JSON file. Errors: RedirtyError."""
    replace(
        path,
        [(json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")],
    )


def require_new(path: Path) -> None:
    """Errors: RedirtyError when something is there already, or when such a path cannot be."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return  # what is wrong with its parent, if anything, shows when it is made
    except OSError as e:
        raise RedirtyError(f"cannot make {path}: {why(e)}") from None
    raise RedirtyError(f"{path} exists already: name another directory, or remove it")


def new_directory(path: Path) -> None:
    """Makes the directory of a recording, which must not be there yet.

    Errors: RedirtyError.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        raise RedirtyError(f"{path} exists already: name another directory, or remove it") from None
    except OSError as e:
        if not path.parent.exists():
            raise RedirtyError(f"cannot make {path}: {path.parent} does not exist") from None
        raise RedirtyError(f"cannot make {path}: {why(e)}") from None


def remove_directory(path: Path, names: Iterable[str]) -> None:
    """Removes the directory of a recording that could not be begun: these files of it, and itself
    when nothing else is in it."""
    with contextlib.suppress(OSError):
        for name in names:
            (path / name).unlink(missing_ok=True)
        path.rmdir()
