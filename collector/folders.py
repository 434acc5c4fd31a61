"""Directories that are held: what is created, replaced or removed in one goes by its descriptor, never by a path.

Who may write in a directory can put a link, a FIFO or another directory under any name in it, at any moment. So a
path is walked once, links of other users lead only to what is theirs, a name is created exclusively, and what was
opened is checked by its descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import weakref
from pathlib import Path

from redirty.collector.errors import RedirtyError, why

_BASE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_NO_ID = 2**32 - 1  # means "unchanged" to chown
_ID_DIGITS = 10
_MAX_LINKS = 40  # as the kernel


class ForeignError(RedirtyError):
    """A file or directory belongs to another user, or can be changed or read by one."""


def own_users() -> frozenset[int]:
    """Return the users whose files are trusted as input: this process's, root, and who called sudo."""
    users = {0, os.geteuid()}
    if (caller := _sudo_id("SUDO_UID")) is not None:
        users.add(caller)
    return frozenset(users)


def sudo_caller() -> tuple[int, int] | None:
    """Return user and group of who called sudo to run this process as root; None if nobody did, or root."""
    uid, gid = _sudo_id("SUDO_UID"), _sudo_id("SUDO_GID")
    return (uid, gid) if uid and gid is not None else None


def _sudo_id(name: str) -> int | None:
    """Return an ID that sudo has set for root; None: there is none."""
    text = os.environ.get(name, "")
    if os.geteuid() != 0 or not (text.isascii() and text.isdigit()):
        return None
    return int(text) if len(text) <= _ID_DIGITS and int(text) < _NO_ID else None


def give_to_caller(fd: int) -> None:
    """Give an open file or directory that is complete to who called sudo, if anybody did; its mode stays.

    A file system that knows no owners leaves it as it is.
    """
    if (caller := sudo_caller()) is not None:
        with contextlib.suppress(OSError):
            os.fchown(fd, *caller)


class Folder:
    """A held directory.

    Attributes:
        path: where it was, for messages only.
        fd: its descriptor.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self._closer = weakref.finalize(self, os.close, fd)

    @classmethod
    def hold(cls, path: Path, shown: Path | None = None) -> Folder:
        """Hold a directory of whatever owner, to create new files in it. shown: how messages name it.

        Raises:
            OSError: there is no such directory.
            ForeignError: a link of another user leads there.
        """
        return cls(shown or path, _walk(path))

    @classmethod
    def create(cls, path: Path) -> Folder:
        """Create a directory, mode 0700, that must not exist yet.

        Raises:
            RedirtyError: it exists, cannot be created, or is not ours alone.
        """
        try:
            parent = cls.hold(path.parent)
        except FileNotFoundError:
            raise RedirtyError(f"cannot create {path}: {path.parent} does not exist") from None
        except OSError as e:
            raise RedirtyError(f"cannot create {path}: {why(e)}") from None
        with contextlib.closing(parent):
            return parent.make(path.name, path)

    def make(self, name: str, path: Path | None = None) -> Folder:
        """Create a directory in this one. path: how messages name it.

        Raises:
            RedirtyError: see create().
        """
        path = path or self.path / name
        try:
            if name in ("", ".", ".."):
                raise FileExistsError
            os.mkdir(name, 0o700, dir_fd=self.fd)
            made = os.open(
                name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd
            )
        except FileExistsError:
            raise RedirtyError(
                f"{path} exists already: name another directory, or remove it"
            ) from None
        except OSError as e:
            raise RedirtyError(f"cannot create {path}: {why(e)}") from None
        folder = Folder(path, made)
        try:
            folder.require_own(_OTHERS)
            if os.listdir(made):
                raise ForeignError(
                    f"{path} was exchanged while it was created: name a directory elsewhere"
                )
        except RedirtyError:
            folder.close()
            raise
        return folder

    @classmethod
    def open_own(cls, path: Path) -> Folder:
        """Open a directory that must be ours, and writable by nobody else, to continue what is in it.

        Raises:
            OSError: there is no such directory.
            ForeignError: it is not ours.
        """
        base = _walk(path)
        try:
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=base)
        finally:
            os.close(base)
        folder = cls(path, fd)
        try:
            folder.require_own(_OTHERS_WRITE)
        except ForeignError:
            folder.close()
            raise
        return folder

    def require_own(self, refused: int) -> None:
        """Check the owner and the mode of the directory.

        Raises:
            ForeignError: it belongs to another user, or its mode has a bit of `refused`.
        """
        _require_own(self.path, os.fstat(self.fd), refused)

    def require_there(self) -> None:
        """Check that the path still leads to this directory.

        Raises:
            RedirtyError: it was moved, or another one was put in its place.
        """
        try:
            if os.path.samestat(self.path.stat(), os.fstat(self.fd)):
                return
        except OSError:
            pass
        raise RedirtyError(
            f"{self.path} is not the directory any more that was created: somebody moved it, and what is there now may "
            "be anybody's"
        )

    # ---- files ----

    def new_file(self, name: str, flags: int = os.O_WRONLY) -> int:
        """Create a file, mode 0600, that must not exist yet; return its descriptor.

        Raises:
            OSError: it exists, or cannot be created.
            ForeignError: the file system lets other users read it.
        """
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self.fd)
        try:
            _require_own(self.path / name, os.fstat(fd), _OTHERS)
        except BaseException:
            os.close(fd)
            self.remove(name)
            raise
        return fd

    def open_file(self, name: str, flags: int) -> int:
        """Open a regular file of ours, with no other name, that only we can read and write; return its descriptor.

        Raises:
            OSError: it cannot be opened.
            ForeignError: it is anything else.
        """
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=self.fd)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise ForeignError(f"{self.path / name} is not a regular file with one name")
            _require_own(self.path / name, status, _OTHERS)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def exists(self, name: str) -> bool:
        """Return whether there is anything of this name, a dangling link included."""
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def names(self) -> list[str]:
        """Return the names of all that is in the directory. Raises: OSError."""
        return os.listdir(self.fd)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in the place of what has that name. Raises: OSError."""
        os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def remove(self, *names: str) -> None:
        """Remove files, those that there are; errors are ignored."""
        for name in names:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self.fd)

    def remove_empty(self, name: str) -> None:
        """Remove an empty directory in this one; errors are ignored."""
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=self.fd)

    def remove_itself(self) -> None:
        """Remove this directory if it is empty and still where it was; errors are ignored."""
        with contextlib.suppress(OSError, RedirtyError):
            parent = Folder.hold(self.path.parent)
            with contextlib.closing(parent):
                found = os.stat(self.path.name, dir_fd=parent.fd, follow_symlinks=False)
                if os.path.samestat(found, os.fstat(self.fd)):
                    parent.remove_empty(self.path.name)

    def give_to_caller(self) -> None:
        """Give the directory and its files to who called sudo, if anybody did: nothing is written here any more."""
        if sudo_caller() is None:
            return
        with contextlib.suppress(OSError):
            for name in self.names():
                with contextlib.suppress(OSError, ForeignError):
                    fd = self.open_file(name, os.O_RDONLY)
                    try:
                        give_to_caller(fd)
                    finally:
                        os.close(fd)
        give_to_caller(self.fd)

    def sync(self) -> None:
        """Write the directory's names to the disk. Raises: OSError."""
        os.fsync(self.fd)

    def close(self) -> None:
        """Let go of the directory."""
        self._closer()


