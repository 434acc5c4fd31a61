"""Lines of /proc/PID/maps: parsed and classified, without special mappings."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redirty.collector.linux import maps
from redirty.collector.linux.maps import (
    Mapping,
    Mappings,
    MapsFile,
    appeared,
    mapping_class,
    parse,
)
from redirty.collector.pageset import empty, from_pages, page_numbers

PRIVATE, SHARED = "rw-p", "rw-s"


@pytest.mark.parametrize(
    ("perms", "path", "expected"),
    [
        (PRIVATE, "", "anon_private"),
        (PRIVATE, "[heap]", "anon_private"),
        (PRIVATE, "[stack]", "anon_private"),
        (PRIVATE, "[anon:glibc: malloc arena]", "anon_private"),
        (PRIVATE, "/anon_hugepage (deleted)", "anon_private"),
        (PRIVATE, "/usr/lib/x86_64-linux-gnu/libc.so.6", "file_private"),
        ("r-xp", "/usr/bin/python3.11", "file_private"),
        (PRIVATE, "/memfd:jit (deleted)", "file_private"),
        (PRIVATE, "/dev/nvidia0", "file_private"),
        (SHARED, "/dev/zero (deleted)", "anon_shared"),
        (SHARED, "/memfd:buffers (deleted)", "anon_shared"),
        (SHARED, "/SYSV00000000 (deleted)", "anon_shared"),
        (SHARED, "[anon_shmem:pool]", "anon_shared"),
        (SHARED, "/anon_hugepage (deleted)", "anon_shared"),
        (SHARED, "/dev/shm/segment", "file_shared"),
        (SHARED, "/var/lib/database/table 1.db", "file_shared"),
        (SHARED, "/var/lib/gone.db (deleted)", "file_shared"),
        ("r--s", "/usr/share/locale/cache", "file_shared"),
        (SHARED, "/dev/dri/card0", "file_shared"),
        (SHARED, "/home/memfd:x", "file_shared"),
        ("---p", "", "anon_private"),
    ],
)
def test_classes(perms: str, path: str, expected: str) -> None:
    assert mapping_class(perms, path) == expected
    assert expected in maps.CLASSES


TEXT = """\
00400000-00452000 r-xp 00000000 08:02 173521                             /usr/bin/dbus-daemon
7f0000000000-7f0000021000 rw-p 00000000 00:00 0 
7f0000100000-7f0000200000 rw-s 00000000 00:01 1234                       /memfd:my buffer (deleted)
7f0000200000-7f0000201000 rw-s 00000000 08:02 99                         /srv/two  spaces\\012line (deleted)
7f0000300000-7f0000301000 rw-p 00000000 00:00 0                          [anon:scudo: primary]
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
7ffc00100000-7ffc00104000 r--p 00000000 00:00 0                          [vvar]
7ffc00104000-7ffc00106000 r--p 00000000 00:00 0                          [vvar_vclock]
7ffc00106000-7ffc00108000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""  # noqa: W291 - as the kernel writes them


def test_lines() -> None:
    assert [(m.start, m.end, m.perms, m.path) for m in parse(TEXT.encode())] == [
        (0x400000, 0x452000, "r-xp", "/usr/bin/dbus-daemon"),
        (0x7F0000000000, 0x7F0000021000, "rw-p", ""),
        (0x7F0000100000, 0x7F0000200000, "rw-s", "/memfd:my buffer (deleted)"),
        (0x7F0000200000, 0x7F0000201000, "rw-s", "/srv/two  spaces\\012line (deleted)"),
        (0x7F0000300000, 0x7F0000301000, "rw-p", "[anon:scudo: primary]"),
        (0x7FFC00000000, 0x7FFC00021000, "rw-p", "[stack]"),
    ]


