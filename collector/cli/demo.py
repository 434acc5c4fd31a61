"""redirty demo: the main job on a built-in workload, compared with what it really wrote."""

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
    """Declares them."""
    parser.add_argument(
        "--rate", default="48MiB", help="how fast it writes (default: 48MiB, per second)"
    )
    parser.add_argument("-d", "--duration", default="4s", help="for how long (default: 4s)")
    parser.add_argument("-o", "--output", metavar="DIR", help="keep the recording")
    parser.epilog = (
        "A process with a hot area of 8 MiB (four writes of five), a warm one of 64 MiB (the rest, "
        "at random) and a cold one of 128 MiB is recorded. Exit code 0: the recorded pages are "
        "exactly those that it wrote."
    )


def run(options: argparse.Namespace) -> int:
    """Shows the main job."""
    rate, seconds = parse_rate(options.rate), parse_time(options.duration)
    if seconds < 1:
        raise UsageError(f"the demo takes a second at least: {options.duration}")
    from redirty.collector.linux.privileges import require_root

    require_root()
    with contextlib.ExitStack() as stack:
        if options.output:
            directory = Path(options.output)
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
    from redirty.collector.cli.progress import RecordProgressLine
    from redirty.collector.recording.options import RecordingOptions
    from redirty.collector.recording.session import Session
    from redirty.collector.target.targets import Pids

    with _workload(rate, seconds) as child:
        assert child.stdin is not None and child.stdout is not None
        places = json.loads(child.stdout.readline())
        print(
            f"redirty demo: process {child.pid} will write {show_bytes(rate)}/s for {seconds:g} s, "
            "recorded in rounds of 0.5 s",
            file=sys.stderr,
        )
        progress = RecordProgressLine(quiet=False)
        plan = RecordingOptions(Pids([child.pid]), directory, interval_s=0.5)
        session = Session(plan, progress.show, on_armed=lambda: _say(child.stdin, "go"))
        truth: dict[str, Any] = {}

        # The answer is longer than a pipe holds: read while recording, or the workload would wait.
        # It also ends the recording: not before the last write, however slow the machine is.
        def await_answer() -> None:
            truth.update(_answer(child.stdout))
            session.finish()

        reader = threading.Thread(target=await_answer, daemon=True)
        reader.start()
        try:
            session.run()
        finally:
            progress.end()
        if session.interrupted:
            return 130
        reader.join(timeout=10)
    return _compare(directory, places, truth, kept=kept)


def _say(pipe: Any, word: str) -> None:
    pipe.write(word + "\n")
    pipe.flush()


def _answer(pipe: Any) -> dict[str, Any]:
    line = pipe.readline()
    answer: dict[str, Any] = json.loads(line) if line else {}
    return answer


def _compare(
    directory: Path, places: dict[str, list[int]], truth: dict[str, Any], *, kept: bool
) -> int:
    from redirty.collector.analyze import load, summary

    if not truth:
        raise RedirtyError("the demo's workload ended before it told what it wrote")
    print(summary.as_text(summary.summarise(directory)))
    pages = load.load_pages(directory)
    print(f"the workload made {truth['writes']} writes; what was found against what it wrote:")
    wrong = 0
    for name, (start, size) in places.items():
        address = pages["address"]
        inside = pages[(address >= start) & (address < start + size)]
        found = {(int(a) - start) // 4096 for a in inside["address"]}
        wrote = set(truth["pages"][name])
        wrong += len(found ^ wrote)
        again = int(inside["rounds_redirtied"].sum())
        print(
            f"  {name:<5} {show_bytes(size):>10}: {len(found):>6} pages found, {len(wrote):>6} "
            f"written, {len(wrote - found)} missing, {len(found - wrote)} too many; "
            f"re-dirtied {again} times"
        )
    if wrong:
        raise RedirtyError(
            f"the demo failed: {wrong} pages differ from what was written; please report this"
        )
    print("every written page was found, and no other")
    if kept:
        print(f"the recording is in {directory}")
    return 0
