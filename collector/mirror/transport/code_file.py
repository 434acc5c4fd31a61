"""The file that a pairing code is kept in: private, and good for one mirror."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from redirty.collector.errors import RedirtyError, why
from redirty.collector.folders import Folder, ForeignError, own_users
from redirty.collector.mirror.transport.pairing import new_code, parse_code

_MAX_BYTES = 4096
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class CodeFile:
    """A code file in a held directory.

    Attributes:
        path: its path, for messages.
    """

    def __init__(self, path: Path) -> None:
        """Hold the directory of a code file.

        Raises:
            RedirtyError: there is no such directory.
        """
        self.path = path
        self._file: os.stat_result | None = None
        try:
            self._folder = Folder.hold(path.parent)
        except OSError as e:
            raise self._unreadable(e) from None

    def _unreadable(self, error: OSError) -> RedirtyError:
        return RedirtyError(f"cannot read the code in {self.path}: {why(error)}")

    def read(self) -> bytes:
        """Return the code.

        Raises:
            ForeignError: others may have written or read the file.
            RedirtyError: the file cannot be read, or has no code in it.
        """
        try:
            return self._read()
        except OSError as e:
            raise self._unreadable(e) from None

    def _read(self) -> bytes:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(self.path.name, flags, dir_fd=self._folder.fd)
        try:
            status = os.fstat(fd)
            self._require_private(status)
            content = os.read(fd, _MAX_BYTES + 1)
        finally:
            os.close(fd)
        try:
            text = content.decode()
        except UnicodeDecodeError:
            text = ""
        if not text or len(content) > _MAX_BYTES:
            raise RedirtyError(f"{self.path} does not contain a code of redirty receive")
        code = parse_code(text)
        self._file = status
        return code

    def _require_private(self, status: os.stat_result) -> None:
        """Raise ForeignError for a file that others may have written or read."""
        if not stat.S_ISREG(status.st_mode):
            raise ForeignError(f"--code-file must be a regular file, or - for stdin: {self.path}")
        if status.st_uid not in own_users():
            raise ForeignError(
                f"--code-file {self.path} belongs to another user (uid {status.st_uid}), who knows it: use a new one"
            )
        if status.st_mode & _OTHERS:
            raise ForeignError(
                f"--code-file {self.path} is open to other users (mode {stat.S_IMODE(status.st_mode):04o}): chmod 600 "
                "it, and use a new code if somebody may have read this one"
            )

    def read_or_create(self) -> bytes:
        """Return the code, of a new file with a new code if there is none.

        Raises:
            RedirtyError: see read(); or the file cannot be written.
        """
        try:
            return self._read()
        except FileNotFoundError:
            pass
        except OSError as e:
            raise self._unreadable(e) from None
        text = new_code()
        try:
            fd = self._folder.new_file(self.path.name)
            try:
                os.write(fd, f"{text}\n".encode())
                self._file = os.fstat(fd)
            finally:
                os.close(fd)
        except OSError as e:
            raise RedirtyError(f"cannot write {self.path}: {why(e)}") from None
        return parse_code(text)

    def use_up(self) -> bool:
        """Remove the file whose code was read or created, unless another one has its name; return True if it is gone.

        A code is good for one mirror, and this is called when that is committed.
        """
        name = self.path.name
        with contextlib.suppress(OSError):
            found = os.stat(name, dir_fd=self._folder.fd, follow_symlinks=False)
            if self._file is not None and os.path.samestat(found, self._file):
                os.unlink(name, dir_fd=self._folder.fd)
                return True
        return False
