"""Perf maps: what is accepted as one, and what the lines mean."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from redirty.collector.foreign.readers import perf_map
from redirty.collector.foreign.readers.perf_map import PerfMap, parse


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"", []),
        (b"1000 10 f\n", [(0x1000, 0x10, b"f")]),
        (b"2000 10 g\n1000 10 f", [(0x1000, 0x10, b"f"), (0x2000, 0x10, b"g")]),
        (b"1000 10 void f(int, long)  \n", [(0x1000, 0x10, b"void f(int, long)")]),
        (b"0x1000 0x10 f\n", [(0x1000, 0x10, b"f")]),
        (b"1000 10\nx y z\n\n1000\n 1000 8 f\n", [(0x1000, 8, b"f")]),
        (b"\0" * 100_000, []),
        (b"1" * 100_000 + b" 1 f\n2 2 g\n", [(2, 2, b"g")]),
    ],
)
def test_lines(content: bytes, rows: list[tuple[int, int, bytes]]) -> None:
    assert parse(content) == rows


class Places(PerfMap):
    """The perf map of this process, in a directory of the test."""

    def __init__(self, directory: Path, owner: int) -> None:
        super().__init__(os.getpid(), 1, owner)
        (directory / "tmp").mkdir(exist_ok=True)
        self._places = [(str(directory), "tmp/map"), (str(directory), "tmp/none")]


def test_a_map_is_read_again_when_it_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perf_map, "_PAUSE", 0)
    names = Places(tmp_path, os.getuid())
    assert names.name_at(0x1005) == b""
    (tmp_path / "tmp/map").write_text("1000 10 f\n")
    assert (names.name_at(0x1005), names.name_at(0x1010), names.name_at(0xFFF)) == (b"f", b"", b"")
    with (tmp_path / "tmp/map").open("a") as file:
        file.write("2000 10 g\n")
    assert (names.name_at(0x2000), names.name_at(0x1005)) == (b"g", b"f")


def test_a_map_of_another_user_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf_map, "_PAUSE", 0)
    names = Places(tmp_path, os.getuid())
    (tmp_path / "tmp/map").write_text("1000 10 f\n")
    monkeypatch.setattr(names, "_owners", {os.getuid() + 1})
    assert names.name_at(0x1005) == b""
    monkeypatch.setattr(names, "_owners", {os.getuid()})
    assert names.name_at(0x1005) == b"f"


def test_only_the_start_of_a_huge_map_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perf_map, "_MAX_BYTES", 1 << 20)
    names = Places(tmp_path, os.getuid())
    with (tmp_path / "tmp/map").open("w") as file:
        file.write("1000 10 f\n")
        file.truncate(1 << 36)
    assert names.name_at(0x1005) == b"f"
    monkeypatch.setattr(perf_map, "_MAX_ROWS", 10)
    assert len(parse(b"1000 10 f\n" * 1000)) == 10
