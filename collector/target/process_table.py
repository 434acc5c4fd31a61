"""A table of all processes that have memory, polled cheaply: names, sizes, cgroups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from redirty.collector.errors import require_resources
from redirty.collector.linux import procfs
from redirty.collector.pageset import PAGE_SIZE

_SHARE = 10  # each poll re-reads one in this many of the known processes
_HYPERVISORS = ("qemu", "kvm", "cloud-hyperviso", "firecracker", "crosvm")


@dataclass(slots=True)
class ProcessEntry:
    """An entry of the table.

    Attributes:
        pid: Its PID.
        name: Its comm; for a virtual machine's process the machine's name.
        kind: "process" or "vm".
        cgroup: Its cgroup's path.
        rss_bytes: Resident set size.
        started: Start time in clock ticks, which distinguishes it from a later process with the same PID.
    """

    pid: int
    name: str
    kind: str
    cgroup: str
    rss_bytes: int
    started: int


class ProcessTable:
    """All processes that have memory.

    Attributes:
        processes: The entries by PID, as of the last poll().
    """

    def __init__(self) -> None:
        self.processes: dict[int, ProcessEntry] = {}
        self._kernel: set[int] = set()  # kernel threads
        self._turn = 0

    def poll(self, changed: Iterable[int] = ()) -> set[int]:
        """Read from /proc the new processes, those known to have changed, and some others in turn.

        Returns:
            The PIDs of processes that are gone, or were replaced by another of the same PID.
        """
        there = set(procfs.pids())
        gone = self.processes.keys() - there
        self._kernel &= there
        self._turn = (self._turn + 1) % _SHARE
        again = {pid for pid in self.processes if pid % _SHARE == self._turn}
        again |= self.processes.keys() & set(changed)
        for pid in gone:
            del self.processes[pid]
        for pid in (there - self.processes.keys() - self._kernel) | (again & there):
            if not self._read(pid):
                gone.add(pid)
        return gone

    def _read(self, pid: int) -> bool:
        """Read one process; return False if a known one is gone or was replaced."""
        old = self.processes.get(pid)
        stat = procfs.read_living_stat(pid)
        if stat is None:
            self.processes.pop(pid, None)
            return old is None
        if stat.kernel_thread:
            self._kernel.add(pid)
            return True
        started, rss = stat.start_ticks, stat.resident_pages * PAGE_SIZE
        if old is not None and old.started == started:
            old.rss_bytes = rss
            if old.kind == "process":
                old.name = stat.comm
            return True
        kind, name = "process", stat.comm
        if name.startswith(_HYPERVISORS):
            kind, name = "vm", _machine_name(pid) or name
        self.processes[pid] = ProcessEntry(pid, name, kind, _cgroup(pid), rss, started)
        return old is None


def _cgroup(pid: int) -> str:
    """Return the path of a process's version 2 cgroup; without one, the longest of version 1."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_bytes().decode(errors="replace").splitlines()
    except OSError as e:
        require_resources(e, f"cannot read the cgroup of process {pid}")
        return ""
    paths = [line.split(":", 2) for line in lines]
    unified = [parts[2] for parts in paths if len(parts) == 3 and parts[0] == "0"]
    if unified and (unified[0] != "/" or len(paths) == 1):
        return unified[0]
    return max((parts[2] for parts in paths if len(parts) == 3), key=len, default="")


def _machine_name(pid: int) -> str:
    """Return the name of a virtual machine: -name of QEMU, --id of Firecracker; empty if not given."""
    words = procfs.read_cmdline(pid) or []
    for option in ("-name", "--id"):
        if option in words[:-1]:
            value = words[words.index(option) + 1]
            parts = dict(part.partition("=")[::2] for part in value.split(","))
            return parts.get("guest") or value.partition(",")[0]
    return ""
