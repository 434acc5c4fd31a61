"""/proc/PID/{stat,status,comm,cmdline} of a process: read and parsed in one place.

A process may call itself anything. `stat` shows its name between parentheses and escapes nothing;
`status` escapes the newline and the backslash only, so lines end at newlines alone; `comm` shows the
name unescaped, then a newline. These are files of the process's first thread: when it has ended while
others run, they look like those of a zombie, and show no memory. So whatever belongs to the whole
process is read through directory(), that of a thread that lives.

The helpers that stop processes run without this package and have a small twin:
ptrace/helpers/procfs.py. Source: proc(5).
"""

from __future__ import annotations

import os
from typing import NamedTuple

from redirty.collector.errors import require_resources

_PF_KTHREAD = 0x00200000  # include/linux/sched.h
_START = 19  # index of the start time
_ARG_START, _ARG_END = 45, 46  # proc(5), from the state on
_STAT_FIELDS = 22  # up to rss: fewer were cut short by the end of the process


class Stat(NamedTuple):
    """The line of /proc/PID/stat.

    Attributes:
        comm: The name that the process gave itself.
        fields: All fields from the third (state) on, so that field n of proc(5) is fields[n - 3].
    """

    comm: str
    fields: list[str]

    @property
    def state(self) -> str:
        """State as a letter: R, S, D, T, t, Z, X, …"""
        return self.fields[0]

    @property
    def ended(self) -> bool:
        """True for a zombie."""
        return self.fields[0] in ("Z", "X")

    @property
    def parent(self) -> int:
        """PID of the parent process."""
        return int(self.fields[1])

    @property
    def kernel_thread(self) -> bool:
        """True for a kernel thread, which has no memory of its own."""
        return bool(int(self.fields[6]) & _PF_KTHREAD)

    @property
    def start_ticks(self) -> int:
        """Start time in clock ticks since boot: distinguishes a process from a later one with the same PID."""
        return int(self.fields[_START])

    @property
    def cpu_ticks(self) -> int:
        """Clock ticks of CPU time used, in user space (guests included) and in the kernel."""
        return int(self.fields[11]) + int(self.fields[12])

    @property
    def resident_pages(self) -> int:
        """Resident set size in pages."""
        return int(self.fields[21])

    @property
    def processor(self) -> int:
        """Processor on which the thread last ran."""
        return int(self.fields[36])


def split_stat(text: bytes) -> Stat:
    """Split a stat file; an empty one has no fields."""
    head, _, tail = text.decode(errors="replace").rpartition(")")
    return Stat(head.partition("(")[2], tail.split())


def parse_stat(text: bytes) -> Stat | None:
    """Split a stat file; return None if it is empty or cut short."""
    stat = split_stat(text)
    return stat if len(stat.fields) >= _STAT_FIELDS else None


def read_stat(pid: int | str) -> Stat | None:
    """Read the stat file of a process, or of a thread ("PID/task/TID"); None once it is gone."""
    text = _read(f"/proc/{pid}/stat")
    return None if text is None else parse_stat(text)


def living_thread(pid: int) -> int:
    """Return the ID of a thread of a process that lives: the first one if it does; the PID once all have ended."""
    stat = read_stat(pid)
    return pid if stat is None or not stat.ended else _other_thread(pid)


def _other_thread(pid: int) -> int:
    try:
        threads = sorted(map(int, os.listdir(f"/proc/{pid}/task")))  # noqa: PTH208
    except OSError as e:
        require_resources(e, f"cannot list the threads of process {pid}")
        return pid
    for tid in threads:
        stat = read_stat(f"{pid}/task/{tid}")
        if stat is not None and not stat.ended:
            return tid
    return pid


def thread_cpu_ticks(pid: int) -> dict[int, int]:
    """Return the clock ticks of CPU time used by each thread of a process; empty once it is gone."""
    try:
        threads = list(map(int, os.listdir(f"/proc/{pid}/task")))  # noqa: PTH208
    except OSError as e:
        require_resources(e, f"cannot list the threads of process {pid}")
        return {}
    stats = {tid: read_stat(f"{pid}/task/{tid}") for tid in threads}
    return {tid: stat.cpu_ticks for tid, stat in stats.items() if stat is not None}


