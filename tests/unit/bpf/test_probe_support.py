"""Preference among probes, by the preemption model that the kernel reports."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from redirty.collector.bpf import probe_support

DYNAMIC = "#1 SMP PREEMPT_DYNAMIC Debian 7.2.12-1 (2026-11-04)"


@pytest.mark.parametrize(
    ("version", "debugfs", "expected"),
    [
        ("#1 SMP Debian 5.10.1-1 (2026-08-29)", None, False),
        ("#1 SMP PREEMPT Thu Jan 1", None, True),
        ("#1 SMP PREEMPT_RT Debian 6.12", None, True),
        (DYNAMIC, "none (voluntary) full\n", False),
        (DYNAMIC, "(none) voluntary full lazy\n", False),
        (DYNAMIC, "none voluntary (full)\n", True),
        (DYNAMIC, "full (lazy)\n", True),
        (DYNAMIC, None, True),
    ],
)
def test_preference(
    version: str,
    debugfs: str | None,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    file = tmp_path / "preempt"
    if debugfs is not None:
        file.write_text(debugfs)
    monkeypatch.setattr(probe_support, "SCHED_PREEMPT", file)
    monkeypatch.setattr(platform, "version", lambda: version)
    assert probe_support.preempts() is expected
    first, *_ = probe_support.preference()
    assert first == ("kprobe" if expected else "fentry")
    assert sorted(probe_support.preference()) == sorted(probe_support.PROBES)
