"""A migration from a running guest into a waiting machine, at a given bandwidth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.bench.migration.guests import GuestError, Machine
from tests.bench.migration.qmp import QmpError
from tests.bench.migration.results import Real, Sample

_POLL_S = 0.1
_CANCEL_S = 30.0
_CHECKS = 2  # lines of the guest that must come on the other side
_ENDED = ("completed", "failed", "cancelled")
_DIRTY_RATE_S = 1
QEMU, AUTO_CONVERGE, POSTCOPY = "qemu", "qemu-auto-converge", "qemu-postcopy"
POLICIES = (QEMU, AUTO_CONVERGE, POSTCOPY)
# QEMU's capability for each policy
_CAPABILITIES = {AUTO_CONVERGE: "auto-converge", POSTCOPY: "postcopy-ram"}


@dataclass(frozen=True)
class Terms:
    """Terms of a migration. bandwidth: bytes per second. patience_s: after which it is cancelled. policy: one of
    POLICIES.
    """

    workload: str
    bandwidth: int
    downtime_s: float
    patience_s: float
    policy: str = QEMU


@dataclass
class Moved:
    """The result of a migration."""

    real: Real
    samples: list[Sample] = field(default_factory=list)


def dirty_rate(machine: Machine) -> float | None:
    """Return QEMU's own estimate in bytes per second, by sampling pages (its other methods need KVM)."""
    machine.qmp.ask("calc-dirty-rate", {"calc-time": _DIRTY_RATE_S, "mode": "page-sampling"})
    deadline = time.monotonic() + 30 * _DIRTY_RATE_S
    while time.monotonic() < deadline:
        answer = machine.qmp.ask("query-dirty-rate")
        if answer["status"] == "measured":
            return float(answer["dirty-rate"]) * (1 << 20)
        time.sleep(_POLL_S)
    return None


def move(source: Machine, destination: Machine, terms: Terms) -> Moved:
    """Migrate the guest, or cancel after the patience: then it continues where it was.

    Raises: GuestError when it fails, or the guest that arrived is unwell; QmpError.
    """
    source.qmp.ask(
        "migrate-set-parameters",
        {
            "max-bandwidth": terms.bandwidth,
            "max-postcopy-bandwidth": terms.bandwidth,
            "downtime-limit": round(terms.downtime_s * 1000),
        },
    )
    for machine in (source, destination):
        states = [
            {"capability": name, "state": policy == terms.policy}
            for policy, name in _CAPABILITIES.items()
        ]
        machine.qmp.ask("migrate-set-capabilities", {"capabilities": states})
    before = source.lines()
    samples: list[Sample] = []
    source.qmp.ask("migrate", {"uri": destination.uri})
    answer = _watched(source, terms, samples.append)
    if answer["status"] == "failed":
        raise GuestError(f"the migration failed: {answer.get('error-desc', 'no reason given')}")
    here = destination if answer["status"] == "completed" else source
    after = here.wait_lines(_CHECKS)[-1]
    if before and after["writes"] < before[-1]["writes"]:
        raise GuestError(f"the guest went back in time: {before[-1]}, then {after}")
    return Moved(real(terms, answer, samples, after), samples)


def _watched(source: Machine, terms: Terms, each: Callable[[Sample], None]) -> dict[str, Any]:
    """Return QEMU's last answer."""
    started = time.monotonic()
    last: dict[str, Any] = {}
    cancelled: float | None = None
    switched = terms.policy != POSTCOPY
    while True:
        answer: dict[str, Any] = source.qmp.ask("query-migrate")
        now = time.monotonic() - started
        if answer["status"] in _ENDED:
            # A cancelled one no longer reports what it had sent.
            return {**last, "status": "cancelled"} if answer["status"] == "cancelled" else answer
        if answer["status"] == "active" and "ram" in answer and cancelled is None:
            last = answer
            each(_sample(terms, now, answer))
            if not switched and answer["ram"]["dirty-sync-count"] > 1:  # the first pass has ended
                source.qmp.ask("migrate-start-postcopy")
                switched = True
        if now > terms.patience_s and cancelled is None:
            source.qmp.ask("migrate_cancel")
            cancelled = now
        if cancelled is not None and now > cancelled + _CANCEL_S:
            raise QmpError(f"the migration can't be cancelled: {answer['status']}")
        time.sleep(_POLL_S)


def _sample(terms: Terms, now: float, answer: dict[str, Any]) -> Sample:
    ram = answer["ram"]
    return Sample(
        terms.workload,
        terms.bandwidth,
        round(now, 3),
        ram["dirty-sync-count"],
        ram["remaining"],
        ram["transferred"],
        ram["dirty-pages-rate"],
        _seconds(answer.get("expected-downtime")),
        terms.policy,
        answer.get("cpu-throttle-percentage"),
    )


def real(
    terms: Terms, answer: dict[str, Any], samples: list[Sample], guest: dict[str, Any] | Any
) -> Real:
    """Build the row of a migration. expected-downtime: the median of QEMU's values after its first pass."""
    ram = answer["ram"]
    expected = [
        sample.expected_downtime_s
        for sample in samples
        if sample.syncs > 1 and sample.expected_downtime_s is not None
    ]
    late = guest.get("latest_ns")
    return Real(
        workload=terms.workload,
        bandwidth=terms.bandwidth,
        status=answer["status"],
        syncs=ram["dirty-sync-count"],
        total_s=answer["total-time"] / 1000,
        setup_s=answer.get("setup-time", 0) / 1000,
        downtime_s=_seconds(answer.get("downtime")),
        transferred_bytes=ram["transferred"],
        downtime_bytes=ram.get("downtime-bytes", 0),
        normal_pages=ram["normal"],
        zero_pages=ram["duplicate"],
        expected_downtime_s=statistics.median(expected) if expected else None,
        guest_writes=guest.get("writes"),
        guest_wrong=guest.get("wrong"),
        guest_late_s=None if late is None else late / 1e9,
        policy=terms.policy,
        throttle_percent=max((s.throttle_percent or 0 for s in samples), default=None),
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
