"""Check what this process may do: root, its pid namespace."""

from __future__ import annotations

import os

from redirty.collector.errors import RedirtyError
from redirty.collector.linux import capabilities
from redirty.collector.linux.process import in_first_pid_namespace


def pid_namespace() -> str | None:
    """None when process numbers here are those that BPF sees, else the reason."""
    if in_first_pid_namespace():
        return None
    return (
        "this is a container's pid namespace, where BPF sees other process numbers: run redirty on "
        "the host (docker: --pid=host)"
    )


def require_root() -> None:
    """Errors: RedirtyError when we are not root, or root without the rights that tracing takes,
    or root of a container only."""
    if os.geteuid() != 0:
        raise RedirtyError("tracing needs root (BPF, and other processes' memory): run with sudo")
    lacking = capabilities.root_lacks(capabilities.TRACING)
    if lacking:
        raise RedirtyError(f"tracing needs {lacking}")
    reason = pid_namespace()
    if reason:
        raise RedirtyError(reason)
