"""Kinds of targets: processes, a tree, a cgroup."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from redirty.collector.errors import RedirtyError, TargetEndedError, require_resources
from redirty.collector.linux import procfs
from redirty.collector.linux.helper_pids import own_pids
from redirty.collector.linux.maps import Mappings
from redirty.collector.linux.open_files import CGROUP, CGROUP2, file_system
from redirty.collector.linux.process import Process, descendants, has_memory

_CGROUPS = ("cgroup", "cgroup2")


class TargetSet(Protocol):
    """The processes that belong to the target."""

    follow_fork: bool  # children belong to it from their first instruction on
    may_join: bool  # processes can join it other than by fork: members() is polled each round
    required: bool  # whether it is an error that one of members() cannot be armed
    partial: bool  # part() leaves something out
    kind: str  # as in meta.json

    @property
    def description(self) -> str:
        """Human-readable name."""

    @property
    def pids(self) -> Sequence[int]:
        """Process IDs that name the target; none for a cgroup or a command."""

    def arguments(self) -> tuple[str, ...] | None:
        """Return the target as words of a command line; None for a command, which is started only once."""

    def members(self) -> list[int]:
        """Return the member processes found in /proc; with follow_fork the kernel knows of more.

        Raises:
            RedirtyError: There is no such target.
        """

    def part(self, mappings: Mappings) -> Mappings:
        """Return those of a member's mappings that belong to the target.

        The same object is returned as long as nothing changes.
        """


class WholeProcesses:
    """Base of targets to which all memory of their processes belongs."""

    partial = False

    def part(self, mappings: Mappings) -> Mappings:
        """Return all mappings; see TargetSet."""
        return mappings


@dataclass
class Pids(WholeProcesses):
    """Individual processes, without their children."""

    pids: list[int]
    kind = "pids"
    follow_fork: bool = field(default=False, init=False)
    may_join: bool = field(default=False, init=False)
    required: bool = field(default=True, init=False)
    description: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.pids = list(dict.fromkeys(self.pids))
        for pid in self.pids:
            if pid == os.getpid():
                raise RedirtyError("redirty cannot trace itself: it would record its own work")
            Process(pid).close()
        self.description = "process " + ", ".join(str(p) for p in self.pids)

    def arguments(self) -> tuple[str, ...]:
        """See TargetSet."""
        return tuple(word for pid in self.pids for word in ("-p", str(pid)))

    def members(self) -> list[int]:
        """Return the processes; see TargetSet."""
        return self.pids


@dataclass
class Tree(WholeProcesses):
    """A process and all its descendants, present and future."""

    root: int
    kind = "tree"
    follow_fork: bool = field(default=True, init=False)
    may_join: bool = field(default=False, init=False)
    required: bool = field(default=False, init=False)
    description: str = field(default="", init=False)

    def __post_init__(self) -> None:
        Process(self.root).close()
        self.description = f"process tree of {self.root}"

    @property
    def pids(self) -> tuple[int, ...]:
        """See TargetSet."""
        return (self.root,)

    def arguments(self) -> tuple[str, ...]:
        """See TargetSet."""
        return "--tree", str(self.root)

    def members(self) -> list[int]:
        """Return the root and its descendants; see TargetSet."""
        own = own_pids()
        below = [pid for pid in descendants(self.root) if has_memory(pid)]
        return [pid for pid in (self.root, *below) if pid not in own]


@dataclass
class Cgroup(WholeProcesses):
    """All processes of a cgroup and of those below it, including those that join later."""

    path: str
    kind = "cgroup"
    pids = ()
    follow_fork: bool = field(default=True, init=False)
    may_join: bool = field(default=True, init=False)
    required: bool = field(default=False, init=False)
    description: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.directory = find_cgroup(self.path)
        self.description = f"cgroup {self.directory}"
        if not self.members():
            raise TargetEndedError(
                f"cgroup {self.directory} has no process in it: nothing to trace"
            )

    def arguments(self) -> tuple[str, ...]:
        """See TargetSet."""
        return "--cgroup", str(self.directory)

    def members(self) -> list[int]:
        """Return the processes in the cgroup and below; see TargetSet."""
        found: list[int] = []
        for directory, _, files in os.walk(self.directory, onerror=_require_listing):
            if "cgroup.procs" in files:
                found += _processes_in(Path(directory))
        own = own_pids()
        return [pid for pid in dict.fromkeys(found) if pid not in own and has_memory(pid)]


def _require_listing(error: OSError) -> None:
    """Ignore that a cgroup was removed meanwhile; nothing else."""
    require_resources(error, "cannot list the processes of a cgroup")


def _processes_in(directory: Path) -> list[int]:
    """Return the processes in a cgroup, without those below it; of a threaded one those with a thread in it."""
    try:
        return [int(line) for line in (directory / "cgroup.procs").read_text().split()]
    except OSError as e:
        require_resources(e, f"cannot list the processes of {directory}")
        if e.errno != errno.EOPNOTSUPP:
            return []  # removed meanwhile
    try:
        threads = [int(line) for line in (directory / "cgroup.threads").read_text().split()]
    except OSError as e:
        require_resources(e, f"cannot list the threads of {directory}")
        return []
    groups = (procfs.status_field(tid, "Tgid") for tid in threads)
    return [int(pid) for pid in dict.fromkeys(groups) if pid]


def parse_mounts(text: bytes) -> list[tuple[Path, str]]:
    """Return (mount point, type of the file system) of each line of a mounts file."""
    # Split at the kernel's own separators: it escapes these in names, as octal numbers, but nothing
    # else that Python would take for the end of a word or of a line.
    found = []
    for line in text.split(b"\n"):
        words = line.split(b" ")
        if len(words) > 2:
            where = re.sub(rb"\\([0-3][0-7]{2})", lambda m: bytes([int(m[1], 8)]), words[1])
            found.append((Path(os.fsdecode(where)), words[2].decode(errors="replace")))
    return found


def cgroup_mounts() -> list[Path]:
    """Return the mount points of cgroup hierarchies, version 2 first: hosts mount it anywhere."""
    mounts = parse_mounts(Path("/proc/self/mounts").read_bytes())
    found = [(kind != "cgroup2", where) for where, kind in mounts if kind in _CGROUPS]
    return [where for _, where in sorted(found)]


def _is_cgroup(directory: Path) -> bool:
    """Return whether a path is that of a cgroup: a directory of any other file system may look like one."""
    try:
        fd = os.open(directory / "cgroup.procs", os.O_PATH | os.O_CLOEXEC)
    except OSError as e:
        require_resources(e, f"cannot open {directory}")
        return False
    try:
        return file_system(fd) in (CGROUP, CGROUP2)
    finally:
        os.close(fd)


def find_cgroup(path: str) -> Path:
    """Return a cgroup's directory, given by its full path or its path below a mount point.

    Raises:
        RedirtyError: There is no such cgroup.
    """
    given = Path(path)
    candidates = [given, *(mount / path.lstrip("/") for mount in cgroup_mounts())]
    for directory in candidates if path else ():  # an empty path must not mean the whole machine
        if _is_cgroup(directory):
            return directory
    mounts = ", ".join(str(m) for m in cgroup_mounts()) or "no cgroup file system is mounted"
    raise RedirtyError(
        f"no cgroup {path or repr(path)}: give its directory, or its path below a cgroup mount "
        f"({mounts})"
    )