def directory(pid: int) -> str:
    """Return the directory in /proc of a living thread of a process, where the memory's files are."""
    # Not /proc/PID/task/TID, which has no map_files; /proc/TID is there, though no listing shows it.
    return f"/proc/{living_thread(pid)}"


def read_living_stat(pid: int) -> Stat | None:
    """Read the stat file of a process that lives; None once all of its threads have ended.

    Name and start time are the first thread's, which may have ended, everything else a living thread's.
    """
    first = read_stat(pid)
    if first is None or not first.ended:
        return first
    tid = _other_thread(pid)
    stat = read_stat(f"{pid}/task/{tid}") if tid != pid else None
    if stat is None or stat.ended:
        return None
    fields = [*stat.fields[:_START], first.fields[_START], *stat.fields[_START + 1 :]]
    return Stat(first.comm, fields)


def parse_status(text: bytes) -> dict[str, str]:
    """Parse a status file into name -> value."""
    pairs = (line.partition(":") for line in text.decode(errors="replace").split("\n"))
    return {name: value.strip() for name, _, value in pairs if name}


def read_status(pid: int) -> dict[str, str]:
    """Read the status file of a process, or of a thread that lives if the first has ended; empty once it is gone."""
    text = _read_status(pid)
    return {} if text is None else parse_status(text)


def _read_status(pid: int) -> bytes | None:
    text = _read(f"/proc/{pid}/status")
    if text is not None and find_field(text, "State")[:1] in ("Z", "X"):
        tid = _other_thread(pid)
        if tid != pid:
            return _read(f"/proc/{pid}/task/{tid}/status")
    return text


def find_field(status: bytes, name: str) -> str:
    """Return one field of a status file; empty if it has no such field."""
    # Quicker than parsing all of it. No name can pretend to be a field: its newlines are escaped.
    _, found, rest = (b"\n" + status).partition(f"\n{name}:".encode())
    return rest.partition(b"\n")[0].decode(errors="replace").strip() if found else ""


def status_field(pid: int, name: str) -> str:
    """Return one field of a process's status; empty once the process is gone."""
    text = _read_status(pid)
    return "" if text is None else find_field(text, name)


def status_kib(pid: int, name: str) -> int:
    """Return a field of a process's status in KiB; 0 if there is none or the process is gone."""
    value = status_field(pid, name)
    return int(value.split(maxsplit=1)[0]) if value else 0


def read_comm(pid: int) -> str | None:
    """Return the name of a process, which may hold newlines; None once it is gone."""
    text = _read(f"/proc/{pid}/comm")
    return None if text is None else text.removesuffix(b"\n").decode(errors="replace")


def read_cmdline(pid: int) -> list[str] | None:
    """Return the arguments of a process, without empty ones at the end; None once it is gone.

    They are read from its memory. A process may have mapped a file there, whose file system (FUSE) may never answer,
    and then nothing could end this one: no arguments are returned of such a process.
    """
    if not _arguments_are_anonymous(pid):
        return []
    text = _read(f"/proc/{pid}/cmdline")
    if text == b"" and (tid := living_thread(pid)) != pid:
        text = _read(f"/proc/{pid}/task/{tid}/cmdline")
    if text is None:
        return None
    words = text.rstrip(b"\0")
    return words.decode(errors="replace").split("\0") if words else []


def _arguments_are_anonymous(pid: int) -> bool:
    """Return whether no file is mapped where a process's arguments are; True once the process is gone."""
    stat = read_stat(pid)
    if stat is None or len(stat.fields) <= _ARG_END:
        return True
    first, end = int(stat.fields[_ARG_START]), int(stat.fields[_ARG_END])
    for line in (_read(f"/proc/{living_thread(pid)}/maps") or b"").split(b"\n") if end else ():
        bounds, *rest = line.split(None, 5)[:5] or [b""]
        low, _, high = bounds.partition(b"-")
        if rest and int(low, 16) < end and int(high, 16) > first and rest[3] != b"0":
            return False
    return True


def pids() -> list[int]:
    """List all processes, in no order."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208


def _read(path: str) -> bytes | None:
    """Read a file of /proc; None if it is gone. Kept bare: it may be read for thousands of processes."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            return file.readall()
    except OSError as e:
        require_resources(e, f"cannot read {path}")
        return None
