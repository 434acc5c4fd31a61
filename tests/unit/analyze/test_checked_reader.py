"""Tests of the reader that all loaders share: kinds of files, sizes, and what the schema refuses."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from redirty.collector import checked_files, json_text
from redirty.collector.analyze import load, schema, tables
from redirty.collector.cli import main as cli
from redirty.collector.errors import RedirtyError
from redirty.collector.recording import columns
from redirty.tui.readers.recording import LoadedRecording, first_rounds

from tests.support.mutations import limited_memory
from tests.support.paths import ROOT, TESTS

REDIS = TESTS / "data" / "redis"
FILES = sorted(path.name for path in REDIS.iterdir())
READERS: dict[str, Callable[[Path], object]] = {
    "stacks.folded": load.load_folded_stacks,
    "events.parquet": load.load_events,
    "meta.json": load.load_meta,
}


@pytest.fixture
def rec(tmp_path: Path) -> Path:
    """Copy a real recording."""
    return Path(shutil.copytree(REDIS, tmp_path / "rec"))


def reader_of(name: str) -> Callable[[Path], object]:
    return READERS.get(name) or getattr(load, f"load_{name.removesuffix('.csv')}")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that has to fail with one line; return the line."""
    assert cli.main(words) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("redirty: ") and shown.err.count("\n") == 1
    return shown.err.removeprefix("redirty: ").rstrip()


# ---- what is in the place of a file ----


def a_fifo(path: Path) -> str:
    os.mkfifo(path)
    return "a FIFO"