def _require_own(path: Path, status: os.stat_result, refused: int) -> None:
    """Raise ForeignError unless this process's user owns a file, without bits of `refused` in its mode."""
    if status.st_uid != os.geteuid():
        raise ForeignError(
            f"{path} belongs to another user (uid {status.st_uid}), who may have put it there: name a place elsewhere"
        )
    if status.st_mode & refused:
        raise ForeignError(
            f"{path} is open to other users (mode {stat.S_IMODE(status.st_mode):04o}): name a place elsewhere, on a "
            "file system that keeps modes"
        )


def _walk(path: Path) -> int:
    """Open a directory by its path, as a base for names in it; return its descriptor.

    A link of another user may lead to a directory of that user only: else who owns a part of the path could choose
    any place for what we write.

    Raises:
        OSError: there is no such directory.
        ForeignError: a link leads elsewhere.
    """
    fd = os.open("/" if path.is_absolute() else ".", _BASE)
    left = _parts(path)
    strangers: set[int] = set()
    links = 0
    try:
        while left:
            part = left.pop()
            try:
                found = os.open(part, _BASE | os.O_NOFOLLOW, dir_fd=fd)
            except NotADirectoryError:
                links += 1
                target, owner = _link(part, fd)
                if owner not in own_users():
                    strangers.add(owner)
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
                if target is None:  # of /proc: it leads to a file itself, whatever its text says
                    found = os.open(part, _BASE, dir_fd=fd)
                else:
                    left += _parts(target)
                    if not target.is_absolute():
                        continue
                    found = os.open("/", _BASE)
            os.close(fd)
            fd = found
        owner = os.fstat(fd).st_uid
        if strangers - {owner}:
            raise ForeignError(
                f"{path}: a link of another user (uid {min(strangers)}) leads to a directory that is not theirs: name "
                "the directory itself"
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def _parts(path: Path) -> list[str]:
    """Return the names in a path, the last one first."""
    return [p for p in reversed(path.parts) if p != path.root]


def _link(name: str, base: int) -> tuple[Path | None, int]:
    """Return where a symbolic link leads (None: it is one of /proc), and its owner.

    Raises:
        OSError: there is no such link.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base)
    try:
        status = os.fstat(fd)
        if not stat.S_ISLNK(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if status.st_dev == Path("/proc").stat().st_dev:
            return None, status.st_uid
        return Path(os.readlink("", dir_fd=fd)), status.st_uid
    finally:
        os.close(fd)
