"""redirty receive: the other end of redirty mirror."""

from __future__ import annotations

import argparse
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
    from redirty.collector.mirror.transport.listener import Listener
    from redirty.collector.mirror.transport.receiver import Receiver

_EPILOG = """\
It waits for one mirror, and ends when that is committed. Outside of loopback it shows a code, which the
sender must be given (redirty mirror ... --code-file FILE): both ends prove by TLS 1.3 that they know it.

A connection that breaks is waited for; a receiver that was killed goes on when it is started again
with the same --to. With --code-file the code is read from that file, or, when it does not exist,
written to it.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares them."""
    parser.usage = "redirty receive --listen HOST:PORT --to DIR [--code-file FILE]"
    parser.epilog = _EPILOG
    parser.add_argument("--listen", metavar="HOST:PORT", required=True, help="port 0: any")
    parser.add_argument("--to", metavar="DIR", required=True, help="the mirror, a new directory")
    parser.add_argument("--code-file", metavar="FILE", help="where the code is, or is written")
    parser.add_argument(
        "--wait",
        metavar="TIME",
        default="10m",
        help="how long to wait for a sender, at first and when it is gone (default 10m)",
    )


def run(options: argparse.Namespace) -> int:
    """Receives."""
    from redirty.collector.linux.malloc import raise_fd_limit
    from redirty.collector.mirror.transport.listener import Listener, parse_address
    from redirty.collector.mirror.transport.peer import is_loopback
    from redirty.collector.mirror.transport.receiver import Receiver, decompress

    raise_fd_limit()  # each file that the target maps is one here
    address = parse_address(options.listen)
    if address is None:
        raise UsageError(f"--listen takes HOST:PORT: {options.listen}")
    wait_s = parse_time(options.wait)
    directory = Path(options.to)
    image = _begun(directory)
    code = None
    if options.code_file or not is_loopback(address[0]):
        code = _code(options.code_file)
    door = Listener(*address, code)
    signal.signal(signal.SIGTERM, _interrupt)
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    print(f"redirty: listening on {host}:{door.port}", file=sys.stderr, flush=True)
    receiver = Receiver(directory, image, decompress)
    try:
        _serve(receiver, door, wait_s)
    except KeyboardInterrupt:
        if receiver.image is not None and not receiver.committed:
            print(
                f"redirty: what came is kept in {directory}; start it again to go on, or remove it",
                file=sys.stderr,
            )
        raise
    finally:
        door.close()
    print(f"redirty: the mirror is in {directory}", file=sys.stderr)
    return 0


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _begun(directory: Path) -> Image | None:
    """The image of a receiver that was killed, if there is one. Errors: RedirtyError."""
    from redirty.collector.files import require_new
    from redirty.collector.mirror.image.image import Image
    from redirty.collector.mirror.image.journal import NAME

    if (directory / NAME).is_file() and not (directory / "mirror.json").exists():
        return Image.resume(directory)
    require_new(directory)
    if not directory.absolute().parent.is_dir():
        raise RedirtyError(f"cannot make {directory}: there is no directory {directory.parent}")
    return None


def _code(file: str | None) -> bytes:
    from redirty.collector.mirror.transport.pairing import new_code, parse_code

    if file is not None and Path(file).exists():
        return read_code(file)
    text = new_code()
    if file is None:
        print(f"redirty: code {text}", file=sys.stderr, flush=True)
    else:
        try:
            fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.write(fd, f"{text}\n".encode())
            os.close(fd)
        except OSError as e:
            raise RedirtyError(f"cannot write {file}: {why(e)}") from None
    return parse_code(text)


def read_code(file: str) -> bytes:
    """The code in a file, or with '-' from stdin. Errors: RedirtyError."""
    from redirty.collector.mirror.transport.pairing import parse_code

    try:
        return parse_code(sys.stdin.readline() if file == "-" else Path(file).read_text())
    except OSError as e:
        raise RedirtyError(f"cannot read the code in {file}: {why(e)}") from None
    except UnicodeDecodeError:
        raise RedirtyError(f"{file} is no code of redirty receive") from None


def _serve(receiver: Receiver, door: Listener, wait_s: float) -> None:
    from redirty.collector.mirror.transport.listener import ReplaceableConnection
    from redirty.collector.mirror.transport.protocol import FrameError
    from redirty.collector.mirror.transport.receiver import LostError

    until = time.monotonic() + wait_s
    newer = None
    while not receiver.committed:
        connection = newer or door.accept(min(1.0, max(until - time.monotonic(), 0)))
        newer = None
        if connection is None:
            if time.monotonic() > until:
                receiver.discard()
                raise RedirtyError(f"no sender came within {wait_s:.0f} s: there is no mirror")
            continue
        stream = ReplaceableConnection(connection, door)
        try:
            receiver.serve(stream)
        except (LostError, FrameError) as e:
            print(f"redirty: the connection ended: {e}", file=sys.stderr, flush=True)
            newer = stream.newer()
        finally:
            stream.close()
        until = time.monotonic() + wait_s
