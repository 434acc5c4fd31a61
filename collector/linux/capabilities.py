"""Capabilities that root may lack.

In a container or a service, root may be without the capabilities that tracing needs, and the
kernel's refusal then looks like that of a hardened kernel.

Sources: capabilities(7), include/linux/proc_ns.h.
"""

from __future__ import annotations

from pathlib import Path

from redirty.collector.linux import procfs

TRACING = ("CAP_BPF", "CAP_PERFMON")
PTRACE = ("CAP_SYS_PTRACE",)

_NUMBERS = {"CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
_FIRST_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO


def effective(status: bytes) -> int:
    """Return the mask of effective capabilities from the text of a /proc/PID/status."""
    return int(procfs.find_field(status, "CapEff"), 16)


def missing(names: tuple[str, ...], mask: int) -> list[str]:
    """Return the capabilities that a mask lacks; CAP_SYS_ADMIN includes those for BPF."""
    if mask >> _NUMBERS["CAP_SYS_ADMIN"] & 1:
        names = tuple(name for name in names if name not in TRACING)
    return [name for name in names if not mask >> _NUMBERS[name] & 1]


def root_lacks(names: tuple[str, ...]) -> str | None:
    """Say which of the capabilities this process, which is root, lacks.

    Returns:
        A phrase that continues "this needs", with what to do; None if the process has all of them, or
        if its capabilities are unknown.
    """
    try:
        mask = effective(Path("/proc/self/status").read_bytes())
        namespace = Path("/proc/self/ns/user").stat().st_ino
    except (OSError, ValueError):
        return None
    lacking = missing(names, mask)
    if lacking:
        return (
            f"{' and '.join(lacking)}, which root does not have here: add it (docker: "
            "--cap-add, systemd: CapabilityBoundingSet=)"
        )
    if namespace != _FIRST_USER_NAMESPACE:
        return (
            "the host's root, and this is root of a user namespace only (a rootless container): "
            "run redirty on the host"
        )
    return None
