"""The one family of errors that users see: one line (what, why, what to do), an exit code."""

from __future__ import annotations

import errno


class RedirtyError(Exception):
    """It could not be done. The message is one line for a person."""

    exit_code = 1


class UsageError(RedirtyError):
    """The command line makes no sense."""

    exit_code = 2


class NoProcessError(RedirtyError):
    """There is no such process."""


class TargetEndedError(RedirtyError):
    """The target ended before the recording was to end; what was recorded is kept and valid."""

    exit_code = 3


OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What an OSError says of this process, and not of the one that was looked at."""


def why(error: OSError) -> str:
    """The kernel's reason, as a phrase: 'Operation not permitted (EPERM)'."""
    if error.errno is None:
        return str(error)
    name = errno.errorcode.get(error.errno, str(error.errno))
    return f"{error.strerror or error} ({name})"


def one_line(text: str) -> str:
    """The text with spaces for all that would end a line, or be a terminal's command: names of
    processes and files may hold anything."""
    return "".join(c if c.isprintable() else " " for c in text)


class ArmError(RedirtyError):
    """A target cannot be armed this way. code: errno, or 0."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class GoneError(Exception):
    """The memory of the target is gone: it ended, or runs another program now."""
