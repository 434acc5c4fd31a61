"""Whose page tables are not moved at all: said before anything is touched."""

from __future__ import annotations

from pathlib import Path

from redirty.collector.errors import RedirtyError
from redirty.collector.linux.numa import NumaNodes, parse_list
from redirty.collector.linux.process import open_files, sharing_memory

# Descriptors through which the kernel works in a process's memory on its own, threads stopped or not.
_KERNEL_HELPERS = {"anon_inode:[io_uring]": "io_uring", "/dev/vhost-": "vhost (/dev/vhost-*)"}


def require_node(nodes: NumaNodes, node: int) -> None:
    """Errors: RedirtyError when page tables can't be moved there, from anywhere."""
    listed = ", ".join(map(str, nodes.with_memory))
    if node not in nodes.online:
        raise RedirtyError(f"there is no node {node} here: nodes with memory are {listed}")
    if node not in nodes.with_memory:
        raise RedirtyError(f"node {node} has no memory: nodes with memory are {listed}")
    if len(nodes.with_memory) == 1:
        raise RedirtyError(
            f"this machine has one node only ({listed}): its page tables are where they can be"
        )


def require_movable(pid: int, node: int) -> None:
    """Errors: RedirtyError when nothing of this process may be moved."""
    tracer = _status(pid, "TracerPid")
    if tracer not in ("", "0"):
        raise RedirtyError(
            f"cannot relocate page tables of process {pid}: it is being debugged by process {tracer}"
        )
    allowed = parse_list(_status(pid, "Mems_allowed_list"))
    if allowed and node not in allowed:
        raise RedirtyError(
            f"process {pid} may not have memory on node {node}: its cpuset (Mems_allowed_list) has "
            f"{', '.join(map(str, allowed))}"
        )
    others = sharing_memory(pid)
    if others:
        raise RedirtyError(
            f"process {others[0]} shares all memory of process {pid} (CLONE_VM) and would run on "
            "while it is moved: try again when that has ended"
        )

    for path in open_files(pid):
        for used, what in _KERNEL_HELPERS.items():
            if path.startswith(used):
                raise RedirtyError(
                    f"process {pid} uses {what}: the kernel would go on using its memory while that is "
                    "away, so its page tables can't be moved"
                )


def _status(pid: int, name: str) -> str:
    """A field of its status; empty when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return ""
    return text.partition(f"\n{name}:")[2].partition("\n")[0].strip()
