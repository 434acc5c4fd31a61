"""The same question asked with the tools one would use instead of redirty."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.figures import median, of_pairs
from tests.bench.results import Row, not_run
from tests.bench.results import of_pairs as row_of_pairs
from tests.bench.target import Target, pinned
from tests.support.processes import ManagedProcess

_SWEEPS = 9
_MAP_KEYS = 1 << 18
_BCC = Path(__file__).with_name("bcc_callback.py")
_SYSTEM_PYTHON = "/usr/bin/python3"


@dataclass(frozen=True)
class Rival:
    """A command that traces {pid}'s faults until SIGINT. Its output is checked: a tool that recorded nothing has no
    cost worth a row.
    """

    name: str
    words: Sequence[str]
    package: str
    ready_s: float = 1.5
    environment: dict[str, str] = field(default_factory=dict)


def _all() -> tuple[Rival, ...]:
    one_liner = "/pid == {pid}/ {{ @[%s >> 12] = count(); }}"
    keys = {"BPFTRACE_MAX_MAP_KEYS": str(_MAP_KEYS), "BPFTRACE_MAP_KEYS_MAX": str(_MAP_KEYS)}
    return (
        Rival(
            "bpftrace, raw tracepoint, by page",
            ("bpftrace", "-e", "rawtracepoint:page_fault_user " + one_liner % "arg0"),
            "bpftrace",
            3.0,
            keys,
        ),
        Rival(
            "bpftrace, tracepoint, by page",
            ("bpftrace", "-e", "t:exceptions:page_fault_user " + one_liner % "args->address"),
            "bpftrace",
            3.0,
            keys,
        ),
        Rival(
            "BCC, perf buffer, callback an event",
            (_SYSTEM_PYTHON, str(_BCC), "perf", "{pid}"),
            "python3-bpfcc",
        ),
        Rival(
            "BCC, ring buffer, callback an event",
            (_SYSTEM_PYTHON, str(_BCC), "ring", "{pid}"),
            "python3-bpfcc",
        ),
        Rival(
            "perf record -e exceptions:page_fault_user",
            ("perf", "record", "-e", "exceptions:page_fault_user", "-p", "{pid}", "-o", "{out}"),
            "linux-perf",
        ),
        Rival(
            "perf record -e page-faults -c 1 -d",
            ("perf", "record", "-e", "page-faults", "-c", "1", "-d", "-p", "{pid}", "-o", "{out}"),
            "linux-perf",
        ),
    )


def rows(target: Target, cpu: int, quick: bool) -> Iterator[Row]:
    """Measure each rival."""
    for rival in _all():
        yield _row(rival, target, cpu, 2 if quick else 6)


def _row(rival: Rival, target: Target, cpu: int, count: int) -> Row:
    name = f"instead: {rival.name} / armed only"
    if not shutil.which(rival.words[0]):
        return not_run(name, f"needs {rival.words[0]} (Debian package {rival.package})")
    measured: list[float] = []
    floors: list[float] = []
    output = ""
    for _ in range(count):
        with tempfile.TemporaryDirectory() as d, _running(rival, target, cpu, d) as run:
            if run.alive:
                target.first_writes()
                measured.append(median([target.first_writes() for _ in range(_SWEEPS)]))
            output = run.stop()
            size = sum(f.stat().st_size for f in Path(d).iterdir())
        if len(measured) == len(floors) or size < 4096:
            reason = output.strip().splitlines()
            return not_run(name, reason[-1][:90] if reason else "it recorded no fault")
        floors.append(median([target.first_writes() for _ in range(_SWEEPS)]))
    return row_of_pairs(name, of_pairs(measured, floors), "ns")


class _Run(ManagedProcess):
    def __init__(self, process: subprocess.Popen[bytes], stderr: Path) -> None:
        super().__init__(process, stop=signal.SIGINT, grace_s=60)
        self._stderr = stderr

    def stop(self) -> str:
        """End the tool as a user would; return what it printed on stderr."""
        self.close()
        text = self._stderr.read_text(errors="replace")
        self._stderr.unlink()  # what is left in the directory is what it recorded
        return text


@contextlib.contextmanager
def _running(rival: Rival, target: Target, cpu: int, directory: str) -> Iterator[_Run]:
    out, stderr = Path(directory) / "out", Path(directory) / "stderr"
    words = [w.format(pid=target.sweep.pid, out=out) for w in rival.words]
    environment = {**os.environ, **rival.environment}
    environment.pop("PYTHONPATH", None)
    stdout = Path(directory) / "stdout"
    with stdout.open("wb") as o, stderr.open("wb") as e:
        process = subprocess.Popen(
            [*pinned(cpu), *words], stdout=o, stderr=e, stdin=subprocess.DEVNULL, env=environment
        )
    run = _Run(process, stderr)
    try:
        # None of them reports when it is attached.
        deadline = time.monotonic() + rival.ready_s
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        yield run
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
