"""redirty predict: predicts whether a mirror converges, in how many passes, and with how much downtime."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from redirty.collector.cli.arguments.bandwidth import Bandwidth, add_bandwidth, bandwidth_of
from redirty.collector.cli.arguments.destination import add_destination, as_copied, destination_of
from redirty.collector.cli.arguments.interval import interval_of
from redirty.collector.cli.arguments.question import DEFAULT_POLICY, add_question, question_of
from redirty.collector.cli.arguments.target import add_target, target_of, targets_named
from redirty.collector.errors import RedirtyError, TargetEndedError, UsageError
from redirty.collector.units import parse_rate, parse_size, parse_time, plural

if TYPE_CHECKING:
    from collections.abc import Callable

    from redirty.collector.mirror.calibration.copier import Kind
    from redirty.collector.model.prediction import Question
    from redirty.collector.model.stop_cost import StopSteps
    from redirty.collector.target.targets import TargetSet
    from redirty.collector.tracking.rounds import Recorder

_MAX_RATIO = 1000
_EXIT_CODES = {"converges": 0, "does not converge": 4, "uncertain": 5}

_EPILOG = """\
A mirror copies all memory, then repeatedly what was written meanwhile, and finally stops the target
and copies the rest. Whether that ends, and how soon, follows from the bandwidth and from W(t), the
number of distinct pages written within t of an arm, which a recording contains.

policies:
  redirty    passes until the rest fits the downtime; pages that will almost certainly be written
             again are deferred to the last pass
  qemu       passes until the pending pages fit bandwidth x downtime, checked every 100 ms
  qemu-auto-converge      the same, and the guest is throttled by 20 %, then 10 % more at a time
  qemu-dirty-limit:RATE   the same, and the guest is limited to RATE of written memory
  qemu-multifd            the same with multifd's packets, zero pages found
  qemu-postcopy           one pass, then the guest runs at the other end while the rest follows
  cloud-hypervisor[:force]   passes until the rest fits, or 3600 s: cancelled, or stopped by force
  criu:N, criu-page-server:N   N pre-dumps, then the dump      passes:N   N passes, then the rest
  xen        five passes, fewer when fewer than 50 pages are left

examples:
  sudo redirty record -p 1234 -d 30 -o rec
  redirty predict rec --bandwidth 1Gbit --downtime 300ms
  redirty predict rec --to backup-host               with the free bandwidth of the link to it
  redirty predict rec --bandwidth 10Gbit --policy qemu --json
  sudo redirty predict -p 1234 -d 10 --bandwidth 1.25GB       records for 10 s, keeps no file

The verdict is "uncertain" when it depends on which of the recorded rounds are used, and within 10 %
of the critical bandwidth. Rounds as long as the expected passes, and many of them, make the interval
narrower. With --policy qemu give --last-bandwidth when its max-bandwidth is below the rate of the
link: the last pass uses all of it.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.usage = "redirty predict DIR | TARGET [-d TIME] --bandwidth RATE [--downtime TIME]"
    parser.epilog = _EPILOG
    parser.add_argument("directory", metavar="DIR", nargs="?", help="a recording")
    add_bandwidth(parser, "bandwidth of the mirror's link; one of", required=True)
    add_question(parser)
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="size of the first pass (default: all present pages; for qemu all of a guest's memory)",
    )
    parser.add_argument(
        "--zero",
        metavar="SIZE",
        help="how much of it is zero pages (default: as counted with --zeros, else none)",
    )
    parser.add_argument(
        "--compression",
        metavar="RATIO",
        help="how many times smaller compression makes a page that is sent: 2.5 (default: 1)",
    )
    parser.add_argument(
        "--last-bandwidth",
        metavar="RATE",
        help="bandwidth of the last pass, while the target is stopped",
    )
    add_destination(parser)
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")
    parser.add_argument(
        "--exit-code",
        action="store_true",
        help="exit with 0 if it converges, 4 if it does not, 5 if that is uncertain",
    )
    add_target(parser)
    live = parser.add_argument_group("with a target")
    live.add_argument(
        "-d", "--duration", metavar="TIME", help="record for this time (default: 10s)"
    )
    live.add_argument(
        "--interval", metavar="TIME", help="in rounds of this length (default: 500ms)"
    )
    live.add_argument(
        "--zeros", action="store_true", help="count zero pages: reads the target's memory once"
    )
    live.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    live = targets_named(options) > 0
    if live and options.directory is not None:
        raise UsageError("specify a recording or a target, not both")
    if not live and options.directory is None:
        raise UsageError(
            "specify a recording (DIR), or a target: -p, --tree, --cgroup, --vm or -- COMMAND"
        )
    if not live:
        if options.zeros:
            raise UsageError("--zeros needs a target: give it to redirty record instead")
        for given, name in ((options.duration, "--duration"), (options.interval, "--interval")):
            if given is not None:
                raise UsageError(f"{name} needs a target: {options.directory} is recorded already")
    question_at = _question(options)
    kind = destination_of(options, live=live)
    if live:
        return _live(options, question_at, kind)
    bandwidth = bandwidth_of(options)
    assert bandwidth is not None  # required by the parser
    bandwidth = as_copied(bandwidth, kind, lambda: b"", _compression(options))
    return _show(Path(options.directory), question_at(bandwidth), bandwidth, options)


