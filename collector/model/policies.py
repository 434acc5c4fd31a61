"""Policies by the names that users write."""

from __future__ import annotations

from redirty.collector.errors import UsageError
from redirty.collector.model.hypervisors import (
    MULTIFD_PAGE_BYTES,
    CloudHypervisor,
    Postcopy,
    Qemu,
)
from redirty.collector.model.policy import DEFAULT_DOWNTIME_S, Fixed, Goal, Policy, Xen
from redirty.collector.model.throttle import Throttle
from redirty.collector.units import parse_rate

NAMES = (
    "redirty, qemu, qemu-auto-converge, qemu-postcopy, qemu-multifd, qemu-dirty-limit:RATE, "
    "cloud-hypervisor, cloud-hypervisor:force, criu:N, criu-page-server:N, passes:N or xen"
)
_COUNTED = ("criu", "criu-page-server", "passes")


def policy_of(
    text: str,
    downtime_s: float | None = None,
    boundary_s: float = 0.0,
    stop_s: float | None = None,
) -> Policy:
    """Return a policy by its name.

    Args:
        text: one of NAMES.
        downtime_s: the goal; without it 0.3 s where the policy needs one.
        boundary_s: see Policy; used for redirty's own only, as it was not measured for other tools.
        stop_s: the fixed part of a stop; None: a boundary for redirty's own, nothing for others.

    Raises: UsageError for an unknown name.
    """
    goal = DEFAULT_DOWNTIME_S if downtime_s is None else downtime_s
    stop = stop_s or 0.0
    kind, colon, rest = text.partition(":")
    if kind in _COUNTED:
        return Fixed(_passes(kind, rest), kind, downtime_s, stop_s=stop)
    if kind == "qemu-dirty-limit" and colon:
        limited = Throttle(limit=parse_rate(rest, f"--policy {kind}"))
        return Qemu(goal, stop_s=stop, name=text, throttle=limited)
    named: dict[str, Policy] = {
        "redirty": Goal(goal, boundary_s, stop_cost_s=stop_s),
        "qemu": Qemu(goal, stop_s=stop),
        "qemu-auto-converge": Qemu(goal, stop_s=stop, name=text, throttle=Throttle()),
        "qemu-multifd": Qemu(goal, MULTIFD_PAGE_BYTES, MULTIFD_PAGE_BYTES, stop_s=stop, name=text),
        "qemu-postcopy": Postcopy(goal, stop_s=stop),
        "cloud-hypervisor": CloudHypervisor(goal, stop_s=stop),
        "cloud-hypervisor:force": CloudHypervisor(goal, stop_s=stop, name=text, forced=True),
        "xen": Xen(downtime_s=downtime_s, stop_s=stop),
    }
    if text not in named:
        raise UsageError(f"unknown policy {text!r}: choose {NAMES}")
    return named[text]


def _passes(kind: str, number: str) -> int:
    """Return the number of passes of a policy. Raises: UsageError when it is none."""
    # Python refuses to convert more than 4,300 digits.
    digits = number.isascii() and number.isdigit() and len(number) < 4000
    if not (digits and 1 <= int(number) <= 10_000):
        raise UsageError(
            f"--policy {kind} needs a number of passes between 1 and 10000, like {kind}:3, got {number[:100]!r}"
        )
    return int(number)
