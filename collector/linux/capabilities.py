"""What root may do here: in a container or a service, root may be without the rights that tracing
takes, and the kernel's refusal then looks like that of a hardened kernel.

Sources: capabilities(7), include/linux/proc_ns.h.
"""

from __future__ import annotations

from pathlib import Path

TRACING = ("CAP_BPF", "CAP_PERFMON")
PTRACE = ("CAP_SYS_PTRACE",)

_NUMBERS = {"CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
_FIRST_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO


def effective(status: bytes) -> int:
    """The mask of effective capabilities in the text of a /proc/PID/status."""
    return int(status.partition(b"\nCapEff:")[2].split()[0], 16)


def missing(names: tuple[str, ...], mask: int) -> list[str]:
    """Those of some capabilities that are not in a mask. CAP_SYS_ADMIN has those of BPF in it."""
    if mask >> _NUMBERS["CAP_SYS_ADMIN"] & 1:
        names = tuple(name for name in names if name not in TRACING)
    return [name for name in names if not mask >> _NUMBERS[name] & 1]


def root_lacks(names: tuple[str, ...]) -> str | None:
    """What this process, which is root, needs and has not, and what to do, after a "this needs";
    None when it has all of it, or when that can't be told."""
    try:
        mask = effective(Path("/proc/self/status").read_bytes())
        namespace = Path("/proc/self/ns/user").stat().st_ino
    except (OSError, IndexError, ValueError):
        return None
    lacking = missing(names, mask)
    if lacking:
        return (
            f"{' and '.join(lacking)}, which root does not have here: give it that (docker: "
            "--cap-add, systemd: CapabilityBoundingSet=)"
        )
    if namespace != _FIRST_USER_NAMESPACE:
        return (
            "the host's root, and this is root of a user namespace only (a rootless container): "
            "run redirty on the host"
        )
    return None
