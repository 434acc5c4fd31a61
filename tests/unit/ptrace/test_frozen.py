"""Where the cgroups of a process are, and whether one of them is frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
from redirty.collector.ptrace.helpers import procfs

MOUNTS = """\
30 1 0:26 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw
31 1 0:27 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
32 1 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 1 0:26 /docker/a /mnt/with\\040space rw - cgroup2 cgroup2 rw
34 1 0:29 / /proc rw - proc proc rw
short
"""


@pytest.mark.parametrize(
    ("controllers", "path", "expected"),
    [
        ("", "/x", ["/sys/fs/cgroup/unified/x"]),
        ("", "/docker/a/b", ["/sys/fs/cgroup/unified/docker/a/b", "/mnt/with space/b"]),
        ("", "/docker/ab", ["/sys/fs/cgroup/unified/docker/ab"]),
        ("freezer", "/y", ["/sys/fs/cgroup/freezer/y"]),
        ("cpu,cpuacct", "/z", []),
    ],
)
def test_directories(controllers: str, path: str, expected: list[str]) -> None:
    assert procfs.cgroup_directories(MOUNTS, controllers, path) == expected


@pytest.mark.parametrize(
    ("files", "frozen"),
    [
        ({"a/cgroup.events": "populated 1\nfrozen 0\n", "a/cgroup.freeze": "0\n"}, False),
        ({"a/cgroup.events": "populated 1\nfrozen 1\n"}, True),
        (
            {"a/b/cgroup.events": "frozen 0\n", "a/b/cgroup.freeze": "0", "a/cgroup.freeze": "1"},
            True,
        ),
        ({"a/freezer.state": "FROZEN\n"}, True),
        ({"a/freezer.state": "FREEZING\n"}, True),
        ({"a/freezer.state": "THAWED\n"}, False),
        ({}, False),
    ],
)
def test_frozen(tmp_path: Path, files: dict[str, str], frozen: bool) -> None:
    deepest = max(
        (Path(name).parent for name in files), key=lambda p: len(p.parts), default=Path("a")
    )
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert procfs.is_frozen(str(tmp_path / deepest)) is frozen
