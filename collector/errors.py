"""The errors that users see: one line (what, why, what to do) and an exit code."""

from __future__ import annotations

import errno
import os


class RedirtyError(Exception):
    """A failed request. The message is one line for the user."""

    exit_code = 1


class UsageError(RedirtyError):
    """An invalid command line."""

    exit_code = 2


class NoProcessError(RedirtyError):
    """A process that does not exist."""


class TargetEndedError(RedirtyError):
    """A target that ended before the recording was complete; what was recorded is kept and valid."""

    exit_code = 3


class ArmError(RedirtyError):
    """A target that cannot be armed by this method. code: errno, or 0."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class GoneError(Exception):
    """Target memory that no longer exists: the process ended, or executed another program."""


RESOURCE_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""errno values that mean redirty itself ran out of a resource, not that the target is gone."""


def require_resources(error: OSError, what: str) -> None:
    """Check that an error does not mean that redirty itself ran out of descriptors or memory.

    Call it wherever an OSError would otherwise be taken as the end of a process.

    Raises:
        RedirtyError: it does. The message begins with `what`.
    """
    if error.errno not in RESOURCE_ERRNOS:
        return
    advice = {
        errno.EMFILE: "; raise the limit of open files (ulimit -n)",
        errno.ENFILE: "; raise fs.file-max",
    }.get(error.errno, "")
    raise RedirtyError(f"{what}: redirty itself has no more: {why(error)}{advice}") from None


def why(error: OSError) -> str:
    """Return the kernel's reason as a phrase: 'Operation not permitted (EPERM)'."""
    if error.errno is None:
        return str(error)
    name = errno.errorcode.get(error.errno)
    if name is None and error.errno < 0:  # socket.gaierror: its own numbers, which nobody knows
        return error.strerror or str(error)
    return f"{error.strerror or error} ({name or error.errno})"


def one_line(text: str) -> str:
    """Replace line breaks and control characters by spaces.

    Names of processes and files may hold anything, terminal escape sequences included.
    """
    return "".join(c if c.isprintable() else " " for c in text)


def failure_of_the_machine(error: BaseException) -> RedirtyError | None:
    """Build the message of an error that no code expected, but that is no bug.

    The machine lacks memory, descriptors, threads or room on a disk, or a name cannot be one of a host.
    Such an error may be the cause of another one, or may have become one during an import. None for a bug.
    """
    chain = [error]
    while (last := chain[-1].__cause__ or chain[-1].__context__) is not None and last not in chain:
        chain.append(last)
    for one in reversed(chain):
        if isinstance(one, MemoryError):
            return RedirtyError(
                "out of memory: free some, or raise the limit (ulimit -v, the cgroup's memory.max)"
            )
        if isinstance(one, OSError):
            named = isinstance(one.filename, str | bytes)
            path = f" {os.fsdecode(one.filename)}:" if named else ""
            return RedirtyError(f"cannot continue:{path} {why(one) or type(one).__name__}")
        if isinstance(one, UnicodeError) and "idna" in str(one):
            return RedirtyError(f"invalid name of a host: {one}")
        if isinstance(one, RuntimeError) and "new thread" in str(one):
            return RedirtyError(
                "cannot start a thread: raise the limit of processes (ulimit -u) or of memory"
            )
    if isinstance(error, ImportError):
        what = str(error).strip().partition("\n")[0]
        return RedirtyError(
            f"cannot load {error.name or 'a module'}: {what}; check the limits of this shell (ulimit -a), or run "
            "'make setup' again"
        )
    return None
