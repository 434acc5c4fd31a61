"""Keeps the terminal clean while a screen is shown, and restores it however the screen ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
import termios
from collections.abc import Iterator

from redirty.collector import text
from redirty.collector.errors import RedirtyError, one_line

_PR_SET_PDEATHSIG = 1
# main screen; default cursor, mouse, paste, focus and keyboard modes; no colour
_RESET = (
    b"\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1015l\x1b[?2004l"
    b"\x1b[?1004l\x1b[<u\x1b[0m"
)
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_STDERR_BYTES = 4096


def require_terminal() -> None:
    """Raise RedirtyError unless stdin and stderr are a terminal."""
    if os.environ.get("TEXTUAL_DRIVER"):
        return  # a browser
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise RedirtyError(
            "redirty top needs a terminal on stdin and stderr; redirty record and report do not"
        )


def guard() -> None:
    """Continue in a child process; this one waits and restores the terminal if the child could not.

    The child cannot if it is killed with SIGKILL, or ended by a library. Call this before starting threads
    and before large imports. When the child ends, so does this process, with the same exit code; when this
    process is killed, so is the child.
    """
    if os.environ.get("TEXTUAL_DRIVER"):  # a browser: end with the server
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        return
    before = termios.tcgetattr(0)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(130)
        return
    for number in _FORWARDED:
        signal.signal(number, lambda n, _: os.kill(child, n))
    while True:
        try:
            _, status = os.waitpid(child, 0)
            break
        except InterruptedError:
            continue
    code = os.waitstatus_to_exitcode(status)
    if code < 0 or termios.tcgetattr(0)[3] != before[3]:
        with contextlib.suppress(OSError):
            os.write(2, _RESET)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(0, termios.TCSANOW, before)
    if code < 0:
        name = signal.Signals(-code).name
        os.write(2, f"redirty: the live screen was ended by {one_line(name)}\n".encode())
        code = 128 - code
    os._exit(code)


@contextlib.contextmanager
def screen_only() -> Iterator[None]:
    """Keep output of libraries and the BPF compiler to file descriptor 2 off the screen.

    The screen is drawn through a copy of the descriptor. The last 4 KiB of the output are printed at
    the end if REDIRTY_DEBUG is set.
    """
    if os.environ.get("TEXTUAL_DRIVER"):
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    drawn = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
    old = sys.__stderr__  # text: Textual draws through it
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        sys.__stderr__ = drawn  # type: ignore[misc]  # text: likewise
        try:
            yield
        finally:
            sys.stderr.flush()
            sys.__stderr__ = old  # type: ignore[misc]  # text: likewise
            os.dup2(saved, 2)
            os.close(saved)
            drawn.close()
            if os.environ.get("REDIRTY_DEBUG"):
                size = file.seek(0, 2)
                output = os.pread(file.fileno(), _STDERR_BYTES, max(0, size - _STDERR_BYTES))
                os.write(2, text.lines(output.decode(errors="replace")).encode())
