"""redirty mirror: copies a running target's memory to another place."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redirty.collector.cli.arguments.target import add_target, target_of
from redirty.collector.cli.mirror_progress import MirrorProgressLine
from redirty.collector.errors import RedirtyError, UsageError, why
from redirty.collector.units import (
    parse_rate,
    parse_time,
    show_bytes,
    show_time,
)

if TYPE_CHECKING:
    from redirty.collector.mirror.network_hold import NetworkHold
    from redirty.collector.mirror.rate_limiter import RateLimiter
    from redirty.collector.mirror.transport.sink import PageSink

_LONGEST_S = 30 * 86400.0
_MOST_PASSES = 1000  # while it goes on, all of them are foretold again and again

_EPILOG = """\
All memory is copied while the target runs, then again and again what it wrote meanwhile. When what is
left can be copied within the downtime asked for, the target is stopped for it, and runs again. If that
will not come, it says what would do, and the target is left alone.

The mirror is memory.core, a core file that gdb reads (gdb PROGRAM DIR/memory.core), and mirror.json.
It holds the target's secrets: 0600.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares them."""
    parser.usage = (
        "redirty mirror TARGET --to DIR|HOST:PORT [--downtime TIME] [--bandwidth RATE] ..."
    )
    parser.epilog = _EPILOG
    add_target(parser)
    parser.add_argument(
        "--to",
        metavar="DEST",
        required=True,
        help="a new directory, or HOST:PORT of redirty receive",
    )
    goals = parser.add_argument_group("goals")
    goals.add_argument(
        "--downtime", metavar="TIME", help="how long it may stand still (default 200ms)"
    )
    goals.add_argument("--deadline", metavar="TIME", help="when all is to be done")
    goals.add_argument(
        "--passes",
        type=int,
        metavar="N",
        help="stop it after so many passes (at most 1000), whatever is left",
    )
    parser.add_argument("--bandwidth", metavar="RATE", help="send no faster: 1Gbit, 100MiB")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare all memory with the mirror while the target stands still, which takes longer",
    )
    parser.add_argument(
        "--leave",
        choices=("running", "stopped"),
        default="running",
        help="what becomes of the target (stopped: as by SIGSTOP; kill -CONT lets it run)",
    )
    parser.add_argument(
        "--qmp",
        metavar="SOCKET",
        help="of a QEMU: its guest is stopped through this, before QEMU is",
    )
    parser.add_argument(
        "--hold-network",
        choices=("own", "shared"),
        nargs="?",
        const="own",
        help="while it stands still nothing leaves its network namespaces, which are its own; shared: or others' too",
    )
    parser.add_argument("--code-file", metavar="FILE", help="the code of redirty receive; -: stdin")
    parser.add_argument(
        "--patience",
        metavar="TIME",
        default="30s",
        help="how long a connection that broke is tried again (default 30s)",
    )
    parser.add_argument("--compress", action="store_true", help="compress what is sent (zstd)")
    told = parser.add_mutually_exclusive_group()
    told.add_argument("--json", action="store_true", help="mirror.json on stdout at the end")
    told.add_argument(
        "--json-lines",
        action="store_true",
        help="all that happens as lines of JSON on stdout; cancelled when nobody reads them",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> int:
    """Mirrors."""
    from redirty.collector.mirror.decision import Goals

    if options.passes is not None and not 1 <= options.passes <= _MOST_PASSES:
        raise UsageError(f"a number of passes is 1 to {_MOST_PASSES}: {options.passes}")
    deadline_s = None if options.deadline is None else _positive("deadline", options.deadline)
    downtime_s: float | None = 0.2
    if options.downtime is not None:
        downtime_s = _positive("downtime", options.downtime)
    elif options.passes is not None or deadline_s is not None:
        downtime_s = None
    goals = Goals(downtime_s, deadline_s, options.passes)
    bandwidth = None if options.bandwidth is None else parse_rate(options.bandwidth)
    if options.qmp is not None and not Path(options.qmp).is_socket():
        raise UsageError(f"--qmp takes the socket of QEMU's -qmp: {options.qmp} is none")
    network = _network(options)
    from redirty.collector.linux.privileges import require_root
    from redirty.collector.mirror.rate_limiter import RateLimiter
    from redirty.collector.mirror.request import MirrorRequest
    from redirty.collector.mirror.session import MirrorSession

    pace = RateLimiter(bandwidth)
    open_sink = _destination(options, pace)
    require_root()
    wish = MirrorRequest(
        target=target_of(options),
        goals=goals,
        bandwidth=bandwidth,
        verify=options.verify,
        leave_stopped=options.leave == "stopped",
        arm=options.arm,
        probe=options.probe,
        compress=_compressor(options, bandwidth),
        qmp=options.qmp,
        network=network,
    )
    from redirty.collector.cli.mirror_events import MirrorEvents

    progress = MirrorEvents() if options.json_lines else MirrorProgressLine(quiet=options.quiet)
    mirroring = MirrorSession(wish, open_sink, progress)
    pace.check = mirroring.check
    if isinstance(progress, MirrorEvents):
        progress.of = mirroring
    try:
        information = mirroring.run()
        if isinstance(progress, MirrorEvents):
            progress.done(information)
    except RedirtyError as e:
        if isinstance(progress, MirrorEvents):
            progress.failed(str(e))
        raise
    finally:
        progress.end()
    if options.json_lines:
        return 0
    if options.json:
        import json

        print(json.dumps(information, indent=2))
    elif not options.quiet:
        print(f"redirty: {_summary(information, options.to)}", file=sys.stderr)
    return 0


def _compressor(
    options: argparse.Namespace, bandwidth: float | None
) -> Callable[[memoryview], memoryview] | None:
    if not options.compress:
        return None
    from redirty.collector.mirror.transport.listener import parse_address
    from redirty.collector.mirror.transport.receiver import compress

    if parse_address(options.to) is None:
        raise UsageError("--compress is for a connection: a directory's mirror is a core file")
    return compress


def _network(options: argparse.Namespace) -> NetworkHold | None:
    if options.hold_network is None:
        return None
    if options.vm is not None:
        raise UsageError("--hold-network is for processes: a guest that stands still sends nothing")
    from redirty.collector.mirror.network_hold import NetworkHold
    from redirty.collector.mirror.transport.listener import parse_address
    from redirty.collector.mirror.transport.peer import is_loopback

    address = parse_address(options.to)
    far = address is not None and not is_loopback(address[0])
    return NetworkHold(shared=options.hold_network == "shared", far=far)


def _positive(name: str, text: str) -> float:
    seconds = parse_time(text)
    if seconds <= 0:
        raise UsageError(f"a {name} is more than 0: {text}")
    if seconds > _LONGEST_S:
        raise UsageError(f"a {name} is at most {show_time(_LONGEST_S)}: {text}")
    return seconds


def _destination(options: argparse.Namespace, pace: RateLimiter) -> Callable[[], PageSink]:
    """What opens the other end. Errors: RedirtyError when it cannot be."""
    from redirty.collector.files import require_new
    from redirty.collector.mirror.transport.listener import connect, parse_address

    patience_s = _positive("patience", options.patience)
    address = parse_address(options.to)
    code = None
    if options.code_file is not None:
        from redirty.collector.cli.receive import read_code

        code = read_code(options.code_file)
    directory = Path(options.to)
    if address is None:
        require_new(directory)

    def local() -> PageSink:
        import secrets

        from redirty.collector.mirror.image.image import Image
        from redirty.collector.mirror.transport.local_sink import LocalSink

        return LocalSink(Image.create(directory, secrets.token_hex(16)), pace)

    def remote() -> PageSink:
        from redirty.collector.mirror.transport.network_sink import NetworkSink
        from redirty.collector.mirror.transport.sink import BrokenError

        assert address is not None
        try:
            return NetworkSink(lambda: connect(*address, code), pace, patience_s)
        except OSError as e:
            code_too = " (and does it ask for a code? --code-file)" if code is None else ""
            raise RedirtyError(
                f"cannot reach {options.to}: {why(e)}; is redirty receive running there?{code_too}"
            ) from None
        except BrokenError as e:
            raise RedirtyError(
                f"{options.to} does not take the mirror: {e}; redirty receive says there why"
            ) from None

    return local if address is None else remote


def _summary(information: dict[str, Any], to: str) -> str:
    passes = len(information["passes"])
    words = [
        f"mirrored to {to} in {passes} passes, {show_time(information['total_s'])}",
        f"{show_bytes(information['bytes'])} sent",
        f"it stood still for {show_time(information['downtime_s'])}",
    ]
    if information["verified"]:
        words.append(f"verified, digest {information['digest']}")
    if information["unmirrored"]:
        words.append(f"{len(information['unmirrored'])} mappings of devices have no contents in it")
    return "; ".join(words)
