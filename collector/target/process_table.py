"""All processes that have memory: names, sizes, cgroups; looked at cheaply again and again."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PF_KTHREAD = 0x00200000  # include/linux/sched.h, shown in /proc/PID/stat
_PAGE = os.sysconf("SC_PAGE_SIZE")
_IN_TURN = 10  # of the others one in so many is looked at again each time
_MACHINES = ("qemu", "kvm", "cloud-hyperviso", "firecracker", "crosvm")


@dataclass(slots=True)
class ProcessEntry:
    """A process. name: of a virtual machine's process the machine's; kind: process or vm. started: in
    clock ticks, tells it from a later one of the same number."""

    pid: int
    name: str
    kind: str
    cgroup: str
    rss_bytes: int
    started: int


class ProcessTable:
    """processes: by pid, as of the last look()."""

    def __init__(self) -> None:
        self.processes: dict[int, ProcessEntry] = {}
        self._kernel: set[int] = set()  # its threads
        self._turn = 0

    def look(self, changed: Iterable[int] = ()) -> set[int]:
        """Reads /proc: what is new, what is told to have changed, and some of the rest in turn. Returns
        the processes that are gone, or are others now."""
        there = {int(name) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208
        gone = self.processes.keys() - there
        self._kernel &= there
        self._turn = (self._turn + 1) % _IN_TURN
        again = {pid for pid in self.processes if pid % _IN_TURN == self._turn}
        again |= self.processes.keys() & set(changed)
        for pid in gone:
            del self.processes[pid]
        for pid in (there - self.processes.keys() - self._kernel) | (again & there):
            if not self._read(pid):
                gone.add(pid)
        return gone

    def _read(self, pid: int) -> bool:
        """Reads one; False when it was known, and is another one now or none."""
        old = self.processes.get(pid)
        fields = _stat(pid)
        if fields is None:
            self.processes.pop(pid, None)
            return old is None
        name, rest = fields
        if int(rest[6]) & _PF_KTHREAD:
            self._kernel.add(pid)
            return True
        started, rss = int(rest[19]), int(rest[21]) * _PAGE
        if old is not None and old.started == started:
            old.rss_bytes = rss
            if old.kind == "process":
                old.name = name
            return True
        kind = "process"
        if name.startswith(_MACHINES):
            kind, name = "vm", _machine(pid) or name
        self.processes[pid] = ProcessEntry(pid, name, kind, _cgroup(pid), rss, started)
        return old is None


def _stat(pid: int) -> tuple[str, list[str]] | None:
    """(name, fields from the third on) of /proc/PID/stat; the name may hold anything."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123 - thousands of them
            text = file.read(4096).decode(errors="replace")
    except OSError:
        return None
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    if len(fields) < 22 or fields[0] in ("Z", "X"):
        return None
    return head.partition("(")[2], fields


def _cgroup(pid: int) -> str:
    """The cgroup of version 2; without one the longest of version 1."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_bytes().decode(errors="replace").splitlines()
    except OSError:
        return ""
    paths = [line.split(":", 2) for line in lines]
    unified = [parts[2] for parts in paths if len(parts) == 3 and parts[0] == "0"]
    if unified and (unified[0] != "/" or len(paths) == 1):
        return unified[0]
    return max((parts[2] for parts in paths if len(parts) == 3), key=len, default="")


def _machine(pid: int) -> str:
    """What a virtual machine is called: -name of QEMU, --id of Firecracker; empty: not told."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    for option in ("-name", "--id"):
        if option in words[:-1]:
            said = words[words.index(option) + 1]
            parts = dict(part.partition("=")[::2] for part in said.split(","))
            return parts.get("guest") or said.partition(",")[0]
    return ""
