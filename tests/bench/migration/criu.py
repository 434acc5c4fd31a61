"""CRIU's pre-dumps of a workload in an emulated machine, next to redirty's predictions for them."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench.migration.predict import pages_after
from tests.bench.migration.results import FILES, PreDump, append, read
from tests.bench.migration.table import PAGES_GOAL, middle, page_error
from tests.bench.migration.workloads import WorkloadMissingError
from tests.support.redirty_cli import ProgramError
from tests.vm import machine
from tests.workloads.driver import build
from tests.workloads.timed import PATTERNS

KERNEL = "6.12"  # this machine's own may have no soft-dirty bits, which CRIU needs
FOLDER = "predumps"
GAPS_S = (4, 8, 12, 4, 8, 12)
QUICK_GAPS_S = (4, 6)
_PYTHON = machine.PROJECT / ".venv/bin/python"
_TIMEOUT_S = 3600.0
_BEYOND_S = 0.3  # see INTERVAL of __main__.py


def measure(out: Path, *, quick: bool) -> None:
    """Record and pre-dump all patterns.

    Raises: WorkloadMissingError, VmError, KernelError.
    """
    if shutil.which("criu", path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
        raise WorkloadMissingError("criu is not installed (Debian package criu)")
    build()  # here: the guest sees the programs, and a compiler would take too long in it
    shared = out / FOLDER
    shared.mkdir()
    gaps = QUICK_GAPS_S if quick else GAPS_S
    names = PATTERNS[:1] if quick else PATTERNS
    rounds = 2 if quick else 4
    with machine.Vm(KERNEL, shares=[shared]) as vm:
        words = [str(shared), f"{max(gaps) + _BEYOND_S}s", str(rounds), ",".join(map(str, gaps))]
        done = vm.run(
            [str(_PYTHON), "-m", "tests.bench.migration.guest_criu", *words, ",".join(names)],
            env={"PYTHONPATH": str(machine.PROJECT)},
            timeout_s=_TIMEOUT_S,
        )
    if done.exit_code:
        raise machine.VmError(f"the guest failed: {done.stderr.decode()[-1500:]}")
    append(out, predicted(shared, [row(answer) for answer in json.loads(done.stdout)]))


def row(answer: dict[str, Any]) -> PreDump:
    """Build the row of one pre-dump from the guest's answer."""
    return PreDump(
        workload=answer["workload"],
        number=answer["number"],
        after_s=answer["after_s"],
        predicted_pages=None,
        pages_written=answer["pages_written"],
        pages_scanned=answer["pages_scanned"],
        pages_skipped=answer["pages_skipped"],
        frozen_s=answer["frozen_s"],
        took_s=answer["took_s"],
    )


def predicted(recordings: Path, rows: Sequence[PreDump]) -> list[PreDump]:
    """Add the predictions to the rows; leave them empty where redirty makes none."""
    found = []
    for dump in rows:
        try:
            first, later = pages_after(recordings / dump.workload, dump.after_s or 1.0)
        except (ProgramError, ValueError):
            found.append(replace(dump, predicted_pages=None))
        else:
            found.append(replace(dump, predicted_pages=later if dump.number else first))
    return found


def predict_again(out: Path) -> None:
    """Make predictions anew from the recordings in an output folder.

    Raises: OSError.
    """
    rows = read(out, PreDump)
    if rows:
        (out / FILES[PreDump]).unlink()
        append(out, predicted(out / FOLDER, rows))


def totals(rows: Sequence[PreDump]) -> str:
    """Return the median error. The first pre-dump is everything present, not what was written again."""
    errors = [page_error(row) for row in rows if row.number]
    there = [abs(error) for error in errors if error is not None]
    error = statistics.median(there) if there else None
    return (
        f"{len(rows)} pre-dumps, {len(there)} after a first one predicted; median error of their "
        f"pages {middle(error)} (goal {PAGES_GOAL:.0%})\n"
    )