def _question(options: argparse.Namespace) -> Callable[[Bandwidth], Question]:
    """Build the question except for the bandwidth: usage errors must not wait for the measurement of a link."""
    question_at = question_of(options)
    memory = None if options.memory is None else parse_size(options.memory, "--memory")
    zero = None if options.zero is None else parse_size(options.zero, "--zero")
    given = _compression(options)
    last = None
    if options.last_bandwidth is not None:
        last = parse_rate(options.last_bandwidth, "--last-bandwidth")

    def question(b: Bandwidth) -> Question:
        measured = None if b.copier is None else b.copier.ratio
        return replace(
            question_at(b.bytes_per_s),
            memory=memory,
            zero=zero,
            last_bandwidth=last,
            compression=given or measured or 1.0,
            copier=b.copier,
        )

    return question


def _compression(options: argparse.Namespace) -> float | None:
    """Return the given ratio of compression; None: none was given. Raises: UsageError when it is none."""
    text = options.compression
    if text is None:
        return None
    if re.fullmatch(r"\d{1,6}(\.\d{1,6})?", text) and 1 <= float(text) <= _MAX_RATIO:
        return float(text)
    raise UsageError(
        f"--compression must be a ratio between 1 and {_MAX_RATIO}, like 2.5, got {text[:20]!r}"
    )


def _show(
    directory: Path, question: Question, bandwidth: Bandwidth, options: argparse.Namespace
) -> int:
    """Print the prediction; return the exit code of its verdict."""
    from redirty.collector import json_text
    from redirty.collector.analyze import load, prediction_text
    from redirty.collector.analyze.prediction import predict

    answer, found = predict(directory, question)
    found["link"] = bandwidth.as_json()["link"]
    copier = bandwidth.copier
    found["copier_bytes_per_s"] = None if copier is None else copier.bytes_per_s
    code = _EXIT_CODES[answer.verdict] if options.exit_code else 0
    if options.json:
        json_text.answer.print(found)
        return code
    target = load.load_meta(directory)["target"]
    from redirty.collector.errors import one_line

    print(one_line(f"{target['description']}: {target['comm']}"))
    if bandwidth.link is not None:
        print(bandwidth.source)
    if bandwidth.copier_limits:
        print(bandwidth.copier_limits)
    print(prediction_text.as_text(answer, found), end="")
    return code


def _live(
    options: argparse.Namespace, question_at: Callable[[Bandwidth], Question], kind: Kind | None
) -> int:
    """Record a target, then predict; return the exit code."""
    duration_s = (
        10.0
        if options.duration is None
        else parse_time(options.duration, "--duration", bare_seconds=True)
    )
    interval_s = 0.5 if options.interval is None else interval_of(options.interval, "--interval")
    if duration_s < interval_s:
        raise UsageError(
            f"--duration must be at least one round of {interval_s:g} s, got {duration_s:g} s: give a "
            "longer one, or a shorter --interval"
        )
    from redirty.collector.linux.privileges import require_root

    require_root()
    target = target_of(options)
    bandwidth = bandwidth_of(options)
    assert bandwidth is not None  # required by the parser
    bandwidth = as_copied(bandwidth, kind, lambda: _pages_of(target), _compression(options))
    question = question_at(bandwidth)
    from redirty.collector.cli.recording_session import RecordingSession, recording_options

    steps: list[StopSteps | None] = []
    with tempfile.TemporaryDirectory(prefix="redirty-") as place:
        directory = Path(place) / "recording"
        recording = recording_options(
            options, target, directory, interval_s=interval_s, duration_s=duration_s
        )
        session = RecordingSession(recording, quiet=options.quiet)
        if question.policy == DEFAULT_POLICY and question.stop_cost_s is None:
            session.on_planned = lambda recorder: steps.append(_stop_steps(recorder))
        try:
            session.run()
        except TargetEndedError as e:
            if session.rounds:
                _show(directory, question, bandwidth, options)
            rounds = plural(session.rounds, "complete round")
            raise TargetEndedError(
                f"{target.description} ended before {duration_s:g} s had passed: "
                + (f"predicted from {rounds}" if session.rounds else "no round was complete")
            ) from e
        if session.interrupted and not session.rounds:
            print("redirty: interrupted before a round was complete", file=sys.stderr)
            return session.exit_code
        if steps and steps[0] is not None:
            start_s = session.begin_s + steps[0].scan_s
            flush_s = 0.0 if bandwidth.copier is None else bandwidth.copier.flush_s
            stop = replace(steps[0], flush_s=flush_s)
            question = replace(question, stop_steps=stop, start_s=start_s)
        code = _show(directory, question, bandwidth, options)
    return session.exit_code or code


def _pages_of(target: TargetSet) -> bytes:
    """Return some pages of a target; none of a command, which does not run yet."""
    if target.kind == "command":
        return b""
    from redirty.collector.linux.pagemap import scan_supported
    from redirty.collector.mirror.calibration.copier import SCRATCH_BYTES
    from redirty.collector.mirror.calibration.sample import sample_pages
    from redirty.collector.pageset import PAGE_SIZE

    count = SCRATCH_BYTES // PAGE_SIZE
    return sample_pages(target.members(), count, scan=scan_supported())


def _stop_steps(recorder: Recorder) -> StopSteps | None:
    """Stop the target as a mirror does, and return what that takes; None if it cannot be stopped now."""
    from redirty.collector.mirror.calibration.stop import measure_stop

    try:
        return measure_stop(recorder)
    except (OSError, RedirtyError) as e:
        print(f"redirty: how long a stop takes is not measured: {e}", file=sys.stderr)
        return None