def a_device(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "a device"


def a_directory(path: Path) -> str:
    path.mkdir()
    return "a directory"


def a_socket(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path is short
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)
    return "a socket"


@pytest.mark.parametrize("make", [a_fifo, a_device, a_directory, a_socket])
@pytest.mark.parametrize("name", FILES)
def test_no_file_in_the_place_of_one(
    name: str, make: Callable[[Path], str], rec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (rec / name).unlink()
    kind = make(rec / name)
    with pytest.raises(RedirtyError) as error:
        reader_of(name)(rec)
    line = f"cannot read {rec / name}: it is {kind}, not a regular file"
    assert str(error.value) == line
    told = []
    for words in (["report"], ["predict", "--bandwidth", "1Gbit"]):
        if cli.main([*words, str(rec)]):  # not every command reads every file
            told.append(capsys.readouterr().err)
    assert set(told) <= {f"redirty: {line}\n"}
    assert told or name == "stacks.folded"  # for other tools
    if name not in ("stacks.folded", "curve.csv", "pages.csv", "runs.csv", "working_set.csv"):
        with pytest.raises(RedirtyError) as error:
            LoadedRecording(rec)
        assert str(error.value) == line
    assert name != "rounds.csv" or first_rounds(rec) == []


@pytest.mark.parametrize("name", FILES)
def test_a_sparse_file_of_a_tebibyte_is_not_read(name: str, rec: Path) -> None:
    os.truncate(rec / name, 1 << 40)
    with limited_memory(1 << 30), pytest.raises(RedirtyError) as error:
        reader_of(name)(rec)
    assert str(error.value).startswith(f"cannot read {rec / name}: it has 1.0 TiB, more than the ")


def test_a_file_that_grows_beyond_the_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(10))
    assert checked_files.read_regular(tmp_path / "x", 10) == bytes(10)
    with pytest.raises(OSError, match="it has 10 B, more than the 9 B that are read"):
        checked_files.read_regular(tmp_path / "x", 9)


def test_a_link_is_followed_unless_told_not_to(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"here")
    (tmp_path / "link").symlink_to("x")
    assert checked_files.read_regular(tmp_path / "link", 10) == b"here"
    with pytest.raises(OSError, match="not a regular file"):
        checked_files.open_regular(tmp_path / "link", os.O_NOFOLLOW)


def test_zeros_at_the_end_are_what_a_crash_did_not_write(rec: Path) -> None:
    whole = (rec / "rounds.csv").read_bytes()
    (rec / "rounds.csv").write_bytes(whole + b"32,9" + bytes(4000))
    assert len(load.load_rounds(rec)) == 32
    (rec / "rounds.csv").write_bytes(whole[:900] + bytes(4000) + whole[900:])
    with pytest.raises(RedirtyError, match="is damaged: it has zero bytes, the first at 900"):
        load.load_rounds(rec)


# ---- values ----


def edited(rec: Path, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change a CSV file by its fields, as texts."""
    frame = change(pd.read_csv(rec / name, dtype=str, keep_default_na=False))
    frame.to_csv(rec / name, index=False, lineterminator="\r\n")


def with_value(column: str, value: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[3, column] = value
        return frame

    return change


@pytest.mark.parametrize(
    ("name", "column", "value", "fault"),
    [
        ("rounds.csv", "duration_s", "1e308", "has a value out of range: 1e+308"),
        ("rounds.csv", "duration_s", "0", "has a value out of range: 0"),
        ("rounds.csv", "start_s", "inf", "has a value that is not a number"),
        ("rounds.csv", "start_s", "nan", "has a value that is not a number"),
        ("rounds.csv", "dirty_pages", "-1", "has a value out of range: -1"),
        ("rounds.csv", "lost_events", "-1", "has a value out of range: -1"),
        ("rounds.csv", "redirtied_pages", "99999999", "is more than dirty_pages in a row"),
        ("rounds.csv", "present_pages", "1.5", "has a value that is not whole"),
        ("pages.csv", "rounds_dirty", "-32", "has a value out of range: -32"),
        ("pages.csv", "write_faults", "35184372088833", "has a value out of range: 3.51844e+13"),
        ("pages.csv", "pid", "99999999999999999999", "has a value that is not a number"),
        ("pages.csv", "address", "-0x10", "column address: "),
        ("pages.csv", "address", "0x1" + "0" * 16, "column address: "),
        ("pages.csv", "first_round", "32", "is more than last_round in a row"),
        ("pages.csv", "mapping_class", "\x1b[2J", "has an unknown value: "),
        ("mappings.csv", "perms", "rwx", "has an unknown value: rwx"),
        ("mappings.csv", "end", "0x0", "start is more than end in a row"),
        ("curve.csv", "elapsed_s", "-1", "has a value out of range: -1"),
        ("curve.csv", "unique_dirty_pages", "inf", "has a value that is not a number"),
        ("curves.csv", "dirty_pages", "1e300", "has a value out of range: 1e+300"),
        ("curves.csv", "mapping_class", "anonymous", "has an unknown value: anonymous"),
        ("tlb.csv", "time_s", "-0.5", "has a value out of range: -0.5"),
        ("runs.csv", "rounds_from", "0", "has a value out of range: 0"),
        ("working_set.csv", "rounds", "0.5", "has a value that is not whole"),
        ("working_set.csv", "rounds", "0", "has a value out of range: 0"),
        ("stacks.csv", "pages", "", "has a value that is not a number"),
    ],
)
def test_a_value_that_no_recording_has(
    name: str, column: str, value: str, fault: str, rec: Path
) -> None:
    edited(rec, name, with_value(column, value))
    with pytest.raises(RedirtyError) as error:
        reader_of(name)(rec)
    assert str(error.value).startswith(f"{rec / name} is damaged: ")
    assert fault in str(error.value) and column in str(error.value)


@pytest.mark.parametrize("name", ["rounds.csv", "pages.csv", "mappings.csv", "runs.csv", "tlb.csv"])
def test_rows_that_occur_twice(name: str, rec: Path) -> None:
    edited(rec, name, lambda frame: pd.concat([frame, frame.head(3)]))
    with pytest.raises(RedirtyError, match=rf"{name} is damaged: row \d+ is not in order"):
        reader_of(name)(rec)


def test_sums_that_overflow(rec: Path) -> None:
    most = str(int(schema.MOST_PAGES))
    header = ",".join(columns.WORKING_SET)
    rows = "".join(f"{i},2,1,{most}\r\n" for i in range(0, 400_000, 2))
    (rec / "working_set.csv").write_text(f"{header}\r\n{rows}")
    with pytest.raises(RedirtyError, match="column dirty_pages has a sum out of range"):
        load.load_working_set(rec)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".csv")])
def test_columns_that_are_missing(name: str, rec: Path) -> None:
    table = schema.TABLES[name.removesuffix(".csv")]
    names = list(table.kinds)
    edited(rec, name, lambda frame: frame[names[: table.oldest]])
    assert list(getattr(load, f"load_{name.removesuffix('.csv')}")(rec)) == names
    edited(rec, name, lambda frame: frame[names[: table.oldest - 1]])
    with pytest.raises(RedirtyError, match=f"{name} is damaged: it has no column "):
        reader_of(name)(rec)


def test_a_column_of_a_newer_redirty_is_ignored(rec: Path) -> None:
    def with_newest(frame: pd.DataFrame) -> pd.DataFrame:
        lacking = [name for name in columns.ROUNDS if name not in frame]
        return frame.assign(**dict.fromkeys([*lacking, "newest"], ""))

    edited(rec, "rounds.csv", with_newest)
    assert len(load.load_rounds(rec)) == 32


def test_rows_with_more_fields_than_columns(rec: Path) -> None:
    text = (rec / "curve.csv").read_text().splitlines()
    (rec / "curve.csv").write_text("\r\n".join([text[0], *(f"{row},1" for row in text[1:]), ""]))
    with pytest.raises(RedirtyError, match="its rows have more fields than columns"):
        load.load_curve(rec)


# ---- Parquet ----


def rewritten(rec: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(REDIS / "events.parquet")), rec / "events.parquet")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda t: t.drop_columns(["tid"]), "it has no column tid"),
        (lambda t: t.set_column(2, "tid", pa.array(["x"] * len(t))), "column tid has values of "),
        (lambda t: t.set_column(0, "time_s", pa.array([-1.0] * len(t))), "column time_s has a "),
        (lambda t: t.set_column(0, "time_s", pa.array([float("inf")] * len(t))), "column time_s "),
        (lambda t: t.set_column(1, "pid", pa.array([None] * len(t), pa.int32())), "column pid has"),
        (lambda t: t.append_column("pid", t["pid"]), "it has column pid twice"),
    ],
)
def test_events_that_no_recording_has(
    change: Callable[[pa.Table], pa.Table], fault: str, rec: Path
) -> None:
    rewritten(rec, change)
    with pytest.raises(RedirtyError) as error:
        load.load_events(rec)
    assert str(error.value).startswith(f"{rec / 'events.parquet'} is damaged: {fault}")


@pytest.mark.parametrize("size", [0, 1, 8, 4000, -10, -1])
def test_events_that_were_cut_off(size: int, rec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (REDIS / "events.parquet").read_bytes()
    (rec / "events.parquet").write_bytes(whole[:size])
    line = refused(capsys, "report", str(rec))
    assert line.startswith(f"{rec / 'events.parquet'} is damaged: ")
    with pytest.raises(RedirtyError):
        LoadedRecording(rec)


def test_few_bytes_that_stand_for_a_billion_rows(
    rec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "memory_limit", lambda: 400_000)
    with pytest.raises(RedirtyError, match="is damaged: it has 25537 rows, too many for this mach"):
        load.load_events(rec)


# ---- JSON and the example ----


def test_numbers_of_json_are_finite(rec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rec / "meta.json"
    content = json.loads(path.read_text())
    content["target"]["odd"] = [float("nan"), float("inf"), 1.5]
    path.write_text(json.dumps(content).replace("1.5", "1e999"))
    assert cli.main(["report", "--json", str(rec)]) == 0
    shown = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert shown["target"]["odd"] == [None, None, None]
    assert (
        json_text.dump({"a": [float("-inf")], "b": (1.0, "x")}, None)
        == '{"a": [null], "b": [1.0, "x"]}'
    )


def test_the_example_says_what_is_wrong_in_one_line(rec: Path) -> None:
    edited(rec, "pages.csv", with_value("rounds_dirty", "-1"))
    example = ROOT / "docs" / "examples" / "compare_recordings.py"
    done = subprocess.run(
        [sys.executable, example, REDIS, rec], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"compare_recordings: {rec / 'pages.csv'} is damaged: column rounds_dirty has a value out of "
        "range: -1\n"
    )
