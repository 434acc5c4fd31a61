"""redirty record: traces a target into a recording."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from redirty.collector.cli.arguments.interval import interval_of
from redirty.collector.cli.arguments.target import add_target, target_of
from redirty.collector.errors import TargetEndedError, UsageError
from redirty.collector.units import parse_positive_time, plural

if TYPE_CHECKING:
    from redirty.collector.recording.session import Session

_EPILOG = """\
A round is the time between two arms. An arm write-protects every page of the target; the first
write to a page then faults, is logged, and costs about a microsecond once.

The recording is a directory of CSV files (rounds, mappings, pages, curve, tlb) with meta.json,
modes 0700 and 0600: addresses are sensitive.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.usage = "redirty record TARGET [interval [count]] [-d TIME] -o DIR"
    parser.epilog = _EPILOG
    add_target(parser)
    parser.add_argument(
        "interval", nargs="?", default="1s", help="length of a round: 1, 100ms (default: 1s)"
    )
    parser.add_argument("count", nargs="?", type=int, help="stop after this number of rounds")
    parser.add_argument(
        "-d", "--duration", metavar="TIME", help="stop after this time: 10, 500ms, 2m"
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", required=True, help="the recording, a new directory"
    )
    parser.add_argument(
        "--events", action="store_true", help="also write every write fault (events.parquet)"
    )
    parser.add_argument(
        "--stacks",
        action="store_true",
        help="also write the stacks that dirty pages (stacks.folded)",
    )
    parser.add_argument(
        "--physical",
        action="store_true",
        help="also write the page frames of dirty pages (physical.parquet, frames.parquet)",
    )
    parser.add_argument(
        "--zeros",
        action="store_true",
        help="at the end also count zero pages (zeros.csv): reads the target's memory once",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a summary as JSON on stdout at the end"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    interval_s = interval_of(options.interval, "interval")
    if options.count is not None and options.count < 1:
        raise UsageError(f"count must be at least 1, got {options.count}")
    duration_s = 0.0
    if options.duration is not None:
        duration_s = parse_positive_time(options.duration, "--duration", bare_seconds=True)
    directory = Path(options.output)
    _require(options, directory)
    target = target_of(options)
    from redirty.collector.cli.recording_session import RecordingSession, recording_options

    recording = recording_options(
        options,
        target,
        directory,
        interval_s=interval_s,
        count=options.count or 0,
        duration_s=duration_s,
    )
    session = RecordingSession(recording, quiet=options.quiet)
    try:
        session.run()
    except TargetEndedError:
        if options.json and session.rounds:
            _print_json(directory)
        raise
    if options.json:
        _print_json(directory)
    elif not options.quiet:
        _print_notes(session)
        rounds = plural(session.rounds, "round")
        print(
            f"redirty: {rounds} in {directory} (see: redirty report {directory})", file=sys.stderr
        )
    if options.command and not options.quiet and target.reap() is None:
        print(f"redirty: the command continues as process {target.pid}", file=sys.stderr)
    return session.exit_code


def _require(options: argparse.Namespace, directory: Path) -> None:
    """Check what can be checked before the target is opened.

    Raises: RedirtyError when the directory exists, or a privilege is missing.
    """
    from redirty.collector.files import require_new
    from redirty.collector.linux.privileges import require_root

    require_new(directory)
    require_root()
    if options.physical:
        from redirty.collector.linux.page_frames import require_frames

        require_frames()


def _print_notes(session: Session) -> None:
    """Print notes that a reader of the recording must know."""
    if session.by_log_only:
        print(
            f"redirty: {session.by_log_only} processes could not be armed and were traced by "
            "their faults alone (-v logs the reason)",
            file=sys.stderr,
        )
    if session.pinned_kib:
        print(
            f"redirty: {session.pinned_kib} KiB of the target are pinned: writes by io_uring or a "
            "device are not tracked there, and do not count as dirty",
            file=sys.stderr,
        )
    if session.moved_pages:
        print(
            f"redirty: {session.moved_pages} pages count as dirty although no write was logged: they look "
            "written with all pages around them, as moved memory does (mremap, relocated page tables)",
            file=sys.stderr,
        )


def _print_json(directory: Path) -> None:
    from redirty.collector.analyze.summary import print_json

    print_json(directory)
