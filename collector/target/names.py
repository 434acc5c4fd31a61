"""Targets by the names that people know: of programs, units, containers and virtual machines.

Nothing is asked of systemd, Docker or libvirt: a unit and a container are cgroups whose directories have their names
(systemd.resource-control(5); the drivers `cgroupfs` and `systemd` of the container runtimes), and a virtual machine's
name is on QEMU's command line.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from redirty.collector import json_text
from redirty.collector.checked_files import read_regular
from redirty.collector.errors import RedirtyError, UsageError, one_line
from redirty.collector.linux import procfs
from redirty.collector.linux.helper_pids import own_pids
from redirty.collector.target.process_table import ProcessEntry, ProcessTable
from redirty.collector.target.targets import cgroup_mounts

_COMM_CHARACTERS = 15  # the kernel's limit of a program's name
_LISTED = 8
_SHOWN = 60  # characters of a command line in a list
_UNIT_TYPES = (".service", ".scope", ".slice", ".socket", ".mount", ".swap")
_ID_DIGITS = 64
_LEAST_DIGITS = 4
# The directory of a container's cgroup has its ID: docker-ID.scope, libpod-ID.scope, cri-containerd-ID.scope,
# crio-ID.scope, or ID alone; LXC's its name.
_CONTAINER = re.compile(
    r"(?:docker-|libpod-|cri-containerd-|crio-)?(?P<id>[0-9a-f]{64})(?:\.scope)?|lxc\.payload\.(?P<name>.+)"
)
_LXC_PARENT = "lxc"
_DOCKER = Path("/var/lib/docker/containers")
_PODMAN = "containers/storage/overlay-containers/containers.json"
_PODMAN_HOMES = ("/var/lib", "/home/*/.local/share", "/root/.local/share")
_METADATA_BYTES = 16 << 20


def parse_pid(text: str) -> int | None:
    """Return a PID; None if a text is a name.

    Raises:
        UsageError: it is a number, and not positive.
    """
    if not re.fullmatch(r"-?\d+", text, re.ASCII):
        return None
    pid = int(text) if len(text) < _ID_DIGITS else 0
    if pid <= 0:
        raise UsageError(f"a process ID must be positive, got {text[:_SHOWN]}")
    return pid


def process_of(text: str) -> int:
    """Return the process that a PID or the name of a program means.

    Raises:
        UsageError: it is a number, and not positive.
        RedirtyError: no process has the name, or several have.
    """
    pid = parse_pid(text)
    return _only(text, _processes_named(text), "-p") if pid is None else pid


def tree_of(text: str) -> int:
    """Return the root of a tree, given by its PID or by the name of its program: the topmost of those that have it.

    Raises:
        UsageError: it is a number, and not positive.
        RedirtyError: no process has the name, or several that are not below each other have.
    """
    pid = parse_pid(text)
    return _only(text, _topmost(_processes_named(text)), "--tree") if pid is None else pid


def machine_of(text: str) -> int:
    """Return the process of a virtual machine, given by its PID or by its name.

    Raises:
        UsageError: it is a number, and not positive.
        RedirtyError: no virtual machine has the name, or several have.
    """
    pid = parse_pid(text)
    if pid is not None:
        return pid
    machines = [entry for entry in _entries() if entry.kind == "vm"]
    found = [entry.pid for entry in machines if entry.name == text]
    if not found:
        names = ", ".join(sorted({one_line(entry.name) for entry in machines})[:_LISTED])
        raise RedirtyError(
            f"no virtual machine is named {text[:_SHOWN]!r}"
            + (f": those here are {names}" if names else ": none runs here")
        )
    return _only(text, found, "--vm")


def _entries() -> list[ProcessEntry]:
    table = ProcessTable()
    table.poll()
    own = own_pids()
    return [entry for pid, entry in sorted(table.processes.items()) if pid not in own]


def _processes_named(name: str) -> list[int]:
    """Return the processes of a program: by the name that the kernel shows, or by that of the file."""
    return [entry.pid for entry in _entries() if _is_named(entry, name)]


def _is_named(entry: ProcessEntry, name: str) -> bool:
    if entry.name == name or (
        len(name) > _COMM_CHARACTERS and entry.name == name[:_COMM_CHARACTERS]
    ):
        return True
    words = procfs.read_cmdline(entry.pid)
    return words is not None and len(words) > 0 and Path(words[0]).name == name


def _topmost(pids: list[int]) -> list[int]:
    """Return those of some processes that are not below another one of them."""
    chosen = set(pids)
    return [pid for pid in pids if not any(above in chosen for above in _ancestors(pid))]


def _ancestors(pid: int) -> Iterator[int]:
    stat = procfs.read_stat(pid)
    while stat is not None and stat.parent > 0:
        yield stat.parent
        stat = procfs.read_stat(stat.parent)


def _only(name: str, found: list[int], option: str) -> int:
    """Return the only process of a list; say what else there is."""
    if not found:
        raise RedirtyError(f"no process is named {name[:_SHOWN]!r}: see 'ps -e' for those that run")
    if len(found) == 1:
        return found[0]
    some = ", ".join(f"{pid} ({_command_line(pid)})" for pid in found[:_LISTED])
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    top = _topmost(found)
    family = f", or --tree {top[0]} for all of them" if option == "-p" and len(top) == 1 else ""
    raise RedirtyError(
        f"{len(found)} processes are named {name[:_SHOWN]!r}: {some}{more}; give {option} PID{family}"
    )


def _command_line(pid: int) -> str:
    return one_line(" ".join(procfs.read_cmdline(pid) or [])[:_SHOWN])


# ---- units ----


def unit_cgroup(name: str) -> Path:
    """Return the cgroup of a unit of systemd: redis.service, or redis for short.

    Raises:
        RedirtyError: no cgroup has that name, or several have.
    """
    unit = name if name.endswith(_UNIT_TYPES) else f"{name}.service"
    found = [path for path in _directories() if path.name == unit]
    if not found:
        raise RedirtyError(
            f"no unit {unit[:_SHOWN]} runs here: no cgroup has its name; see 'systemctl list-units'"
        )
    return _only_cgroup(f"units are named {unit[:_SHOWN]}", found)


def _directories() -> Iterable[Path]:
    """Yield the cgroups of this machine, of the first hierarchy that has any below its root."""
    for mount in cgroup_mounts():
        below = [Path(parent, name) for parent, names, _ in os.walk(mount) for name in names]
        if below:
            return below
    return []


def _only_cgroup(what: str, found: list[Path]) -> Path:
    if len(found) > 1:
        some = ", ".join(map(str, found[:_LISTED]))
        raise RedirtyError(f"{len(found)} {what}: {some}; give one of them to --cgroup")
    return found[0]


# ---- containers ----


def container_cgroup(name: str) -> Path:
    """Return the cgroup of a container of Docker, Podman, containerd, CRI-O or LXC.

    name: its name, or its ID or the beginning of it.

    Raises:
        RedirtyError: there is no such container, or there are several.
    """
    ids = set(_ids_of(name))
    if re.fullmatch(rf"[0-9a-f]{{{_LEAST_DIGITS},{_ID_DIGITS}}}", name):
        ids.add(name)
    found: dict[str, Path] = {}
    for path in _directories():
        match = _CONTAINER.fullmatch(path.name)
        if match is None:
            if path.parent.name == _LXC_PARENT and path.name == name:
                found.setdefault(str(path), path)
        elif match["name"] == name:
            found.setdefault(str(path), path)
        elif match["id"] and any(match["id"].startswith(one) for one in ids):
            # The runtime's own cgroups below a container's have no ID; of two with one ID the upper one counts.
            found.setdefault(match["id"], path)
    if not found:
        raise RedirtyError(
            f"no container {name[:_SHOWN]} runs here: see 'docker ps', 'podman ps', 'crictl ps' or 'lxc-ls'"
        )
    return _only_cgroup(f"containers match {name[:_SHOWN]}", list(found.values()))


def _ids_of(name: str) -> Iterator[str]:
    """Yield the IDs of containers of a name, by what Docker and Podman note about them."""
    with contextlib.suppress(OSError):
        for directory in sorted(_DOCKER.iterdir()):
            about = _read(directory / "config.v2.json")
            if isinstance(about, dict) and about.get("Name") == f"/{name}":
                yield directory.name
    for home in _PODMAN_HOMES:
        for path in Path("/").glob(f"{home[1:]}/{_PODMAN}"):
            listed = _read(path)
            for about in listed if isinstance(listed, list) else ():
                if isinstance(about, dict) and name in (about.get("names") or ()):
                    yield str(about.get("id", ""))


def _read(path: Path) -> object:
    """Return the contents of a JSON file; None if it cannot be read, or is none."""
    try:
        return json_text.parse(read_regular(path, _METADATA_BYTES))
    except (OSError, ValueError, RedirtyError):
        return None
