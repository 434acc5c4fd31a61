"""redirty demo: records a built-in workload, and compares the result with the pages it wrote."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redirty.collector.errors import RedirtyError, UsageError
from redirty.collector.units import (
    parse_rate,
    parse_time,
    plural,
    show_bits,
    show_bytes,
    show_time,
)

_LINKS = (1.25e9, 12.5e6)  # bytes per second: 10 Gbit/s, 100 Mbit/s
_DOWNTIME_S = 0.3
_WORKLOAD = Path(__file__).resolve().with_name("demo_workload.py")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "--rate", default="48MiB", help="write rate of the workload (default: 48MiB, per second)"
    )
    parser.add_argument("-d", "--duration", default="4s", help="how long it writes (default: 4s)")
    parser.add_argument("-o", "--output", metavar="DIR", help="keep the recording")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="print the whole report, and the comparison with what was written by area",
    )
    parser.epilog = (
        "Records a process with a hot area of 8 MiB (four writes of five), a warm one of 64 MiB (the "
        "others, at random) and a cold one of 128 MiB. Exit code 0: the recorded pages are exactly "
        "those that it wrote."
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    rate = parse_rate(options.rate, "--rate")
    seconds = parse_time(options.duration, "--duration", bare_seconds=True)
    if seconds < 1:
        raise UsageError(f"--duration must be at least 1s, got {options.duration}")
    from redirty.collector.files import require_new
    from redirty.collector.linux.privileges import require_root

    require_root()
    with contextlib.ExitStack() as stack:
        if options.output:
            directory = Path(options.output)
            require_new(directory)
        else:
            directory = (
                Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="redirty-"))) / "demo"
            )
        return _record(directory, rate, seconds, options)


@contextlib.contextmanager
def _workload(rate: float, seconds: float) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_WORKLOAD), str(rate), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def _record(directory: Path, rate: float, seconds: float, options: argparse.Namespace) -> int:
    from redirty.collector.cli.recording_session import RecordingSession, recording_options
    from redirty.collector.target.targets import Pids

    with _workload(rate, seconds) as child:
        assert child.stdin is not None and child.stdout is not None
        areas = json.loads(child.stdout.readline())
        print(
            f"redirty demo: process {child.pid} will write {show_bytes(rate)}/s for {seconds:g} s, "
            "recorded in rounds of 0.5 s",
            file=sys.stderr,
            flush=True,
        )
        recording = recording_options(
            argparse.Namespace(), Pids([child.pid]), directory, interval_s=0.5
        )
        session = RecordingSession(recording, on_armed=lambda: _send(child.stdin, "go"))
        truth: dict[str, Any] = {}

        # The answer exceeds the capacity of a pipe: it is read while recording, or the workload would
        # block. It also ends the recording, but not before the last write, however slow the machine.
        def await_answer() -> None:
            truth.update(_answer(child.stdout))
            session.finish()

        reader = threading.Thread(target=await_answer, daemon=True)
        reader.start()
        session.run()
        if session.interrupted:
            return session.exit_code
        reader.join(timeout=10)
    if not truth:
        raise RedirtyError("the demo's workload ended before it reported what it wrote")
    if options.verify:
        _show_report(directory)
    wrong = _compare(directory, areas, truth, details=options.verify)
    if wrong:
        raise RedirtyError(
            f"the demo failed: {wrong} pages differ from what was written; please report this"
        )
    if not options.verify:
        _show_picture(directory, areas)
    print("every written page was found, and no other")
    if not options.verify:
        _show_verdicts(directory)
    _show_next(options.output)
    return 0


def _send(pipe: Any, word: str) -> None:
    pipe.write(word + "\n")
    pipe.flush()


def _answer(pipe: Any) -> dict[str, Any]:
    line = pipe.readline()
    answer: dict[str, Any] = json.loads(line) if line else {}
    return answer


def _show_report(directory: Path) -> None:
    from redirty.collector.analyze import summary

    print(summary.as_text(summary.summarise(directory)))


def _compare(
    directory: Path, areas: dict[str, list[int]], truth: dict[str, Any], *, details: bool
) -> int:
    """Compare the pages that were found with those written; return how many differ."""
    from redirty.collector.analyze import load
    from redirty.collector.pageset import PAGE_SIZE

    pages = load.load_pages(directory)
    if details:
        print(
            f"the workload made {truth['writes']} writes; found pages compared with written pages:"
        )
    wrong = 0
    for name, (start, size) in areas.items():
        address = pages["address"]
        inside = pages[(address >= start) & (address < start + size)]
        found = {(int(a) - start) // PAGE_SIZE for a in inside["address"]}
        wrote = set(truth["pages"][name])
        wrong += len(found ^ wrote)
        redirtied = int(inside["rounds_redirtied"].sum())
        if details:
            print(
                f"  {name:<5} {show_bytes(size):>10}: {len(found):>6} pages found, {len(wrote):>6} "
                f"written, {len(wrote - found)} missing, {len(found - wrote)} extra; "
                f"re-dirtied {redirtied} times"
            )
    return wrong


def _show_picture(directory: Path, areas: dict[str, list[int]]) -> None:
    import numpy as np
    from redirty.collector.analyze import load
    from redirty.collector.cli.output import demo_picture
    from redirty.collector.pageset import PAGE_SIZE

    pages, rounds = load.load_pages(directory), load.load_rounds(directory)
    lines = demo_picture.picture(
        areas,
        pages["address"].to_numpy(np.uint64),
        pages["rounds_dirty"].to_numpy(np.int64),
        len(rounds),
        demo_picture.ramp(sys.stdout.encoding),
        PAGE_SIZE,
    )
    print(*lines, sep="\n")


def _show_verdicts(directory: Path) -> None:
    """Print for two links whether a mirror would converge."""
    from redirty.collector.analyze.prediction import predict
    from redirty.collector.model.prediction import Question

    print(f"would its memory move while it runs, stopped for at most {show_time(_DOWNTIME_S)}?")
    for bandwidth in _LINKS:
        answer, found = predict(directory, Question(bandwidth, _DOWNTIME_S))
        text = f"{answer.verdict}"
        if answer.middle.converges:
            passes = plural(len(answer.middle.passes), "pass", "passes")
            text += f": {show_time(found['total_s'])} in {passes}, stopped for {show_time(found['downtime_s'])}"
        elif (needed := found["min_bandwidth_bytes_per_s"]) is not None:
            text += f": it needs {show_bits(needed)}"
        print(f"  over {show_bits(bandwidth):<12} {text}")


def _show_next(kept: str | None) -> None:
    """Print what to do next."""
    print("next:")
    if kept:
        print(f"  redirty report {kept}")
    print("  sudo redirty top                           which processes here write?")
    print("  sudo redirty top -p NAME                   one of them, live")
    print("  sudo redirty predict -p NAME --to HOST     would it move to that host?")
