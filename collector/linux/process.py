"""One process: who it is, whether it still is the same one, whether it can be traced."""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path

from redirty.collector.errors import NoProcessError, RedirtyError, TargetEndedError
from redirty.collector.linux import capabilities

_LEAST_REGIONS, _MOST_REGIONS = 1 << 16, 1 << 20
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h
_PF_KTHREAD = 0x00200000  # include/linux/sched.h, shown in /proc/PID/stat
_KCMP_VM = 1  # include/uapi/linux/kcmp.h


class Process:
    """A process held by a pidfd, so that another one under its number is never taken for it.

    Errors of the constructor: RedirtyError (no such process, a kernel thread, another user's),
    TargetEndedError (it is ending right now).
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except (ProcessLookupError, OverflowError):
            raise NoProcessError(f"no process {pid}: see 'ps -e' for those that run") from None
        except OSError:
            if Path(f"/proc/{pid}").exists():  # a thread's number is no process's (EINVAL)
                leader = _status(pid).get("Tgid", "?")
                raise RedirtyError(
                    f"{pid} is a thread of process {leader}: give the process, -p {leader}"
                ) from None
            raise NoProcessError(f"no process {pid}: see 'ps -e' for those that run") from None
        try:
            self._look()
        except BaseException:
            os.close(self._pidfd)
            raise

    def _look(self) -> None:
        status = _status(self.pid)
        if not status or status.get("State", "Z")[0] in "ZX":
            raise TargetEndedError(
                f"process {self.pid} has ended already: there is no memory to trace"
            )
        fields = _stat_fields(self.pid)
        if fields and int(fields[6]) & _PF_KTHREAD:
            raise RedirtyError(
                f"process {self.pid} ({status.get('Name', '?')}) is a kernel thread: "
                "it has no memory of its own"
            )
        try:
            with open(f"/proc/{self.pid}/pagemap", "rb"):  # noqa: PTH123
                pass
        except PermissionError:
            who = f"process {self.pid} ({status.get('Name', '?')})"
            raise RedirtyError(f"no right to trace {who}: {_refusal()}") from None
        except OSError:
            raise TargetEndedError(f"process {self.pid} ended as it was looked at") from None
        self.comm = status.get("Name", "?")
        with contextlib.suppress(OSError):
            self.cmdline = [
                part.decode(errors="replace")
                for part in Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
                if part
            ]

    cmdline: list[str] = []  # noqa: RUF012 - replaced, never changed, by each instance

    def alive(self) -> bool:
        """Whether it has not ended (a zombie has)."""
        return _runs(self._pidfd)

    def fileno(self) -> int:
        """The pidfd: readable once the process has ended."""
        return self._pidfd

    def close(self) -> None:
        """Lets go of it."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def lives(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
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
    """Why the kernel does not let this process look at another."""
    if os.geteuid() != 0:
        return "run as root"
    lacking = capabilities.root_lacks(capabilities.PTRACE)
    return f"that needs {lacking}" if lacking else "the kernel protects it"


def _status(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/status").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    # A name may hold any separator of lines but the newline, which the kernel escapes.
    pairs = (line.partition(":") for line in text.split("\n"))
    return {key: value.strip() for key, _, value in pairs}


def _stat_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (state) on; the name before may hold anything."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def descendants(root: int) -> list[int]:
    """All processes below one, from parents' numbers in /proc; not the root itself."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            fields = _stat_fields(int(entry.name))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    queue = [root]
    while queue:
        for child in children.get(queue.pop(), []):
            found.append(child)
            queue.append(child)
    return found


HELPERS: set[int] = set()
"""Processes that this one started to help it: no target has them, also where this one is below it."""


def ours() -> set[int]:
    """This process, and those."""
    return {os.getpid(), *HELPERS}


def has_memory(pid: int) -> bool:
    """Whether it lives and has an address space (no zombie, no kernel thread)."""
    fields = _stat_fields(pid)
    return bool(fields) and fields[0] not in ("Z", "X") and not int(fields[6]) & _PF_KTHREAD


def regions_for(pids: list[int]) -> int:
    """How many 2 MiB regions the kernel side needs room for, so that processes can dirty all
    they have in one round, wherever it lies: a power of two, 128 bytes of kernel memory each."""
    regions = 0
    for pid in pids:
        status = _status(pid)
        resident, mapped = (
            int(status.get(name, "0").split()[0] or 0) for name in ("VmRSS", "VmSize")
        )
        regions += min(resident // 4, mapped // 2048 + 1)
    wanted = max(_LEAST_REGIONS, min(regions + regions // 2, _MOST_REGIONS))
    return 1 << (wanted - 1).bit_length()


def in_first_pid_namespace() -> bool:
    """Whether our process numbers are those that the kernel's own programs see."""
    return Path("/proc/self/ns/pid").stat().st_ino == _FIRST_PID_NAMESPACE


def sharing_memory(pid: int) -> list[int]:
    """Other processes that run in the very memory of this one (clone with CLONE_VM, vfork); empty
    when the kernel does not tell (kcmp(2))."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine)
    if number is None:
        return []
    others = (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    return [
        other
        for other in others
        if other != pid and libc.syscall(number, pid, other, _KCMP_VM, 0, 0) == 0
    ]


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process lead to; none when it is gone."""
    found = []
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                found.append(str(descriptor.readlink()))
    except OSError:
        pass
    return found
