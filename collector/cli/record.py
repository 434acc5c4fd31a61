"""redirty record: traces a target into a recording."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from redirty.collector.cli.arguments.target import add_target, target_of
from redirty.collector.cli.progress import RecordProgressLine
from redirty.collector.errors import TargetEndedError, UsageError
from redirty.collector.units import parse_time, plural

if TYPE_CHECKING:
    from redirty.collector.recording.session import Session

_EPILOG = """\
A round is the time between two arms. At its start every page of the target is write-protected;
the first write to a page then faults and is logged, and costs about a microsecond once.

The recording is a directory of CSV files (rounds, mappings, pages, curve, tlb) with meta.json,
0700 and 0600: addresses tell about the target.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares them."""
    parser.usage = "redirty record TARGET [interval [count]] [-d TIME] -o DIR"
    parser.epilog = _EPILOG
    add_target(parser)
    parser.add_argument(
        "interval", nargs="?", default="1s", help="length of a round: 1, 100ms (default: 1s)"
    )
    parser.add_argument("count", nargs="?", type=int, help="stop after so many rounds")
    parser.add_argument(
        "-d", "--duration", metavar="TIME", help="stop after so long: 10, 500ms, 2m"
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", required=True, help="the recording, a new directory"
    )
    parser.add_argument(
        "--events", action="store_true", help="also write every write fault (events.parquet)"
    )
    parser.add_argument(
        "--stacks", action="store_true", help="also write who dirties (stacks.folded)"
    )
    parser.add_argument(
        "--physical",
        action="store_true",
        help="also write which page frames the dirty pages lie in (physical.parquet, frames.parquet)",
    )
    parser.add_argument(
        "--zeros",
        action="store_true",
        help="at the end also count the pages that are all zeros: reads the target's memory once (zeros.csv)",
    )
    parser.add_argument(
        "--json", action="store_true", help="a summary for programs on stdout at the end"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> int:
    """Records."""
    interval_s = parse_time(options.interval)
    if interval_s < 0.001:
        raise UsageError(
            f"an interval of {options.interval} is too short: 1ms is the least, 100ms is usual"
        )
    if options.count is not None and options.count < 1:
        raise UsageError(f"a count of rounds is 1 or more: {options.count}")
    duration_s = 0.0 if options.duration is None else parse_time(options.duration)
    if options.duration is not None and duration_s <= 0:
        raise UsageError(f"a duration is more than 0: {options.duration}")
    directory = Path(options.output)
    from redirty.collector.files import require_new
    from redirty.collector.linux.privileges import require_root

    require_new(directory)
    require_root()
    if options.physical:
        from redirty.collector.linux.page_frames import require_frames

        require_frames()
    target = target_of(options)
    from redirty.collector.recording.options import RecordingOptions
    from redirty.collector.recording.session import Session

    plan = RecordingOptions(
        target=target,
        directory=directory,
        interval_s=interval_s,
        count=options.count or 0,
        duration_s=duration_s,
        arm=options.arm,
        probe=options.probe,
        events=options.events,
        stacks=options.stacks,
        physical=options.physical,
        zeros=options.zeros,
    )
    progress = RecordProgressLine(quiet=options.quiet)
    session = Session(plan, progress.show, on_counted=progress.counting)
    try:
        session.run()
    except TargetEndedError:
        progress.end()
        if options.json and session.rounds:
            _print_json(directory)
        raise
    finally:
        progress.end()
    if options.json:
        _print_json(directory)
    elif not options.quiet:
        _say_notes(session)
        rounds = plural(session.rounds, "round")
        print(
            f"redirty: {rounds} in {directory} (see: redirty report {directory})", file=sys.stderr
        )
    if options.command and not options.quiet and target.reap() is None:
        print(f"redirty: the command goes on as process {target.pid}", file=sys.stderr)
    return 130 if session.interrupted else 0


def _say_notes(session: Session) -> None:
    """What a reader of the recording must know."""
    if session.by_log_only:
        print(
            f"redirty: {session.by_log_only} processes could not be armed and were traced by "
            "their faults alone (-v tells why)",
            file=sys.stderr,
        )
    if session.pinned_kib:
        print(
            f"redirty: {session.pinned_kib} KiB of the target are pinned: io_uring or a device "
            "can write there unseen, and that does not count as dirty",
            file=sys.stderr,
        )
    if session.moved_pages:
        print(
            f"redirty: {session.moved_pages} pages look written, with all around them and no write "
            "logged: memory moved (mremap, page tables relocated) does; they count as dirty",
            file=sys.stderr,
        )


def _print_json(directory: Path) -> None:
    from redirty.collector.analyze.summary import print_json

    print_json(directory)
