"""Standard streams of the program: repaired when closed, and with errors that say what failed.

All text that the program prints is cleaned here, wherever it comes from: a terminal must not obey it.
"""

from __future__ import annotations

import io
import os
import sys

from redirty.collector import text
from redirty.collector.errors import RedirtyError, why

TYPE_CHECKING = False  # not typing's: importing that would delay the answer to ctrl-C
if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class StdoutError(RedirtyError):
    """A failed write to stdout. Not an OSError, which could come from any file."""


class _Stdout(io.FileIO):
    """Standard output, whose failed writes raise StdoutError."""

    def write(self, data: ReadableBuffer) -> int:
        """Write as io.FileIO does. Raises: StdoutError; BrokenPipeError."""
        try:
            written = super().write(data)
        except BrokenPipeError:
            raise
        except OSError as e:
            raise StdoutError(f"cannot write to stdout: {why(e)}") from None
        if written is None:
            raise StdoutError("cannot write to stdout: it is full and in non-blocking mode")
        return written


class _Stderr(io.FileIO):
    """Standard error, whose failed writes are ignored: the program continues without the message."""

    def write(self, data: ReadableBuffer) -> int:
        """Write as io.FileIO does, but report success when that fails."""
        try:
            super().write(data)
        except OSError:
            pass
        return memoryview(data).nbytes


class CleanStream(io.TextIOWrapper):
    """A text stream without control characters but ends of lines, tabs, and the carriage returns of progress lines."""

    def write(self, written: str) -> int:
        """Write as io.TextIOWrapper does. A carriage return stays at either end of what is written, and only there."""
        inner = written.strip("\r")
        at = written.find(inner) if inner else 0
        end = at + len(inner)
        super().write(written[:at] + text.lines(inner) + written[end:])
        return len(written)


def repair_streams() -> None:
    """Open descriptors 0, 1 and 2 if they are closed, so that no file gets one of these numbers.

    Replaces sys.stdout and sys.stderr by streams with the error handling of this module.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = _text_stream(_Stdout(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text_stream(_Stderr(2, "w", closefd=False), sys.stderr)


def _text_stream(raw: io.FileIO, like: object) -> io.TextIOWrapper:
    """Wrap a raw stream with the encoding and buffering of the stream that Python made, if any."""
    buffer = io.BufferedWriter(raw)
    if not isinstance(like, io.TextIOWrapper):
        return CleanStream(buffer, "utf-8", "backslashreplace")
    by_line = like.line_buffering or like.write_through
    # Names of files and processes may have characters that the terminal's encoding lacks.
    errors = "backslashreplace" if like.errors == "strict" else like.errors
    return CleanStream(buffer, like.encoding, errors, line_buffering=by_line)


def drop_output() -> None:
    """Discard all further output to stdout, including that of the interpreter's shutdown."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
