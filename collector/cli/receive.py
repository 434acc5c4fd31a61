"""redirty receive: the receiver of redirty mirror."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from redirty.collector.errors import RedirtyError, UsageError, why
from redirty.collector.units import parse_time

if TYPE_CHECKING:
    from redirty.collector.mirror.image.image import Image
    from redirty.collector.mirror.transport.code_file import CodeFile
    from redirty.collector.mirror.transport.listener import Listener
    from redirty.collector.mirror.transport.receiver import Receiver

_EPILOG = """\
Receives one mirror, and exits when it is committed. Outside of loopback it prints a pairing code, which
the sender needs (redirty mirror ... --code-file FILE): both ends prove by TLS 1.3 that they know it.

If the connection is lost, it waits for the sender. A receiver that was killed resumes when it is started
again with the same --to. With --code-file the code is read from that file or, if there is no such file,
written to it; the file is removed when the mirror is committed, as a code is good for one mirror.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.usage = "redirty receive --listen HOST:PORT --to DIR [--code-file FILE]"
    parser.epilog = _EPILOG
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        required=True,
        help="address to listen on; port 0: any free one",
    )
    parser.add_argument("--to", metavar="DIR", required=True, help="new directory for the mirror")
    parser.add_argument(
        "--code-file", metavar="FILE", help="file to read the code from, or to write it to"
    )
    parser.add_argument(
        "--wait",
        metavar="TIME",
        default="10m",
        help="how long to wait for a sender, at first and after the connection is lost (default 10m)",
    )


def run(options: argparse.Namespace) -> int:
    """Receive a mirror."""
    from redirty.collector.linux.malloc import raise_fd_limit
    from redirty.collector.mirror.transport.code_file import CodeFile
    from redirty.collector.mirror.transport.compression import decompress
    from redirty.collector.mirror.transport.listener import Listener, parse_address
    from redirty.collector.mirror.transport.peer import is_loopback
    from redirty.collector.mirror.transport.receiver import Receiver

    raise_fd_limit()  # each file that the target maps is an open file here
    address = parse_address(options.listen)
    if address is None:
        raise UsageError(f"--listen must be HOST:PORT, got {options.listen}")
    wait_s = parse_time(options.wait, "--wait")
    directory = Path(options.to)
    image = _unfinished_image(directory)
    code_file = CodeFile(Path(options.code_file)) if options.code_file else None
    code = None
    if code_file is not None or not is_loopback(address[0]):
        code = _code(code_file)
    listener = Listener(*address, code)
    signal.signal(signal.SIGTERM, _interrupt)
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    print(f"redirty: listening on {host}:{listener.port}", file=sys.stderr, flush=True)
    receiver = Receiver(directory, image, decompress)
    try:
        _serve(receiver, listener, wait_s)
    except KeyboardInterrupt:
        if receiver.image is not None and not receiver.committed:
            print(
                f"redirty: the unfinished mirror is kept in {directory}: start redirty receive again to resume, or "
                "remove it",
                file=sys.stderr,
            )
        raise
    finally:
        listener.close()
        if code_file is not None and receiver.committed and code_file.use_up():
            print(
                f"redirty: {code_file.path} is removed: a code is good for one mirror",
                file=sys.stderr,
            )
    print(f"redirty: the mirror is in {directory}", file=sys.stderr)
    return 0


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _unfinished_image(directory: Path) -> Image | None:
    """Return the image of a receiver that was killed, if there is one.

    Raises:
        RedirtyError: the image cannot be resumed, the directory is not ours, or it cannot be created.
    """
    from redirty.collector.files import require_new
    from redirty.collector.folders import Folder
    from redirty.collector.mirror.image.image import Image
    from redirty.collector.mirror.image.journal import NAME

    with contextlib.suppress(OSError):  # the directory does not exist, or cannot be created either
        folder = Folder.open_own(directory)
        if folder.exists(NAME) and not folder.exists("mirror.json"):
            return Image.resume(folder)
        folder.close()
    require_new(directory)
    if not os.path.isdir(directory.absolute().parent):  # noqa: PTH112
        raise RedirtyError(f"cannot create {directory}: {directory.parent} does not exist")
    return None


def _code(code_file: CodeFile | None) -> bytes:
    """Read or generate the code in a file, or generate one and print it."""
    from redirty.collector.mirror.transport.pairing import new_code, parse_code

    if code_file is not None:
        return code_file.read_or_create()
    text = new_code()
    print(f"redirty: code {text}", file=sys.stderr, flush=True)
    return parse_code(text)


def read_code(file: str) -> bytes:
    """Read the code from a file, or from stdin if the file is '-'.

    Raises:
        RedirtyError: the file cannot be read, has no code in it, or is open to other users.
    """
    from redirty.collector.mirror.transport.code_file import CodeFile
    from redirty.collector.mirror.transport.pairing import parse_code

    if file != "-":
        return CodeFile(Path(file)).read()
    try:
        return parse_code(sys.stdin.readline())
    except OSError as e:
        raise RedirtyError(f"cannot read the code in {file}: {why(e)}") from None
    except UnicodeDecodeError:
        raise RedirtyError(f"{file} does not contain a code of redirty receive") from None


def _serve(receiver: Receiver, listener: Listener, wait_s: float) -> None:
    """Serve connections until the mirror is committed.

    Raises:
        RedirtyError: no sender came in time, or the mirror was discarded.
    """
    from redirty.collector.mirror.transport.listener import ReplaceableConnection
    from redirty.collector.mirror.transport.protocol import ConnectionLostError, FrameError

    until = time.monotonic() + wait_s
    replacement = None
    while not receiver.committed:
        arrival = replacement or listener.accept(min(1.0, max(until - time.monotonic(), 0)))
        replacement = None
        if arrival is None:
            if time.monotonic() > until:
                receiver.discard()
                raise RedirtyError(
                    f"no sender connected within {wait_s:.0f} s (--wait): nothing was mirrored; start "
                    "redirty receive again"
                )
            continue
        stream = ReplaceableConnection(arrival, listener)
        try:
            receiver.serve(stream)
        except FrameError as e:  # not the sender of this mirror: the time to wait goes on
            print(f"redirty: connection lost: {e}", file=sys.stderr, flush=True)
            continue
        except ConnectionLostError as e:
            print(f"redirty: connection lost: {e}", file=sys.stderr, flush=True)
            replacement = stream.take_replacement()
        finally:
            stream.close()
        until = time.monotonic() + wait_s
