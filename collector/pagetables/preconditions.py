"""Preconditions of moving page tables, checked before the target is touched."""

from __future__ import annotations

from redirty.collector.errors import RedirtyError
from redirty.collector.linux import procfs
from redirty.collector.linux.kcmp import sharing_memory
from redirty.collector.linux.numa import NumaNodes, parse_list
from redirty.collector.linux.open_files import open_files

# Descriptors through which the kernel uses a process's memory, whether its threads are stopped or not.
_KERNEL_USERS = {"anon_inode:[io_uring]": "io_uring", "/dev/vhost-": "vhost (/dev/vhost-*)"}


def require_node(nodes: NumaNodes, node: int) -> None:
    """Check that page tables can be moved to a node.

    Raises:
        RedirtyError: No process's page tables can be moved there.
    """
    listed = ", ".join(map(str, nodes.with_memory))
    if node not in nodes.online:
        raise RedirtyError(f"--to-node {node}: no such node; nodes with memory are {listed}")
    if node not in nodes.with_memory:
        raise RedirtyError(
            f"--to-node {node}: node {node} has no memory; nodes with memory are {listed}"
        )
    if len(nodes.with_memory) == 1:
        raise RedirtyError(
            f"this machine has only one node ({listed}): there is no other node to move page tables to"
        )


def require_movable(pid: int, node: int) -> None:
    """Check that page tables of a process may be moved to a node.

    Raises:
        RedirtyError: They may not be moved.
    """
    tracer = procfs.status_field(pid, "TracerPid")
    if tracer not in ("", "0"):
        raise RedirtyError(
            f"cannot relocate page tables of process {pid}: already traced by process {tracer}"
        )
    allowed = parse_list(procfs.status_field(pid, "Mems_allowed_list"))
    if allowed and node not in allowed:
        raise RedirtyError(
            f"process {pid} may not have memory on node {node}: its cpuset (Mems_allowed_list) allows "
            f"{', '.join(map(str, allowed))}"
        )
    others = sharing_memory(pid)
    if others:
        raise RedirtyError(
            f"process {others[0]} shares all memory of process {pid} (CLONE_VM) and would keep running "
            "while it is moved: try again when that process has ended"
        )
    for path in open_files(pid).values():
        for used, what in _KERNEL_USERS.items():
            if path.startswith(used):
                raise RedirtyError(
                    f"process {pid} uses {what}: the kernel would continue to use its memory while that is "
                    "away, so its page tables cannot be moved"
                )
