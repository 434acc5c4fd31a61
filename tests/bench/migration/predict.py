"""A guest recorded and its migration predicted, with redirty as a user runs it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.bench.migration.results import Load, Predicted, Settings
from tests.bench.migration.workloads import PAGE_BYTES
from tests.support.redirty_cli import ProgramError, run_redirty

_RECORD_S = 900.0
_PREDICT_S = 120.0


def record(pid: int, directory: Path, interval: str, rounds: int) -> None:
    """Record a machine for `rounds` rounds; the recording has ended when this returns.

    Raises: ProgramError.
    """
    done = run_redirty(
        "record",
        "-q",
        "--zeros",
        "--vm",
        pid,
        interval,
        rounds,
        "-o",
        directory,
        timeout_s=_RECORD_S,
    )
    if done.code:
        raise ProgramError(f"redirty record ended with {done.code}: {done.err.strip()}")


def written(directory: Path, seconds: float) -> float:
    """Return the distinct pages written within `seconds` of an arm, averaged over a recording."""
    curve = pd.read_csv(directory / "curve.csv")
    pages = curve.groupby("elapsed_s")["unique_dirty_pages"].sum()
    return (
        float(np.interp(seconds, pages.index.to_numpy(), pages.to_numpy())) if len(pages) else 0.0
    )


def ask(directory: Path, bandwidth: float, policy: str, *more: object) -> Any:
    """Return the answer of `redirty predict`. bandwidth: bytes per second.

    Raises: ProgramError.
    """
    words = ["predict", directory, "--bandwidth", f"{round(bandwidth)}B", "--policy", policy]
    done = run_redirty(*words, *more, "--json", timeout_s=_PREDICT_S)
    if done.code:
        reason = (done.lines or ["it printed nothing"])[-1]
        raise ProgramError(f"redirty predict ended with {done.code}: {reason}")
    return json.loads(done.out)


def predict(
    load: Load, directory: Path, bandwidth: float, settings: Settings, policy: str = "qemu"
) -> Predicted:
    """Predict a migration. Where redirty makes no prediction, its reason is in `problem`."""
    more = ["--downtime", f"{round(settings.downtime_s * 1000)}ms"]
    if policy != "qemu-postcopy":  # which is limited to the end
        last = load.last_bytes_per_s or settings.last_bandwidth
        more += ["--last-bandwidth", f"{round(last)}B"]
    stop_s = load.stop_s.get(policy)
    if stop_s:
        more += ["--stop-cost", f"{stop_s * 1000:.1f}ms"]
    try:
        answer = ask(directory, bandwidth, policy, *more)
    except ProgramError as e:
        return Predicted(load.workload, bandwidth, problem=str(e), policy=policy)
    return parse(load.workload, bandwidth, answer, policy)


def parse(
    workload: str, bandwidth: float, answer: Mapping[str, Any], policy: str = "qemu"
) -> Predicted:
    """Parse `redirty predict --json`. An end for which JSON has no number (null) never comes."""
    converges = bool(answer["converges"])
    low, high = (answer.get(end) or {} for end in ("low", "high"))
    return Predicted(
        workload,
        bandwidth,
        converges=converges,
        passes=len(answer["passes"]) if converges else None,
        total_s=_time(answer["total_s"]) if converges else math.inf,
        downtime_s=_time(answer["downtime_s"]) if converges else math.inf,
        transferred_bytes=answer["transferred_bytes"] if converges else None,
        low_total_s=_time(low["total_s"]) if "total_s" in low else None,
        high_total_s=_time(high["total_s"]) if "total_s" in high else None,
        low_downtime_s=_time(low["downtime_s"]) if "downtime_s" in low else None,
        high_downtime_s=_time(high["downtime_s"]) if "downtime_s" in high else None,
        min_bandwidth_bytes_per_s=answer.get("min_bandwidth_bytes_per_s"),
        basis=json.dumps(answer.get("basis", "")),
        policy=policy,
    )


def pages_after(directory: Path, seconds: float) -> tuple[float, float]:
    """Return the pages of a first pre-dump, and of one made `seconds` later.

    With one pass ahead of the last, at the bandwidth at which that takes `seconds`, the last pass is just what was
    written meanwhile.
    """
    everything = _bytes(ask(directory, 1 << 30, "criu:1"))[0]
    first, later = _bytes(ask(directory, everything / seconds, "criu:1"))
    return first / PAGE_BYTES, later / PAGE_BYTES


def _bytes(answer: Mapping[str, Any]) -> list[float]:
    return [float(step["bytes"]) for step in answer["passes"]]


def _time(value: float | None) -> float:
    return math.inf if value is None else float(value)
