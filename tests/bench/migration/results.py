"""The findings of a run, as rows of CSV files in its output folder, from which the tables can be made again."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints


@dataclass(frozen=True)
class Settings:
    """Settings of a whole run. patience_s: after which a migration is cancelled. last_bandwidth: of the last pass,
    which QEMU does not limit, in bytes per second.
    """

    downtime_s: float
    patience_s: float
    last_bandwidth: float
    interval: str
    rounds: int
    kernel: str
    qemu: str
    redirty: str


@dataclass(frozen=True)
class Load:
    """A guest as it was recorded.

    Attributes:
        zero_bytes: zero pages of its memory.
        critical_bytes_per_s: the critical bandwidth by W(t) of the recording.
        formula_bytes_per_s: the same by W(t) of the guest's program alone, where that is known.
        qemu_dirty_bytes_per_s: calc-dirty-rate by page sampling, None where QEMU reported none.
        qemu_stop_s, postcopy_stop_s: what a stop takes in addition to sending, of migrations that are not compared;
            None: not measured.
        last_bytes_per_s: of the last pass, which QEMU does not limit, of the same.
    """

    workload: str
    memory_bytes: int
    zero_bytes: int
    critical_bytes_per_s: float
    formula_bytes_per_s: float | None
    qemu_dirty_bytes_per_s: float | None
    qemu_stop_s: float | None = None
    postcopy_stop_s: float | None = None
    last_bytes_per_s: float | None = None

    @property
    def stop_s(self) -> dict[str, float | None]:
        """Seconds of a stop by policy."""
        pre = self.qemu_stop_s
        return {"qemu": pre, "qemu-auto-converge": pre, "qemu-postcopy": self.postcopy_stop_s}


@dataclass(frozen=True)
class Predicted:
    """A prediction. None for a value that is missing; `problem`: why there is no prediction at all. An end that
    never comes is infinite. policy: as `redirty predict` names it.
    """

    workload: str
    bandwidth: float
    converges: bool | None = None
    passes: int | None = None
    total_s: float | None = None
    downtime_s: float | None = None
    transferred_bytes: float | None = None
    low_total_s: float | None = None
    high_total_s: float | None = None
    low_downtime_s: float | None = None
    high_downtime_s: float | None = None
    min_bandwidth_bytes_per_s: float | None = None
    basis: str = ""
    problem: str = ""
    policy: str = "qemu"


@dataclass(frozen=True)
class Real:
    """A migration.

    Attributes:
        status: QEMU's last status.
        syncs: its dirty-sync-count.
        setup_s: before the first page went out, part of total_s.
        guest_wrong: what the guest found wrong with its memory afterwards.
        guest_late_s: the longest the guest was ever kept waiting, where it reports that.
        policy: how it was done, as `redirty predict` names it.
        throttle_percent: by which QEMU throttled the guest at last.
    """

    workload: str
    bandwidth: float
    status: str
    syncs: int
    total_s: float
    setup_s: float
    downtime_s: float | None
    transferred_bytes: int
    downtime_bytes: int
    normal_pages: int
    zero_pages: int
    expected_downtime_s: float | None
    guest_writes: int | None
    guest_wrong: int | None
    guest_late_s: float | None
    policy: str = "qemu"
    throttle_percent: int | None = None

    @property
    def converged(self) -> bool:
        """True if it came to its end."""
        return self.status == "completed"

    @property
    def passes(self) -> int:
        """The number of passes over dirty pages.

        QEMU syncs the dirty bitmap once before each, but twice before the last: first to see that they are few, and
        then with the guest stopped.
        """
        return self.syncs - self.converged


@dataclass(frozen=True)
class Sample:
    """A sample of a migration under way."""

    workload: str
    bandwidth: float
    time_s: float
    syncs: int
    remaining_bytes: int
    transferred_bytes: int
    dirty_pages_per_s: int
    expected_downtime_s: float | None
    policy: str = "qemu"
    throttle_percent: int | None = None


@dataclass(frozen=True)
class PreDump:
    """A pre-dump.

    Attributes:
        predicted_pages: None where there is no prediction.
        after_s: from the target's stop in the previous one to that in this one.
    """

    workload: str
    number: int
    after_s: float
    predicted_pages: float | None
    pages_written: int
    pages_scanned: int
    pages_skipped: int
    frozen_s: float
    took_s: float


Row = TypeVar("Row", Load, Predicted, Real, Sample, PreDump)
FILES: dict[type, str] = {
    Load: "workloads.csv",
    Predicted: "predictions.csv",
    Real: "migrations.csv",
    Sample: "samples.csv",
    PreDump: "predumps.csv",
}
SETTINGS = "settings.json"


def append(directory: Path, rows: Iterable[Load | Predicted | Real | Sample | PreDump]) -> None:
    """Append rows to their files, which have a header."""
    for row in rows:
        path = directory / FILES[type(row)]
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow([field.name for field in fields(row)])
            writer.writerow(["" if value is None else value for value in asdict(row).values()])


def read(directory: Path, kind: type[Row]) -> list[Row]:
    """Return the rows of a kind; none where there is no such file."""
    path = directory / FILES[kind]
    if not path.exists():
        return []
    hints = get_type_hints(kind)
    with path.open(newline="", encoding="utf-8") as file:
        return [
            kind(**{name: _value(text, hints[name]) for name, text in row.items()})
            for row in csv.DictReader(file)
        ]


def write_settings(directory: Path, settings: Settings) -> None:
    """Write the settings, once, at the start."""
    (directory / SETTINGS).write_text(json.dumps(asdict(settings), indent=2) + "\n")


def read_settings(directory: Path) -> Settings:
    """Read the settings.

    Raises: OSError where there are none.
    """
    return Settings(**json.loads((directory / SETTINGS).read_text()))


def _value(text: str, hint: Any) -> Any:
    if hint is str:
        return text
    if text == "":
        return None
    kinds = get_args(hint) or (hint,)
    if bool in kinds:
        return text == "True"
    return int(text) if int in kinds else float(text)
