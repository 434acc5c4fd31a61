"""redirty as a user runs it: run_redirty() waits for its end, start_redirty() does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import PATIENCE_S
from tests.tiers import require

# Goals of a mirror that converges on any machine, and beside any load.
PATIENT_GOALS = ("--downtime", "1h", "--passes", "2")
REDIRTY = Path(sys.executable).with_name("redirty")


class ProgramError(RuntimeError):
    """A program failed to do what a test needs; the message ends with its output."""


@dataclass(frozen=True)
class Done:
    """The result of a run of redirty. code: minus the signal when one ended it."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines on stderr."""
        return self.err.splitlines()


def start_redirty(
    *words: object, env: Mapping[str, str] | None = None, wrapper: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start redirty in a process group of its own, so that a test may kill the group.

    Args:
        words: its command line.
        env: added to the environment.
        wrapper: a command that runs it.
    """
    require(REDIRTY.exists(), f"{REDIRTY} is not installed: run make setup")
    return subprocess.Popen(
        [*wrapper, str(REDIRTY), *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | (dict(env) if env else {}),
    )


def finish(process: subprocess.Popen[str], timeout_s: float = PATIENCE_S) -> Done:
    """Wait for redirty's end.

    Raises: ProgramError when it does not end within `timeout_s`; it is killed then.
    """
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        _, err = process.communicate()
        raise ProgramError(f"redirty took more than {timeout_s:g} s: {err}") from None
    return Done(process.returncode, out, err)


def run_redirty(
    *words: object,
    timeout_s: float = PATIENCE_S,
    env: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
) -> Done:
    """Run redirty to its end; see start_redirty()."""
    return finish(start_redirty(*words, env=env, wrapper=wrapper), timeout_s)


def processes_with(mark: str) -> set[int]:
    """Return the PIDs of all processes with the mark in the environment they were started with."""
    found = set()
    pattern = re.compile(rb"(?:^|\0)" + re.escape(mark.encode()) + rb"(?:\0|$)")
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                environment = Path("/proc", entry.name, "environ").read_bytes()
            except OSError:
                continue  # ended meanwhile, or the kernel does not show it
            if pattern.search(environment):
                found.add(int(entry.name))
    return found
