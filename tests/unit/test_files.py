"""Tests of a full disk: rows stay whole, old files are kept, no useless file is left behind."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from redirty.collector import files
from redirty.collector.analyze.load import load_events
from redirty.collector.bpf import ringbuf
from redirty.collector.errors import RedirtyError
from redirty.collector.folders import Folder
from redirty.collector.recording import events
from redirty.collector.recording.events import EventFile
from redirty.collector.recording.writer import RecordingWriter

from tests.support.factories import meta, one_round, pages


@pytest.fixture
def filling_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let os.write accept a number of bytes, then fail as a full disk does; yields that number."""
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


def test_a_record_has_exactly_the_columns_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    file = files.CsvFile(Folder.hold(tmp_path), path.name, ("a", "b"))
    file.append_record({"b": 2, "a": 1})
    for wrong in ({"a": 1}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "B": 2}):
        with pytest.raises(ValueError, match=r"x\.csv"):
            file.append_record(wrong)
    file.close()
    assert path.read_bytes() == b"a,b\r\n1,2\r\n"


@pytest.mark.parametrize("room", [0, 1, 5, 13])
def test_a_full_disk_leaves_whole_rows(room: int, tmp_path: Path, filling_disk: list[int]) -> None:
    path = tmp_path / "x.csv"
    file = files.CsvFile(Folder.hold(tmp_path), path.name, ("a", "b"))
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
    files.replace(Folder.hold(tmp_path), path.name, [b"old"])
    filling_disk[0] = 3
    with pytest.raises(RedirtyError, match="ENOSPC"):
        files.replace(Folder.hold(tmp_path), path.name, [b"new and ", b"longer"])
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["pages.csv"], "no temporary file is left"


def test_a_disk_that_fills_up_in_a_round_keeps_the_rounds_before(
    tmp_path: Path, filling_disk: list[int]
) -> None:
    directory = tmp_path / "rec"
    made = RecordingWriter(directory, meta())
    made.add(one_round(0, log=pages(16), missed=pages(), present=pages()))
    before = {p.name: p.read_bytes() for p in directory.iterdir()}
    filling_disk[0] = 10
    with pytest.raises(RedirtyError, match="kept"):
        made.add(one_round(1, log=pages(16, 17), missed=pages(), present=pages()))
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == before
    assert len(pd.read_csv(directory / "rounds.csv")) == made.rounds == 1


@pytest.mark.parametrize("room", [0, 10, 600, 850])
def test_a_recording_that_cannot_be_started_leaves_nothing_behind(
    room: int, tmp_path: Path, filling_disk: list[int]
) -> None:
    filling_disk[0] = room
    with pytest.raises(RedirtyError, match="ENOSPC"):
        RecordingWriter(tmp_path / "rec", meta())
    assert list(tmp_path.iterdir()) == []


# ---- each file is tried ----


def failing(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let files of these names fail with ENOSPC, and no others."""
    real = files.replace

    def replace(folder: Folder, name: str, blocks: Iterable[bytes]) -> None:
        if name in names:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise files.write_error(folder.path / name, full)
        real(folder, name, blocks)

    monkeypatch.setattr(files, "replace", replace)


@pytest.mark.parametrize(
    ("names", "reported"),
    [
        (["pages.csv"], "pages.csv"),
        (["curve.csv"], "curve.csv"),
        (["pages.csv", "curve.csv"], "pages.csv"),
        (["curve.csv", "meta.json"], "curve.csv"),
    ],
)
def test_each_file_is_tried_and_the_first_error_is_raised(
    names: list[str], reported: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "rec"
    made = RecordingWriter(directory, meta())
    made.add(one_round(0, log=pages(16), missed=pages(), present=pages()))
    failing(monkeypatch, *names)
    with pytest.raises(RedirtyError, match=f"{reported}: .*ENOSPC"):
        made.close(complete=True)
    for name in ("pages.csv", "curve.csv"):
        assert (directory / name).exists() == (name not in names)
    content = json.loads((directory / "meta.json").read_text())
    assert content["complete"] is False, "not all of it is there"
    assert content["rounds"] == ("meta.json" not in names)


# ---- events ----


@pytest.fixture
def room_for_files() -> Iterator[Callable[[int], None]]:
    """Yield a function that limits the size of files: Arrow writes without Python, so only the kernel can fail it."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def records(count: int) -> npt.NDArray[np.void]:
    """Make events at random addresses, which do not compress."""
    made = np.zeros(count, ringbuf.RECORD)
    made["ns"] = np.arange(count) + 1000
    made["address"] = np.random.default_rng(count).integers(0, 1 << 47, count)
    return made


def test_no_events_leave_no_parts(tmp_path: Path) -> None:
    file = EventFile(Folder.hold(tmp_path), 0)
    assert list(tmp_path.iterdir()) == []
    file.close()
    assert [p.name for p in tmp_path.iterdir()] == ["events.parquet"]


def test_events_that_do_not_fit_leave_nothing_behind(
    tmp_path: Path, room_for_files: Callable[[int], None]
) -> None:
    file = EventFile(Folder.hold(tmp_path), 0)
    file.add(records(100_000))
    room_for_files(4096)
    with pytest.raises(RedirtyError, match=r"part-00000.parquet: File too large \(EFBIG\)"):
        file.close()
    assert list(tmp_path.iterdir()) == []
    # The events are still waiting: there may be room again.
    room_for_files(1 << 30)
    file.close()
    assert [p.name for p in tmp_path.iterdir()] == ["events.parquet"]
    assert len(load_events(tmp_path)) == 100_000


def test_parts_are_kept_when_they_cannot_be_joined(
    tmp_path: Path, room_for_files: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_ROWS_A_PART", 1000)
    file = EventFile(Folder.hold(tmp_path), 0)
    for _ in range(20):
        file.add(records(1000))
    room_for_files(100_000)
    with pytest.raises(RedirtyError, match=r"events.parquet: File too large"):
        file.close()
    assert {p.name for p in tmp_path.iterdir()} == {".events"}
    assert len(load_events(tmp_path)) == 20_000


def test_no_room_for_the_directory_of_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = EventFile(Folder.hold(tmp_path), 0)
    file.add(records(10))
    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(RedirtyError, match="ENOSPC"):
        file.close()
