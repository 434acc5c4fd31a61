"""A disk that fills up: rows stay whole, files that were there stay, nothing useless is left."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from redirty.collector.errors import RedirtyError
from redirty.collector.export import files
from redirty.collector.export.recording import Recording

from tests.unit.made_up import meta, one_round, pages


@pytest.fixture
def filling_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """os.write takes as many bytes as there is room for, then fails as a full disk does."""
    room = [1 << 40]
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(fd, bytes(data)[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", write)
    yield room


@pytest.mark.parametrize("room", [0, 1, 5, 13])
def test_a_full_disk_leaves_whole_rows(room: int, tmp_path: Path, filling_disk: list[int]) -> None:
    path = tmp_path / "x.csv"
    file = files.CsvFile(path, ("a", "b"))
    file.append([(1, 2), (3, None)])
    whole = path.read_bytes()
    assert whole == b"a,b\r\n1,2\r\n3,\r\n"
    filling_disk[0] = room
    with pytest.raises(RedirtyError, match=r"cannot write .*ENOSPC.*is kept"):
        file.append([(4, 5), (6, 7), (8, 9)])
    assert path.read_bytes() == whole
    filling_disk[0] = 1 << 40
    file.append([(10, 11)])
    file.close()
    assert path.read_bytes() == whole + b"10,11\r\n"


def test_a_full_disk_keeps_the_file_that_was_to_be_replaced(
    tmp_path: Path, filling_disk: list[int]
) -> None:
    path = tmp_path / "pages.csv"
    files.replace(path, [b"old"])
    filling_disk[0] = 3
    with pytest.raises(RedirtyError, match="ENOSPC"):
        files.replace(path, [b"new and ", b"longer"])
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["pages.csv"], "nothing is left beside it"


def test_a_disk_that_fills_up_in_a_round_keeps_the_rounds_before(
    tmp_path: Path, filling_disk: list[int]
) -> None:
    directory = tmp_path / "rec"
    made = Recording(directory, meta())
    made.add(one_round(0, log=pages(16), missed=pages(), present=pages()))
    before = {p.name: p.read_bytes() for p in directory.iterdir()}
    filling_disk[0] = 10
    with pytest.raises(RedirtyError, match="kept"):
        made.add(one_round(1, log=pages(16, 17), missed=pages(), present=pages()))
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == before
    assert len(pd.read_csv(directory / "rounds.csv")) == made.rounds == 1
