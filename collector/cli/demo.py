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
from redirty.collector.units import parse_rate, parse_time, show_bytes

_WORKLOAD = Path(__file__).resolve().with_name("demo_workload.py")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "--rate", default="48MiB", help="write rate of the workload (default: 48MiB, per second)"
    )
    parser.add_argument("-d", "--duration", default="4s", help="how long it writes (default: 4s)")
    parser.add_argument("-o", "--output", metavar="DIR", help="keep the recording")
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
        return _record(directory, rate, seconds, kept=bool(options.output))


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


def _record(directory: Path, rate: float, seconds: float, *, kept: bool) -> int:
    from redirty.collector.cli.recording_session import RecordingSession, recording_options
    from redirty.collector.target.targets import Pids

    with _workload(rate, seconds) as child:
        assert child.stdin is not None and child.stdout is not None
        areas = json.loads(child.stdout.readline())
        print(
            f"redirty demo: process {child.pid} will write {show_bytes(rate)}/s for {seconds:g} s, "
            "recorded in rounds of 0.5 s",
            file=sys.stderr,
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
    return _compare(directory, areas, truth, kept=kept)


def _send(pipe: Any, word: str) -> None:
    pipe.write(word + "\n")
    pipe.flush()


def _answer(pipe: Any) -> dict[str, Any]:
    line = pipe.readline()
    answer: dict[str, Any] = json.loads(line) if line else {}
    return answer


def _compare(
    directory: Path, areas: dict[str, list[int]], truth: dict[str, Any], *, kept: bool
) -> int:
    from redirty.collector.analyze import load, summary
    from redirty.collector.pageset import PAGE_SIZE

    if not truth:
        raise RedirtyError("the demo's workload ended before it reported what it wrote")
    print(summary.as_text(summary.summarise(directory)))
    pages = load.load_pages(directory)
    print(f"the workload made {truth['writes']} writes; found pages compared with written pages:")
    wrong = 0
    for name, (start, size) in areas.items():
        address = pages["address"]
        inside = pages[(address >= start) & (address < start + size)]
        found = {(int(a) - start) // PAGE_SIZE for a in inside["address"]}
        wrote = set(truth["pages"][name])
        wrong += len(found ^ wrote)
        redirtied = int(inside["rounds_redirtied"].sum())
        print(
            f"  {name:<5} {show_bytes(size):>10}: {len(found):>6} pages found, {len(wrote):>6} "
            f"written, {len(wrote - found)} missing, {len(found - wrote)} extra; "
            f"re-dirtied {redirtied} times"
        )
    if wrong:
        raise RedirtyError(
            f"the demo failed: {wrong} pages differ from what was written; please report this"
        )
    print("every written page was found, and no other")
    if kept:
        print(f"the recording is in {directory}")
    return 0
