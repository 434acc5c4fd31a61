"""A receiver's journal: what a new receiver needs to resume where a killed one stopped.

Records have a fixed size and a checksum; the first truncated or damaged one ends the journal. When a record is
written the contents are in the page cache, so the journal survives the death of the receiver but not of the
machine: a journal from before the last boot is refused.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from redirty.collector.errors import RedirtyError, why
from redirty.collector.folders import Folder
from redirty.collector.mirror.image.page_store import MAX_PAGE, MAX_WINDOWS, WINDOW_SHIFT

NAME = ".journal"
_RECORD = struct.Struct("<4sIQQI")  # kind, source, two numbers, checksum
_BODY = struct.Struct("<4sIQQ")
_SOURCE, _WINDOW, _DONE, _END = b"SRC ", b"WIN ", b"DONE", b"END "
_KINDS = ("space", "file")
_HEAD_BYTES = 4096
_RECORDS = 1 << 15  # read at a time
MAX_SOURCES = 1 << 16


@dataclass
class JournalState:
    """The contents of a journal.

    Attributes:
        session: the sender's session.
        done: the last frame whose pages are all in the image.
        sources: kind by number of the source.
        windows: by source, the window in the file of each window of pages.
    """

    session: str
    done: int = 0
    sources: dict[int, str] = field(default_factory=dict)
    windows: dict[int, dict[int, int]] = field(default_factory=dict)


def boot_id() -> str:
    """Return the ID of the current boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Journal:
    """An open journal, to which records are appended."""

    def __init__(self, folder: Folder, fd: int) -> None:
        self._folder = folder
        self._fd = fd

    @classmethod
    def create(cls, folder: Folder, session: str) -> Journal:
        """Create a journal.

        Raises:
            RedirtyError: the journal cannot be written.
        """
        head = json.dumps({"journal": 1, "session": session, "boot": boot_id()}).encode()
        try:
            fd = folder.new_file(NAME, os.O_RDWR | os.O_APPEND)
            os.write(fd, head.ljust(_HEAD_BYTES))
        except OSError as e:
            raise RedirtyError(f"cannot write {folder.path / NAME}: {why(e)}") from None
        return cls(folder, fd)

    @classmethod
    def open(cls, folder: Folder) -> tuple[Journal, JournalState]:
        """Open an existing journal of ours, and return its contents too.

        Raises:
            RedirtyError: the journal cannot be used.
        """
        try:
            fd = folder.open_file(NAME, os.O_RDWR | os.O_APPEND)
        except OSError as e:
            raise RedirtyError(f"no unfinished mirror in {folder.path}: {why(e)}") from None
        try:
            with os.fdopen(os.dup(fd), "rb") as file:
                found, good = read_journal(file)
            os.ftruncate(fd, good)
        except (OSError, ValueError) as e:
            os.close(fd)
            raise RedirtyError(
                f"cannot resume the mirror in {folder.path}: {e}; remove it"
            ) from None
        return cls(folder, fd), found

    def _append(self, kind: bytes, source: int, one: int, two: int) -> None:
        body = _BODY.pack(kind, source, one, two)
        record = body + struct.pack("<I", zlib.crc32(body))
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if os.write(self._fd, record) != len(record):
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def source(self, number: int, kind: str) -> None:
        """Record the declaration of a source.

        Raises:
            OSError: the disk is full, or fails.
        """
        self._append(_SOURCE, number, _KINDS.index(kind), 0)

    def window(self, number: int, window: int, slot: int) -> None:
        """Record that a window of a source was opened.

        Raises:
            OSError: the disk is full, or fails.
        """
        self._append(_WINDOW, number, window, slot)

    def done(self, frame: int) -> None:
        """Record that everything up to this frame is in the image.

        Raises:
            OSError: the disk is full, or fails.
        """
        self._append(_DONE, 0, frame, 0)

    def end(self) -> None:
        """Record the start of the commit, which cannot be resumed.

        Raises:
            OSError: the disk is full, or fails.
        """
        self._append(_END, 0, 0, 0)

    def close(self) -> None:
        """Close the file without removing it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """Remove the file: the mirror is committed or discarded."""
        self._folder.remove(NAME)


def read_journal(file: BinaryIO) -> tuple[JournalState, int]:
    """Read a journal up to the first truncated or damaged record; return its contents and its valid bytes.

    Reads piece by piece: a long mirror leaves a long journal.

    Raises:
        OSError: the file cannot be read.
        ValueError: the journal is of another boot, was ended, or is no journal.
    """
    try:
        head = file.read(_HEAD_BYTES)
        if len(head) < _HEAD_BYTES:
            raise ValueError
        fields = json.loads(head)
        boot, session = fields["boot"], fields["session"]
        if fields["journal"] != 1 or not isinstance(boot, str) or not isinstance(session, str):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("its journal is damaged") from None
    if boot != boot_id():
        raise ValueError("it is from before the last boot of this machine")
    found, good = JournalState(session), _HEAD_BYTES
    while piece := file.read(_RECORD.size * _RECORDS):
        valid = _replay(piece, found)
        good += valid
        if valid < len(piece):
            break
    return found, good


def _replay(records: bytes, found: JournalState) -> int:
    """Follow records up to the first truncated or damaged one, and return the number of valid bytes.

    Raises:
        ValueError: the journal was ended.
    """
    at = 0
    while at + _RECORD.size <= len(records):
        kind, source, one, two, check = _RECORD.unpack_from(records, at)
        if zlib.crc32(records[at : at + _BODY.size]) != check:
            break
        if kind == _END:
            raise ValueError("its receiver ended during the commit")
        if not _follow(found, kind, source, one, two):
            break
        at += _RECORD.size
    return at


def _follow(found: JournalState, kind: bytes, source: int, one: int, two: int) -> bool:
    """Apply a record; return False for one that no receiver writes."""
    if kind == _DONE:
        found.done = max(found.done, one)
        return True
    if kind == _SOURCE:
        if source in found.sources or one >= len(_KINDS) or len(found.sources) >= MAX_SOURCES:
            return False
        found.sources[source] = _KINDS[one]
        found.windows[source] = {}
        return True
    windows = found.windows.get(source)
    if kind != _WINDOW or windows is None or one in windows or two != len(windows):
        return False
    if one > MAX_PAGE >> WINDOW_SHIFT or two >= MAX_WINDOWS:
        return False
    windows[one] = two
    return True
