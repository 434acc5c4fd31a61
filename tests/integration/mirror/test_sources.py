"""Each mapping has its own file's contents in a mirror, and what cannot be read is named, never silently zero."""

from __future__ import annotations

import csv
import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redirty.collector.linux.pagemap import scan_supported
from redirty.collector.linux.shared_mappings import identified, shared_mappings
from redirty.collector.mirror.state import MirrorState
from redirty.collector.mirror.transport.sink import PageSink
from redirty.collector.pageset import PAGE_SIZE, page_numbers

from tests.support.mapped_files import BAD_PAGE, PAGES, MappedFiles
from tests.support.mirror_oracle import CoreFile, mirror_json
from tests.support.redirty_cli import Done, run_redirty
from tests.tiers import require

pytestmark = pytest.mark.usefixtures("tracing")


def program(kind: str, directory: Path, *names: str, sharing: str = "private") -> MappedFiles:
    try:
        return MappedFiles(kind, directory, *names, sharing=sharing)
    except RuntimeError as e:
        require(False, f"cannot mount {kind}: {e}")
        raise


def mirror(pid: int, to: Path) -> tuple[Done, dict[str, Any]]:
    done = run_redirty("mirror", "-p", pid, "--to", to, "--verify=full", "--downtime", "4s")
    assert done.code == 0, done
    return done, mirror_json(to)


def pages_of(to: Path, address: int) -> list[bytes]:
    """Return the pages of an area as the mirror has them."""
    core = CoreFile(to / "memory.core")
    try:
        data = core.read(address, PAGES * PAGE_SIZE)
    finally:
        core.close()
    return [data[at : at + PAGE_SIZE] for at in range(0, len(data), PAGE_SIZE)]


@pytest.mark.parametrize("sharing", ["private", "shared"])
@pytest.mark.parametrize("kind", ["overlay", "fuse"])
def test_two_files_that_look_like_one(kind: str, sharing: str, tmp_path: Path) -> None:
    """The list of mappings shows the same device and inode for both."""
    base = tmp_path / "files"
    base.mkdir()
    with program(kind, base, "one", "two", sharing=sharing) as target:
        lines = Path(f"/proc/{target.pid}/maps").read_text().splitlines()
        shown = {tuple(line.split()[3:5]) for line in lines if str(base) in line}
        assert len(shown) == 1, "this kernel tells them apart: no test"
        mappings = [m for m in shared_mappings(target.pid) if str(base) in m.object.path]
        assert len(identified(target.pid, mappings)) == len(mappings)
        assert len(mappings) == (2 if sharing == "shared" else 0)
        _, information = mirror(target.pid, tmp_path / "mirror")
        for address in target.areas.values():
            assert pages_of(tmp_path / "mirror", address) == target.memory(address)
    assert information["verified"] and information["unmirrored"] == []


def test_a_file_that_was_copied_up_has_two_contents(tmp_path: Path) -> None:
    """The mapping made before the first write to an overlay's file keeps showing the lower file."""
    base = tmp_path / "files"
    base.mkdir()
    with program("overlay", base, "one", "two") as target:
        old = target.areas["one"]
        target.run("copy-up", "one")
        new = target.run("map", "one")
        before, after = target.memory(old), target.memory(new)
        assert before[0] == b"1" * PAGE_SIZE and after[0] == b"X" * PAGE_SIZE
        _, information = mirror(target.pid, tmp_path / "mirror")
        assert pages_of(tmp_path / "mirror", old) == before
        assert pages_of(tmp_path / "mirror", new) == after
    assert information["verified"] and information["unmirrored"] == []


class NoSink(PageSink):
    """Takes what a state reports, and sends nothing."""

    def declare(self, number: int, kind: str) -> None:
        """See PageSink."""

    def zero(self, number: int, firsts: Any, counts: Any) -> None:
        """See PageSink."""


