"""A receiver's journal: what a new receiver needs to go on where one that was killed stopped.

Records of fixed form with a checksum each; one that was cut off ends the journal. Contents are in the
page cache when they are noted here, so the journal is good for a receiver's death, not for the machine's:
a journal of before the last start of the machine is not taken up.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from redirty.collector.errors import RedirtyError, why

NAME = ".journal"
_RECORD = struct.Struct("<4sIQQI")  # kind, source, two numbers, checksum
_BODY = struct.Struct("<4sIQQ")
_SOURCE, _WINDOW, _DONE, _END = b"SRC ", b"WIN ", b"DONE", b"END "
_KINDS = ("space", "file")
_HEAD_BYTES = 4096


@dataclass
class JournalState:
    """What a journal says. done: the last frame whose pages are all in the image."""

    session: str
    done: int = 0
    sources: dict[int, str] = field(default_factory=dict)
    windows: dict[int, dict[int, int]] = field(default_factory=dict)


def boot_id() -> str:
    """Another one after each start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Journal:
    """An open journal, to which records are added."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def create(cls, directory: Path, session: str) -> Journal:
        """A new one. Errors: RedirtyError."""
        path = directory / NAME
        head = json.dumps({"journal": 1, "session": session, "boot": boot_id()}).encode()
        try:
            fd = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            os.write(fd, head.ljust(_HEAD_BYTES))
        except OSError as e:
            raise RedirtyError(f"cannot write {path}: {why(e)}") from None
        return cls(path, fd)

    @classmethod
    def open(cls, directory: Path) -> tuple[Journal, JournalState]:
        """An old one, and what it says. Errors: RedirtyError when it is of no use."""
        path = directory / NAME
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as e:
            raise RedirtyError(f"{directory} has no mirror that was begun: {why(e)}") from None
        try:
            with os.fdopen(os.dup(fd), "rb") as file:
                head, records = file.read(_HEAD_BYTES), file.read()
            fields = json.loads(head)
            if fields["journal"] != 1 or fields["boot"] != boot_id():
                raise ValueError("it is of before this machine was started")
            found = JournalState(str(fields["session"]))
            good = _replay(records, found)
            os.ftruncate(fd, _HEAD_BYTES + good)
        except (OSError, ValueError, KeyError, TypeError) as e:
            os.close(fd)
            raise RedirtyError(
                f"the mirror that was begun in {directory} cannot be gone on with: {e}; remove it"
            ) from None
        return cls(path, fd), found

    def _add(self, kind: bytes, source: int, one: int, two: int) -> None:
        body = _BODY.pack(kind, source, one, two)
        record = body + struct.pack("<I", zlib.crc32(body))
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if os.write(self._fd, record) != len(record):
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)
            raise OSError(28, os.strerror(28))

    def source(self, number: int, kind: str) -> None:
        """A source was declared. Errors: OSError."""
        self._add(_SOURCE, number, _KINDS.index(kind), 0)

    def window(self, number: int, window: int, slot: int) -> None:
        """A window of a source has room in its file. Errors: OSError."""
        self._add(_WINDOW, number, window, slot)

    def done(self, frame: int) -> None:
        """Everything up to this frame is in the image. Errors: OSError."""
        self._add(_DONE, 0, frame, 0)

    def end(self) -> None:
        """The commit begins, from which nobody can go on. Errors: OSError."""
        self._add(_END, 0, 0, 0)

    def close(self) -> None:
        """Lets go of the file, which stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        """The mirror is committed."""
        with contextlib.suppress(OSError):
            self.path.unlink()


def _replay(records: bytes, found: JournalState) -> int:
    """Reads records up to the first that is cut off or wrong: how many bytes were good."""
    at = 0
    while at + _RECORD.size <= len(records):
        kind, source, one, two, check = _RECORD.unpack_from(records, at)
        if zlib.crc32(records[at : at + _BODY.size]) != check:
            break
        if kind == _SOURCE and one < len(_KINDS):
            found.sources[source] = _KINDS[one]
            found.windows.setdefault(source, {})
        elif kind == _WINDOW and source in found.windows:
            found.windows[source][one] = two
        elif kind == _DONE:
            found.done = max(found.done, one)
        elif kind == _END:
            raise ValueError("its receiver ended in the commit")
        at += _RECORD.size
    return at
