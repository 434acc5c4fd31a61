"""Privileges of this process: root, and its PID namespace."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from redirty.collector.errors import RedirtyError
from redirty.collector.linux import capabilities

MIN_DESCRIPTORS = 64
"""Fewer do not suffice to load BPF programs and to follow one process."""
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h


def in_first_pid_namespace() -> bool:
    """Return whether PIDs in this namespace are those that BPF sees."""
    return Path("/proc/self/ns/pid").stat().st_ino == _FIRST_PID_NAMESPACE


def pid_namespace() -> str | None:
    """Return None if PIDs in this namespace are those that BPF sees, else the reason."""
    if in_first_pid_namespace():
        return None
    return (
        "this is a container's PID namespace, where BPF sees other PIDs: run redirty on "
        "the host (docker: --pid=host)"
    )


def require_root() -> None:
    """Check that this process may trace.

    Raises:
        RedirtyError: The process is not root, or lacks the capabilities that tracing needs, or is
            root of a container only, or may have too few descriptors.
    """
    if os.geteuid() != 0:
        raise RedirtyError("tracing needs root (BPF, and other processes' memory): run with sudo")
    lacking = capabilities.root_lacks(capabilities.TRACING)
    if lacking:
        raise RedirtyError(f"tracing needs {lacking}")
    reason = pid_namespace()
    if reason:
        raise RedirtyError(reason)
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)  # the other one is raised to it
    if limit < MIN_DESCRIPTORS:
        raise RedirtyError(
            f"tracing needs {MIN_DESCRIPTORS} descriptors and more, but the limit is {limit}: raise it (ulimit -n)"
        )
