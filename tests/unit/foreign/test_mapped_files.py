"""Mapped files: which of them a reader process reads, and that it reads what a read of ours does."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.foreign import mapped_files
from redirty.collector.foreign.mapped_files import FileServerError, ServedFile
from redirty.collector.pageset import PAGE_SIZE

from tests.tiers import require

MOUNTS = b"""\
22 1 0:20 / / rw,relatime - overlay overlay rw,lowerdir=/a,upperdir=/b
23 22 0:21 / /proc rw - proc proc rw
24 22 8:1 / /home rw,relatime shared:1 - ext4 /dev/sda1 rw
25 22 0:57 / /mnt/a\\040b rw,nosuid master:3 - fuse.sshfs host:/x rw,user_id=0
26 22 0:58 / /srv rw - nfs4 host:/srv rw
"""


def test_types_of_file_systems() -> None:
    assert mapped_files.mounted(MOUNTS) == {
        "0:20": "overlay", "0:21": "proc", "8:1": "ext4", "0:57": "fuse.sshfs", "0:58": "nfs4"
    }  # fmt: skip
    assert mapped_files.mounted(b"") == mapped_files.mounted(b"x\n - \n") == {}


@pytest.mark.parametrize(
    ("device", "mounts", "kind"),
    [
        ("08:01", MOUNTS, ""),
        ("00:39", MOUNTS, "fuse.sshfs"),
        ("00:3a", MOUNTS, "nfs4"),
        ("00:14", MOUNTS, "overlay, fuse.sshfs"),
        ("00:14", b"\n".join(MOUNTS.split(b"\n")[:3]), ""),
        ("00:fff", MOUNTS, "not mounted any more"),
        ("103:02", MOUNTS, ""),
    ],
)
def test_which_file_systems_may_be_silent(
    device: str, mounts: bytes, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda path: mounts)
    assert mapped_files.served_by(1, device) == kind


def device_of(stat: os.stat_result) -> str:
    return f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}"


def test_shared_memory_is_read_directly() -> None:
    memory = os.memfd_create("x")
    assert mapped_files.served_by(os.getpid(), device_of(os.fstat(memory))) == ""
    os.close(memory)


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, ServedFile]]:
    """Return a sparse file of 3,000 and a half pages, as read here and by a reader."""
    path = tmp_path / "file"
    rng = np.random.default_rng(1)
    with path.open("wb") as file:
        file.write(rng.bytes(1000 * PAGE_SIZE))
        file.seek(2000 * PAGE_SIZE)
        file.write(rng.bytes(1000 * PAGE_SIZE + 100))
    fd = os.open(path, os.O_RDONLY)
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ):
        lines = Path("/proc/self/maps").read_text().splitlines()
        (line,) = [x for x in lines if x.endswith(str(path))]
        start, end = (int(n, 16) for n in line.split()[0].split("-"))
        monkeypatch.setattr(mapped_files, "served_by", lambda tid, device: "fuse")
        try:
            served = mapped_files.open_mapped(os.getpid(), start, end, "00:39", str(path))
        except PermissionError:
            require(False, "needs root: map_files")
        assert isinstance(served, ServedFile)
        yield fd, served
    mapped_files.close(served)
    mapped_files.close(fd)
    assert not mapped_files._servers


def test_a_reader_reads_what_we_do(both: tuple[int, ServedFile]) -> None:
    results: list[list[object]] = []
    for file in both:
        status = mapped_files.status(file)
        found: list[object] = [
            (status.st_size, status.st_blocks, status.st_mtime_ns, status.st_ctime_ns)
        ]
        at = mapped_files.seek(file, 0, os.SEEK_HOLE)
        found.append((at, mapped_files.seek(file, at, os.SEEK_DATA)))
        with pytest.raises(OSError) as error:
            mapped_files.seek(file, 1 << 40, os.SEEK_DATA)
        found.append((error.value.errno,))
        for pages in (
            [0],
            [999, 1000, 1999],
            [2999, 3000, 3001, 9999],
            range(0, 3001, 1),
            range(0, 3000, 2),
        ):
            buffer = memoryview(bytearray(b"x" * (len(pages) * PAGE_SIZE)))
            good = mapped_files.read(file, np.array(pages, np.uint64), buffer)
            found.append((good.tolist(), bytes(buffer)))
        results.append(found)
    assert results[0] == results[1]


@pytest.mark.parametrize("signal", [9, 19])
def test_a_reader_that_fails_is_an_error_for_all_its_files(
    both: tuple[int, ServedFile], signal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_files, "SILENT_S", 1.0)
    reader = both[1].server._reader.pid
    os.kill(reader, signal)
    for _ in range(2):
        with pytest.raises(
            FileServerError, match=r"file, which the target maps: its file system \(fuse\)"
        ):
            mapped_files.read(both[1], np.array([0], np.uint64), memoryview(bytearray(PAGE_SIZE)))
    assert not Path(f"/proc/{reader}").exists()
