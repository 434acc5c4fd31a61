"""redirty mirror: copies a running target's memory to a directory or another machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redirty.collector.cli.arguments.target import add_target, target_of
from redirty.collector.errors import RedirtyError, UsageError
from redirty.collector.units import parse_positive_time, parse_rate, show_bytes, show_time

if TYPE_CHECKING:
    from redirty.collector.mirror.decision import Goals
    from redirty.collector.mirror.network_hold import NetworkHold
    from redirty.collector.mirror.observer import MirrorObserver
    from redirty.collector.mirror.request import MirrorRequest
    from redirty.collector.mirror.transport.destination import Destination

_DEFAULT_DOWNTIME_S = 0.2
_MAX_TIME_S = 30 * 86400.0
_MAX_PASSES = 1000  # the progress predicts all remaining passes at each report

_EPILOG = """\
All memory is copied while the target runs, then repeatedly what was written meanwhile. When the rest can
be copied within the downtime goal, the target is stopped, the rest copied, and the target resumed. If the
mirror will not converge, redirty reports which goal would be met, and does not stop the target.

The mirror is memory.core, a core file for gdb (gdb PROGRAM DIR/memory.core), and mirror.json.
It contains the target's secrets: its files have mode 0600.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
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
        "--downtime",
        metavar="TIME",
        help="how long the target may be stopped (default 200ms)",
    )
    goals.add_argument(
        "--deadline", metavar="TIME", help="time within which the mirror has to be complete"
    )
    goals.add_argument(
        "--passes",
        type=int,
        metavar="N",
        help="stop the target after N passes (at most 1000), regardless of the rest",
    )
    parser.add_argument(
        "--bandwidth", metavar="RATE", help="send at most at this rate: 1Gbit, 100MiB"
    )
    parser.add_argument(
        "--verify",
        choices=("sent", "full"),
        nargs="?",
        const="sent",
        help="compare the mirror with digests of what was sent, after the target was resumed; full: with all memory, "
        "while the target is stopped, however long that takes",
    )
    parser.add_argument(
        "--leave",
        choices=("running", "stopped"),
        default="running",
        help="state of the target after the mirror (stopped: as by SIGSTOP; kill -CONT resumes it)",
    )
    parser.add_argument(
        "--qmp",
        metavar="SOCKET",
        help="QMP socket of a QEMU target, to stop its guest before QEMU is stopped",
    )
    parser.add_argument(
        "--hold-network",
        choices=("own", "shared"),
        nargs="?",
        const="own",
        help="hold outgoing packets of the target's network namespaces while it is stopped; shared: also if other "
        "processes use them",
    )
    parser.add_argument(
        "--code-file", metavar="FILE", help="file with the code of redirty receive; -: stdin"
    )
    parser.add_argument(
        "--patience",
        metavar="TIME",
        default="30s",
        help="how long to retry after the connection is lost (default 30s)",
    )
    parser.add_argument("--compress", action="store_true", help="compress page contents (zstd)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--json", action="store_true", help="print mirror.json on stdout at the end"
    )
    output.add_argument(
        "--json-lines",
        action="store_true",
        help="print events as lines of JSON on stdout; cancel the mirror when the reader closes it",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> int:
    """Make a mirror."""
    request = request_from(options)
    from redirty.collector.mirror.session import MirrorSession

    observer = _observer_from(options)
    session = MirrorSession(request, observer)
    observer.on_start(session.stop)
    try:
        information = session.run()
        observer.on_done(information)
    except RedirtyError as e:
        observer.on_failed(str(e))
        raise
    finally:
        observer.close()
    print_summary(information, options)
    return 0


def request_from(options: argparse.Namespace) -> MirrorRequest:
    """Check the options, and build a request from them; a command as target is started at the end.

    Raises:
        UsageError: options are invalid, or contradict each other.
        RedirtyError: privileges are missing, or the target or the destination cannot be used.
    """
    goals = _goals_from(options)
    bandwidth = None
    if options.bandwidth is not None:
        bandwidth = parse_rate(options.bandwidth, "--bandwidth")
    if options.qmp is not None and not _is_socket(Path(options.qmp)):
        raise UsageError(f"--qmp must be the socket of QEMU's -qmp option, got {options.qmp}")
    network = _network_hold_from(options)
    compress = _compressor_from(options)
    destination = _destination_from(options)
    from redirty.collector.linux import privileges
    from redirty.collector.mirror.request import MirrorRequest

    privileges.require_root()
    return MirrorRequest(
        target=target_of(options),
        destination=destination,
        goals=goals,
        bandwidth=bandwidth,
        verify=options.verify,
        leave_stopped=options.leave == "stopped",
        arm=options.arm,
        probe=options.probe,
        compress=compress,
        qmp=options.qmp,
        network=network,
    )


def _is_socket(path: Path) -> bool:
    try:
        return path.is_socket()
    except OSError:  # EACCES, as for a link of another user in a shared directory
        return False


def _goals_from(options: argparse.Namespace) -> Goals:
    from redirty.collector.mirror.decision import Goals

    if options.passes is not None and not 1 <= options.passes <= _MAX_PASSES:
        raise UsageError(f"--passes must be between 1 and {_MAX_PASSES}, got {options.passes}")
    deadline_s = None
    if options.deadline is not None:
        deadline_s = parse_positive_time(options.deadline, "--deadline", _MAX_TIME_S)
    downtime_s: float | None = _DEFAULT_DOWNTIME_S
    if options.downtime is not None:
        downtime_s = parse_positive_time(options.downtime, "--downtime", _MAX_TIME_S)
    elif options.passes is not None or deadline_s is not None:
        downtime_s = None
    return Goals(downtime_s, deadline_s, options.passes)


def _network_hold_from(options: argparse.Namespace) -> NetworkHold | None:
    if options.hold_network is None:
        return None
    if options.vm is not None:
        raise UsageError("--hold-network cannot be used with --vm: a stopped guest sends nothing")
    from redirty.collector.mirror.network_hold import NetworkHold
    from redirty.collector.mirror.transport.listener import parse_address
    from redirty.collector.mirror.transport.peer import is_loopback

    address = parse_address(options.to)
    remote = address is not None and not is_loopback(address[0])
    return NetworkHold(shared=options.hold_network == "shared", remote=remote)


def _compressor_from(options: argparse.Namespace) -> Callable[[memoryview], memoryview] | None:
    if not options.compress:
        return None
    from redirty.collector.mirror.transport.compression import compress
    from redirty.collector.mirror.transport.listener import parse_address

    if parse_address(options.to) is None:
        raise UsageError("--compress needs --to HOST:PORT: a mirror in a directory is a core file")
    return compress


def _destination_from(options: argparse.Namespace) -> Destination:
    from redirty.collector.cli.receive import read_code
    from redirty.collector.files import require_new
    from redirty.collector.mirror.transport.destination import (
        DirectoryDestination,
        ReceiverDestination,
    )
    from redirty.collector.mirror.transport.listener import parse_address

    patience_s = parse_positive_time(options.patience, "--patience", _MAX_TIME_S)
    address = parse_address(options.to)
    code = None if options.code_file is None else read_code(options.code_file)
    if address is None:
        require_new(Path(options.to))
        return DirectoryDestination(Path(options.to))
    host, port = address
    return ReceiverDestination(options.to, host, port, code, patience_s)


def _observer_from(options: argparse.Namespace) -> MirrorObserver:
    if options.json_lines:
        from redirty.collector.cli.output.mirror_events import MirrorEvents

        return MirrorEvents()
    from redirty.collector.cli.output.mirror_progress import MirrorProgressLine

    return MirrorProgressLine(quiet=options.quiet)


def print_summary(information: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the result as the options ask: mirror.json, one line for people, or nothing."""
    if options.json_lines:
        return
    if options.json:
        from redirty.collector import json_text

        json_text.answer.print_file(information)
    elif not options.quiet:
        print(f"redirty: {summary(information, options.to)}", file=sys.stderr)
        return
    from redirty.collector.mirror import promise

    too_long = promise.broken(information)
    if too_long:  # not progress: it is said in any case
        print(f"redirty: {too_long}", file=sys.stderr)


def summary(information: dict[str, Any], to: str) -> str:
    """Summarize the contents of mirror.json in one line."""
    from redirty.collector.mirror import missing, promise

    passes = len(information["passes"])
    parts = [
        f"mirrored to {to} in {passes} passes, {show_time(information['total_s'])}",
        f"{show_bytes(information['bytes'])} sent",
        f"downtime {show_time(information['downtime_s'])}",
    ]
    if information["verified"]:
        what = "all memory" if information["verified_by"] == "full" else "what was sent"
        parts.append(f"verified with {what}, digest {information['digest']}")
    elif information["digest"]:
        parts.append("what could be read is verified")
    too_long = promise.broken(information)
    if too_long:
        parts.append(too_long)
    parts += missing.summary(information)
    return "; ".join(parts)
