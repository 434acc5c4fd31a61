"""Commands that the box takes to build and try, and how long each step took."""

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
    """A step cannot be done; the message says what, and what to do."""


def run(argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
    """Runs a command; its output is shown only when it fails.

    Raises StepError.
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
    """Runs a command that shows its output as it comes, without what it then writes over.

    Raises StepError.
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
    """What is to be seen of a line on a terminal at its end: bars of progress are gone."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line.rstrip().rpartition("\r")[2])


class Steps:
    """Says what is being done, and keeps how long each step took, in seconds."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, float, bool]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        print(f"redirty: {name} ...", flush=True)
        begin = time.monotonic()
        good = False
        try:
            yield
            good = True
        finally:
            seconds = time.monotonic() - begin
            self.taken.append((name, seconds, good))
            verdict = "done" if good else "FAILED"
            print(f"redirty: {name}: {verdict} after {seconds:.1f} s", flush=True)

    def table(self) -> str:
        """One line a step, in order, and their sum."""
        lines = [f"{s:9.1f} s  {name}{'' if ok else '  FAILED'}" for name, s, ok in self.taken]
        total = sum(seconds for _, seconds, _ in self.taken)
        return "\n".join([*lines, f"{total:9.1f} s  in all"])
