"""Results of the traps: collected from a run of the tests, merged over runs, shown as a table.

A run is one machine with one kind of probe and one arming method. A trap fails in it when one of its tests
fails, passes when one passes and none fails, and is not applicable when all are.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.traps.common import NOT_APPLICABLE

TRAPS = range(1, 37)
RESULTS = "REDIRTY_TRAP_RESULTS"
"""Environment: the file that a run's outcomes are written to, as JSON."""
WAY = "REDIRTY_TRAP_WAY"
"""Environment variable: the run's name for its kind of probe and arming method."""

_NAME = re.compile(r"tests/traps/\w+\.py::test_(\d\d)_")
_REASON_LENGTH = 160


@dataclass(frozen=True)
class Outcome:
    """The result of a test. outcome: pass, fail, skip (the machine lacks something) or n/a."""

    trap: int
    test: str
    outcome: str
    reason: str = ""


@dataclass(frozen=True)
class Run:
    """All tests of one machine with one kind of probe and one arming method."""

    kernel: str
    way: str
    outcomes: tuple[Outcome, ...]

    @classmethod
    def from_json(cls, text: str) -> Run:
        """Parse what as_json() returned."""
        fields = json.loads(text)
        return cls(fields["kernel"], fields["way"], tuple(Outcome(**o) for o in fields["outcomes"]))

    def as_json(self) -> str:
        """Return the run as JSON text."""
        return json.dumps(asdict(self))

    def of(self, trap: int) -> str:
        """Return the result of a trap; empty when none of its tests ran."""
        found = {o.outcome for o in self.outcomes if o.trap == trap}
        return next((word for word in ("fail", "pass", "skip", "n/a") if word in found), "")


def outcome_of(nodeid: str, report: pytest.TestReport) -> Outcome | None:
    """Return the result that one phase of a test gives its trap; None when it gives none."""
    match = _NAME.match(nodeid)
    if match is None or (report.passed and report.when != "call"):
        return None
    trap, test = int(match[1]), nodeid.rpartition("::")[2]
    if report.passed:
        return Outcome(trap, test, "pass")
    if report.skipped:
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = text.removeprefix("Skipped: ")
        if reason.startswith(NOT_APPLICABLE):
            return Outcome(trap, test, "n/a", reason.removeprefix(NOT_APPLICABLE))
        return Outcome(trap, test, "skip", reason)
    crash = getattr(report.longrepr, "reprcrash", None)
    reason = crash.message if crash is not None else report.longreprtext
    return Outcome(trap, test, "fail", reason.strip().partition("\n")[0][:_REASON_LENGTH])


class Plugin:
    """Collects the outcomes of a pytest run; prints them and writes them to a file at its end."""

    def __init__(self) -> None:
        self._outcomes: dict[str, Outcome] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = outcome_of(report.nodeid, report)
        if found is not None:
            self._outcomes[report.nodeid] = found  # a failing end replaces a passing call

    def _run(self) -> Run:
        way = os.environ.get(WAY, "auto")
        return Run(platform.release(), way, tuple(self._outcomes.values()))

    def pytest_sessionfinish(self) -> None:
        path = os.environ.get(RESULTS)
        if path:
            Path(path).write_text(self._run().as_json())

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._outcomes and RESULTS not in os.environ:
            terminalreporter.section("traps of dirty tracking")
            terminalreporter.write(render([self._run()]))


def pick(runs: Sequence[Run], trap: int) -> str:
    """Summarize a trap on one kernel over its runs: `pass 3/4` is 3 passed, 1 n/a."""
    found = [word for word in (run.of(trap) for run in runs) if word]
    for word in ("fail", "skip"):
        if word in found:
            return word
    passed = found.count("pass")
    if not found or not passed:
        return "n/a" if found else ""
    return "pass" if passed == len(found) else f"pass {passed}/{len(found)}"


def notes(runs: Iterable[Run]) -> list[str]:
    """Return a line for each trap and reason that is not a pass, with where it occurred."""
    found: dict[tuple[str, int, str], dict[str, list[str]]] = {}
    for run in runs:
        for o in run.outcomes:
            if o.outcome != "pass":
                where = found.setdefault((o.outcome, o.trap, o.reason), {})
                ways = where.setdefault(run.kernel, [])
                if run.way not in ways:
                    ways.append(run.way)
    lines = []
    for (outcome, trap, reason), where in sorted(found.items()):
        places = "; ".join(f"{kernel} ({', '.join(ways)})" for kernel, ways in where.items())
        lines.append(f"{outcome:4}  {trap:2}  {reason}  [{places}]")
    return lines


def render(runs: Sequence[Run]) -> str:
    """Return the table kernel x trap with its notes, as lines of text."""
    kernels = list(dict.fromkeys(run.kernel for run in runs))
    by_kernel = {kernel: [r for r in runs if r.kernel == kernel] for kernel in kernels}
    width = max([8, *map(len, kernels)])
    lines = ["trap  " + "  ".join(f"{kernel:<{width}}" for kernel in kernels)]
    for trap in TRAPS:
        cells = [pick(by_kernel[kernel], trap) for kernel in kernels]
        if any(cells):
            lines.append(f"{trap:4}  " + "  ".join(f"{cell:<{width}}" for cell in cells))
    untested = [str(trap) for trap in TRAPS if not any(pick(by_kernel[k], trap) for k in kernels)]
    if untested:
        lines.append(f"no test of: {', '.join(untested)}")
    for kernel in kernels:
        ways = ", ".join(run.way for run in by_kernel[kernel])
        lines.append(f"{kernel}: {ways}")
    return "\n".join(line.rstrip() for line in [*lines, *notes(runs)]) + "\n"


def failed(runs: Iterable[Run]) -> list[str]:
    """Return a line for each test that failed, or could not run because something was missing."""
    return [
        f"{run.kernel} {run.way} {o.test}: {o.reason}"
        for run in runs
        for o in run.outcomes
        if o.outcome in ("fail", "skip")
    ]