@pytest.mark.parametrize("separator", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_a_name_may_hold_what_ends_a_line_elsewhere(separator: str) -> None:
    """Lines are split at newlines alone, as the kernel escapes nothing else in paths."""
    path = f"/srv/a{separator}b"
    line = f"7f0000200000-7f0000201000 rw-s 00000000 08:02 99    {path}\n"
    assert [m.path for m in parse((line * 2).encode())] == [path, path]


def test_addresses_of_57_bits() -> None:
    (mapping,) = parse(b"fffffffffff000-100000000000000 rw-p 00000000 00:00 0 \n")
    found = Mappings.of((mapping,))
    assert found.starts.tolist() == [0xFFFFFFFFFFF]
    assert found.ends.tolist() == [0x100000000000]


def test_an_empty_file() -> None:
    assert parse(b"") == ()
    assert Mappings.of(()).starts.shape == (0,)


def test_mappings_that_appeared() -> None:
    def of(*bounds: tuple[int, int], perms: str = "rw-p") -> tuple[Mapping, ...]:
        return tuple(Mapping(a << 12, b << 12, perms, "") for a, b in bounds)

    before = Mappings.of((*of((1, 4)), *of((6, 8)), *of((10, 12), perms="---p")))

    def found(*items: Mapping) -> list[tuple[int, int]]:
        new = appeared(before, Mappings.of(items)).items
        return [(m.start >> 12, m.end >> 12) for m in new]

    assert found(*before.items) == found() == found(*of((1, 3))) == []
    assert found(*of((1, 5), (20, 22))) == [(4, 5), (20, 22)]
    assert found(*of((0, 9))) == [(0, 1), (4, 6), (8, 9)]
    assert found(*of((1, 4), (10, 12))) == [(10, 12)]
    assert found(*of((7, 8), perms="r--p")) == [(7, 8)]


def test_pages_of_a_kind() -> None:
    found = Mappings.of(
        (
            Mapping(0x1000, 0x3000, "r-xp", "/bin/x"),
            Mapping(0x3000, 0x4000, "rw-p", ""),
            Mapping(0x4000, 0x5000, "r--s", "/data"),
            Mapping(0x5000, 0x6000, "rw-s", "/data"),
            Mapping(0x6000, 0x8000, "rw-p", "/bin/x"),
            Mapping(0x8000, 0x9000, "r--s", "/dev/zero (deleted)"),
        )
    )
    every = from_pages(np.arange(0, 1 << 20, dtype=np.uint64))

    def numbers(**chosen: Any) -> list[int]:
        return [int(p) for p in page_numbers(found.pages_of(every, **chosen))]

    assert numbers(private_file=True) == [1, 2, 6, 7]
    assert numbers(read_only_shared=found.items) == [4, 8]
    assert numbers(read_only_shared=found.items[:1]) == []
    assert numbers() == []
    assert page_numbers(found.pages_of(empty(), private_file=True)).tolist() == []


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ([(1, 3), (3, 5)], [(1, 3), (3, 5)]),  # neighbours stay apart
        ([(1, 4), (3, 6)], [(1, 4), (4, 6)]),  # it grew between two reads
        ([(1, 6), (2, 4)], [(1, 6)]),  # it merged, and its part was read before
        ([(1, 3), (1, 3)], [(1, 3)]),  # read twice
        ([(4, 6), (1, 5)], [(1, 5), (5, 6)]),
    ],
)
def test_a_list_that_changed_while_it_was_read(
    bounds: list[tuple[int, int]], expected: list[tuple[int, int]]
) -> None:
    items = tuple(Mapping(a << 12, b << 12, PRIVATE, "") for a, b in bounds)
    found = maps._ascending(Mappings.of(items))
    assert [(m.start >> 12, m.end >> 12) for m in found.items] == expected
    pages = list(zip(found.starts.tolist(), found.ends.tolist(), strict=True))
    assert pages == expected


def test_the_file_of_this_process(tmp_path: Path) -> None:
    odd = tmp_path / "a file, with (odd) name.bin"
    odd.write_bytes(bytes(8192))
    maps_file = MapsFile(os.getpid())
    try:
        with odd.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as memory:
            array = np.frombuffer(memory, np.uint8)
            found = maps_file.read()
            assert found is not None
            (mine,) = (m for m in found.items if m.path == str(odd))
            assert (mine.start, mine.end) == (array.ctypes.data, array.ctypes.data + 8192)
            assert mine.mapping_class == "file_shared"
            assert (found.starts[1:] >= found.ends[:-1]).all()
            odd.unlink()
            found = maps_file.read()
            assert found is not None
            assert any(m.path == f"{odd} (deleted)" for m in found.items)
            del array
        libc = ctypes.CDLL(None).printf
        inside = ctypes.cast(libc, ctypes.c_void_p).value or 0
        (code,) = (m for m in found.items if m.start <= inside < m.end)
        assert code.mapping_class == "file_private"
    finally:
        maps_file.close()


def test_an_unchanged_list_is_not_parsed_again() -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    try:
        assert child.stdin and child.stdout
        child.stdin.write(b"x")
        child.stdout.read(1)  # it has started, and maps nothing new from now on
        maps_file = MapsFile(child.pid)
        first = maps_file.read()
        assert first is not None
        assert maps_file.read() is first
        child.kill()
        child.wait()
        assert maps_file.read() is None, "that memory is gone"
        maps_file.close()
    finally:
        child.kill()
        child.communicate()


def test_memory_before_an_exec_is_not_taken_for_memory_after_it() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import os; input(); os.execvp('sleep', ['sleep', '60'])"],
        stdin=subprocess.PIPE,
    )
    try:
        maps_file = MapsFile(child.pid)
        assert maps_file.read() is not None
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.close()
        while maps_file.read() is not None:
            assert child.poll() is None, "it ended instead"
        maps_file.close()
    finally:
        child.kill()
        child.wait()