def test_a_file_is_copied_up_during_the_mirror(tmp_path: Path) -> None:
    """The mapping keeps the old contents, which are read through it in the last pass."""
    base = tmp_path / "files"
    base.mkdir()
    with program("overlay", base, "one") as target:
        state = MirrorState(NoSink(), scan=scan_supported())  # type: ignore[abstract]
        try:
            state.sync({1: target.pid}, None)
            space = state.spaces[1]
            assert space.direct_vmas == []
            target.run("copy-up", "one")
            state.sync({1: target.pid}, None, last=True)
            assert [v.start for v in space.direct_vmas] == [target.areas["one"]]
            pages = set(range(target.areas["one"] // PAGE_SIZE, PAGES))
            assert pages <= set(page_numbers(space.pending).tolist())
            assert state.unmirrored() == []
        finally:
            state.close()


def test_pages_that_their_file_system_cannot_read(tmp_path: Path) -> None:
    base = tmp_path / "files"
    base.mkdir()
    with program("fuse", base, "one", "bad") as target:
        done, information = mirror(target.pid, tmp_path / "mirror")
        bad = target.areas["bad"]
        memory, copy = target.memory(bad), pages_of(tmp_path / "mirror", bad)
        assert copy[:BAD_PAGE] == memory[:BAD_PAGE]
        assert memory[BAD_PAGE:] == [None] * (PAGES - BAD_PAGE)
        assert copy[BAD_PAGE:] == [bytes(PAGE_SIZE)] * (PAGES - BAD_PAGE)
    (entry,) = information["unmirrored"]
    assert entry == {
        "pid": target.pid,
        "start": f"{bad + BAD_PAGE * PAGE_SIZE:#x}",
        "end": f"{bad + PAGES * PAGE_SIZE:#x}",
        "path": f"{base}/merged/bad",
        "pages": PAGES - BAD_PAGE,
        "reason": "cannot be read",
    }
    assert not information["verified"] and information["digest"]
    assert f"{PAGES - BAD_PAGE} pages could not be read" in done.lines[-1]
    assert "; verified" not in done.lines[-1]


SECRET = """
import ctypes, mmap, os, sys
fd = ctypes.CDLL(None).syscall(447, 0)
os.ftruncate(fd, 16 * 4096)
area = mmap.mmap(fd, 16 * 4096)
area.write(b"S" * len(area))
print(flush=True)
for line in sys.stdin:
    area[0] ^= 1
    print(flush=True)
"""


def test_secret_memory_is_named(tmp_path: Path) -> None:
    """Memory that only the program can read (memfd_secret) does not keep the mirror from converging."""
    fd = ctypes.CDLL(None, use_errno=True).syscall(447, 0)
    require(fd >= 0, f"no memfd_secret here: {errno.errorcode.get(ctypes.get_errno())}")
    os.close(fd)
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", SECRET], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as target:
        assert target.stdout is not None
        try:
            target.stdout.readline()
            done, information = mirror(target.pid, tmp_path / "mirror")
        finally:
            target.kill()
    (entry,) = information["unmirrored"]
    assert (entry["pages"], entry["reason"]) == (16, "cannot be read"), entry
    assert "secretmem" in entry["path"]
    assert not information["verified"]
    assert "16 pages could not be read" in done.lines[-1]


def test_secret_memory_is_not_counted_as_zero(tmp_path: Path) -> None:
    fd = ctypes.CDLL(None, use_errno=True).syscall(447, 0)
    require(fd >= 0, f"no memfd_secret here: {errno.errorcode.get(ctypes.get_errno())}")
    os.close(fd)
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", SECRET], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as target:
        assert target.stdout is not None
        try:
            target.stdout.readline()
            done = run_redirty(
                "record", "-p", target.pid, "200ms", "2", "--zeros", "-o", tmp_path / "r"
            )
        finally:
            target.kill()
    assert done.code == 0, done
    with (tmp_path / "r" / "zeros.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["unread_pages"] != "0"]
    found = [(r["present_pages"], r["unread_pages"], r["zero_pages"]) for r in rows]
    assert ("16", "16", "0") in found


BEHIND = """
import ctypes, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 8 * 4096)
area = mmap.mmap(fd, 8 * 4096)
area.write(b"x" * len(area))
os.ftruncate(fd, 3 * 4096 + 5)
print(flush=True)
sys.stdin.read()
"""


def test_behind_the_end_of_a_truncated_file(tmp_path: Path) -> None:
    """The program gets SIGBUS there itself: nothing is missing, and the list says so."""
    words = [sys.executable, "-I", "-S", "-c", BEHIND, str(tmp_path / "file")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as target:
        assert target.stdout is not None
        try:
            target.stdout.readline()
            done, information = mirror(target.pid, tmp_path / "mirror")
        finally:
            target.kill()
    (entry,) = information["unmirrored"]
    assert (entry["pages"], entry["reason"]) == (4, "behind the end of the file"), entry
    assert information["verified"] and "verified" in done.lines[-1]
    assert "could not be read" not in done.lines[-1]
