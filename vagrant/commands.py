"""Runs the commands that build and check the box, and measures the steps."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
BUILD = HERE / "build"
TAIL_LINES = 15


class StepError(RuntimeError):
    """A step failed; the message says which one, and what to do."""


def run(argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
    """Run a command; its output is shown only if it fails.

    Raises:
        StepError: the command is not installed, or failed.
    """
    paths = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            argv,
            cwd=PROJECT,
            env={**os.environ, "PATH": paths, "LC_ALL": "C", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise StepError(f"{argv[0]} is not installed: run sudo .ci/setup vagrant") from error
    if done.returncode != 0:
        line = " ".join(str(word) for word in argv[:6])
        tail = "\n  ".join(done.stdout.splitlines()[-TAIL_LINES:])
        raise StepError(f"{line} ... failed, exit code {done.returncode}:\n  {tail}")


def show(argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
    """Run a command and show its output as it comes, without what it overwrites itself.

    Raises:
        StepError: the command failed.
    """
    line = " ".join(str(word) for word in argv[:4])
    with subprocess.Popen(
        argv,
        cwd=PROJECT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        for text in process.stdout:
            print(last_written(text.decode(errors="replace")), flush=True)
    if process.returncode != 0:
        raise StepError(f"{line}: exit code {process.returncode}")


def last_written(line: str) -> str:
    """Return what a terminal finally shows of a line: progress bars are overwritten."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line.rstrip().rpartition("\r")[2])


class Steps:
    """Announces steps and records their durations.

    Attributes:
        taken: name, seconds and success of each step.
    """

    def __init__(self) -> None:
        self.taken: list[tuple[str, float, bool]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        print(f"redirty: {name} ...", flush=True)
        start = time.monotonic()
        succeeded = False
        try:
            yield
            succeeded = True
        finally:
            seconds = time.monotonic() - start
            self.taken.append((name, seconds, succeeded))
            verdict = "done" if succeeded else "FAILED"
            print(f"redirty: {name}: {verdict} after {seconds:.1f} s", flush=True)

    def table(self) -> str:
        """Return one line per step, in order, and the total."""
        lines = [f"{s:9.1f} s  {name}{'' if ok else '  FAILED'}" for name, s, ok in self.taken]
        total = sum(seconds for _, seconds, _ in self.taken)
        return "\n".join([*lines, f"{total:9.1f} s  total"])
