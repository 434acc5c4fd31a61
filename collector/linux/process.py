"""Processes: identity, liveness, and the right to trace them."""

from __future__ import annotations

import os
import select
from pathlib import Path

from redirty.collector.errors import (
    NoProcessError,
    RedirtyError,
    TargetEndedError,
    require_resources,
)
from redirty.collector.linux import capabilities, procfs


class Process:
    """A process referred to by a pidfd, so that a later process with the same PID is never mistaken for it.

    Attributes:
        pid: Its PID.
        comm: Its name, as /proc/PID/status escapes it.
        cmdline: Its arguments, without empty ones.

    Raises:
        RedirtyError: There is no such process, or the PID is that of a thread, a kernel thread or a protected process.
        TargetEndedError: The process has just ended.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except (ProcessLookupError, OverflowError):
            raise NoProcessError(f"no process {pid}: see 'ps -e' for those that run") from None
        except OSError as e:
            require_resources(e, f"cannot trace process {pid}")
            if Path(f"/proc/{pid}").exists():  # the ID of a thread (EINVAL)
                leader = procfs.status_field(pid, "Tgid") or "?"
                raise RedirtyError(
                    f"{pid} is a thread of process {leader}: give the process, -p {leader}"
                ) from None
            raise NoProcessError(f"no process {pid}: see 'ps -e' for those that run") from None
        try:
            self._identify()
        except BaseException:
            os.close(self._pidfd)
            raise

    def _identify(self) -> None:
        status, stat = procfs.read_status(self.pid), procfs.read_living_stat(self.pid)
        if not status or stat is None:
            raise TargetEndedError(
                f"process {self.pid} has ended already: there is no memory to trace"
            )
        if stat.kernel_thread:
            raise RedirtyError(
                f"process {self.pid} ({status.get('Name', '?')}) is a kernel thread: "
                "it has no memory of its own"
            )
        try:
            with open(f"{procfs.directory(self.pid)}/pagemap", "rb"):  # noqa: PTH123
                pass
        except PermissionError:
            who = f"process {self.pid} ({status.get('Name', '?')})"
            raise RedirtyError(f"no right to trace {who}: {_refusal()}") from None
        except OSError as e:
            require_resources(e, f"cannot examine process {self.pid}")
            raise TargetEndedError(f"process {self.pid} ended while it was examined") from None
        self.comm = status.get("Name", "?")
        self.cmdline = [word for word in procfs.read_cmdline(self.pid) or [] if word]

    def alive(self) -> bool:
        """Return whether the process has not ended (a zombie has)."""
        return _runs(self._pidfd)

    def fileno(self) -> int:
        """Return the pidfd, which is readable once the process has ended."""
        return self._pidfd

    def close(self) -> None:
        """Close the pidfd; a second call does nothing."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def lives(pid: int) -> bool:
    """Return whether a process exists and has not ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as e:
        require_resources(e, f"cannot tell whether process {pid} lives")
        return False
    try:
        return _runs(pidfd)
    finally:
        os.close(pidfd)


def _runs(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)


def _refusal() -> str:
    """Say why the kernel does not let this process examine another."""
    if os.geteuid() != 0:
        return "run as root"
    lacking = capabilities.root_lacks(capabilities.PTRACE)
    return f"that needs {lacking}" if lacking else "the kernel protects it"


def descendants(root: int) -> list[int]:
    """Return all descendants of a process, by the parents' PIDs in /proc."""
    children: dict[int, list[int]] = {}
    for pid in procfs.pids():
        stat = procfs.read_stat(pid)
        if stat:
            children.setdefault(stat.parent, []).append(pid)
    found: list[int] = []
    queue = [root]
    while queue:
        for child in children.get(queue.pop(), []):
            found.append(child)
            queue.append(child)
    return found


def has_memory(pid: int) -> bool:
    """Return whether a process lives and has an address space (not a zombie or a kernel thread).

    A process whose first thread has ended lives as long as any other.
    """
    stat = procfs.read_living_stat(pid)
    return stat is not None and not stat.kernel_thread
