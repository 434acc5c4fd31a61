"""Tests of the files of a recording: promised columns, whole rows, and modes."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from redirty.collector import files
from redirty.collector.analyze import load, summary
from redirty.collector.errors import RedirtyError
from redirty.collector.folders import Folder
from redirty.collector.pageset import empty
from redirty.collector.recording import columns, writer
from redirty.collector.recording.stacks import StackFile
from redirty.collector.recording.writer import RecordingWriter, page_classes
from redirty.collector.tracking.rounds import Round, SpaceRound

from tests.support.factories import EVERYTHING, MAPPINGS, meta, one_round, pages
from tests.support.older_recording import drop_columns

# What scripts of users rely on, spelled out: a change here breaks them.
PROMISED = {
    "rounds.csv": "round, start_s, duration_s, arm_s, present_pages, dirty_pages, redirtied_pages, "
    "new_pages, log_pages, scan_pages, missed_pages, write_faults, lost_events, tlb_flushes, "
    "tlb_flush_s",
    "mappings.csv": "round, pid, start, end, perms, mapping_class, path, present_pages, "
    "dirty_pages, redirtied_pages, write_faults",
    "pages.csv": "pid, address, mapping_class, rounds_dirty, rounds_redirtied, write_faults, "
    "first_round, last_round",
    "curve.csv": "pid, elapsed_s, unique_dirty_pages",
    "tlb.csv": "round, pid, reason, flushes, pages, time_s",
    "runs.csv": "pid, rounds_from, rounds_to, runs, runs_going_on",
    "working_set.csv": "first_round, rounds, pid, dirty_pages",
    "curves.csv": "round, rounds, mapping_class, elapsed_s, dirty_pages, redirtied_pages",
}
META = {
    "schema", "redirty", "kernel", "page_size", "target", "probe", "arm", "started", "interval_s",
    "complete",
}  # fmt: skip


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Write a recording of two rounds."""
    directory = tmp_path / "rec"
    made = RecordingWriter(directory, meta())
    made.add(one_round(0, log=pages(16, 17, 33), missed=pages(), present=pages()))
    made.add(one_round(1, log=pages(16, 48), missed=pages(34), present=pages(16, 17, 33)))
    made.close(complete=True)
    return directory


def header(path: Path) -> list[str]:
    return path.read_bytes().split(b"\r\n")[0].decode().split(",")


def test_columns_are_as_promised_and_new_ones_come_after(recorded: Path) -> None:
    declared = {
        "rounds.csv": columns.ROUNDS,
        "mappings.csv": columns.MAPPINGS,
        "pages.csv": columns.PAGES,
        "curve.csv": columns.CURVE,
        "tlb.csv": columns.TLB,
        "runs.csv": columns.RUNS,
        "working_set.csv": columns.WORKING_SET,
        "curves.csv": columns.CURVES,
    }
    for name, text in PROMISED.items():
        promised = text.split(", ")
        assert header(recorded / name)[: len(promised)] == promised
        assert header(recorded / name) == list(declared[name])
    assert columns.EVENTS == ("time_s", "pid", "tid", "address", "ip", "kind", "stack_id")
    assert set(json.loads((recorded / "meta.json").read_text())) >= META


def test_every_row_has_every_column_and_pandas_reads_it_with_no_options(recorded: Path) -> None:
    for name in PROMISED:
        rows = list(csv.reader(io.StringIO((recorded / name).read_text(), newline="")))
        assert {len(row) for row in rows} == {len(rows[0])}, name
        assert len(pd.read_csv(recorded / name)) == len(rows) - 1 > 0


def test_rounds(recorded: Path) -> None:
    table = pd.read_csv(recorded / "rounds.csv")
    assert table["round"].tolist() == [0, 1]
    assert table["start_s"].tolist() == [0.0, 1.0]
    assert table["arm_s"].tolist() == [0.0004, 0.0004]
    assert table["present_pages"].tolist() == [0, 3]
    assert table["dirty_pages"].tolist() == [3, 3]
    assert table["redirtied_pages"].tolist() == [0, 1]
    assert table["new_pages"].tolist() == [3, 2]
    assert table["log_pages"].tolist() == [3, 2]
    assert table["scan_pages"].tolist() == [3, 3]
    assert table["missed_pages"].tolist() == [0, 1]
    assert table["write_faults"].tolist() == [10, 10]
    assert table["lost_events"].tolist() == [3, 3]
    assert table["tlb_flushes"].tolist() == [5, 5]
    assert table["tlb_flush_s"].tolist() == [2.0, 2.0]
    assert table["first_touch_faults"].tolist() == [6, 6]
    assert table["cow_faults"].tolist() == [3, 3]
    assert table["huge_faults"].tolist() == [1, 1]


def test_pages(recorded: Path) -> None:
    table = pd.read_csv(recorded / "pages.csv")
    rows = table.set_index("address").to_dict("index")
    assert list(rows) == ["0x10000", "0x11000", "0x21000", "0x22000", "0x30000"]
    assert rows["0x10000"] == {
        "pid": 4321, "mapping_class": "anon_private", "rounds_dirty": 2, "rounds_redirtied": 1,
        "write_faults": 2, "first_round": 0, "last_round": 1, "runs": 1,
    }  # fmt: skip
    assert rows["0x22000"]["write_faults"] == 0, "it was missed: no fault was logged"
    assert [rows[a]["mapping_class"] for a in ("0x21000", "0x30000")] == [
        "file_shared",
        "file_private",
    ]


def test_mappings_come_when_they_are_new_and_when_they_are_written(recorded: Path) -> None:
    table = pd.read_csv(recorded / "mappings.csv", keep_default_na=False)
    assert table["round"].tolist() == [0, 0, 0, 1, 1, 1]
    assert table["start"].tolist()[:3] == ["0x10000", "0x20000", "0x30000"]
    assert table["dirty_pages"].tolist() == [2, 1, 0, 1, 1, 1]
    assert table["redirtied_pages"].tolist() == [0, 0, 0, 1, 0, 0]
    assert table["write_faults"].tolist() == [2, 1, 0, 1, 0, 1]


def test_paths_survive_csv(recorded: Path) -> None:
    """Fields are quoted as RFC 4180 says when they contain a comma, a quote or a line break."""
    raw = (recorded / "mappings.csv").read_bytes()
    assert b'"/srv/a ""quoted"", name\nof lines"' in raw
    assert raw.decode("utf-8"), "valid UTF-8 whatever the path's bytes were"
    table = pd.read_csv(recorded / "mappings.csv")
    assert table["path"][1] == '/srv/a "quoted", name\nof lines'
    assert table["path"][2] == "/srv/raw ?? bytes"
    for line in (raw.split(b"\r\n"))[:-1]:
        assert line, "lines end with CR LF"


def test_a_report_shows_a_path_on_one_line(recorded: Path) -> None:
    text = summary.as_text(summary.summarise(recorded))
    (line,) = (line for line in text.splitlines() if "quoted" in line)
    assert line.endswith('0x20000 /srv/a "quoted", name of lines')


def test_tlb(recorded: Path) -> None:
    table = pd.read_csv(recorded / "tlb.csv")
    first = table[table["round"] == 0].set_index("reason")
    assert first.loc["flush_tlb_mm_range", "time_s"] == 2.0
    assert first.loc["flush_tlb_mm_range", "flushes"] == 5
    assert first["time_s"].isna()["local_mm_shootdown"], "not timed: empty, not 0"
    assert first.loc["local_mm_shootdown", "pages"] == 6
    whole = first.loc["flush_tlb_mm_range"]
    assert (whole["full_flushes"], whole["ranges"], whole["cpus"]) == (1, 4, 9)
    arms = ("flushes", "pages", "time_s", "full_flushes", "ranges", "cpus")
    assert [whole[f"arm_{name}"] for name in arms] == [1, 0, 0.5, 1, 0, 3]
    assert first.loc["remote_shootdown", "flushes"] == 0, "all of them the arm's"
    assert first.loc["remote_shootdown", "arm_flushes"] == 3
    assert first["cpus"].isna()["remote_shootdown"], "counted of whole flushes"


def test_columns_that_this_kernel_cannot_fill_are_empty(tmp_path: Path) -> None:
    made = RecordingWriter(tmp_path / "rec", meta(frozenset({"write_faults"})))
    result = one_round(0, log=pages(16), missed=pages(), present=pages())
    (space,) = result.spaces
    blind = SpaceRound(**{**space.__dict__, "scanned_pages": None})
    made.add(Round(0, 0.0, 1.0, 0.0, (blind,), result.stats))
    made.close(complete=True)
    (row,) = csv.DictReader(io.StringIO((tmp_path / "rec/rounds.csv").read_text()))
    unknown = {name for name, value in row.items() if value == ""}
    assert unknown == {
        "scan_pages", "missed_pages", "tlb_flushes", "tlb_flush_s", "first_touch_faults",
        "write_protect_faults", "cow_faults", "mkwrite_faults", "huge_faults",
        "dirty_frames", "frameless_pages", "stayed_dirty_pages",
        "present_once_pages", "dirty_once_pages", "redirtied_once_pages", "busiest_thread_s",
    }  # fmt: skip


def test_first_touch_is_the_rest_where_it_has_no_probe() -> None:
    result = one_round(0, log=pages(16), missed=pages(), present=pages())
    row = writer.round_row(result, EVERYTHING - {"first_touch"})
    assert row["first_touch_faults"] == 10 - 4
    assert row.keys() == set(columns.ROUNDS)


def test_flushes_counted_by_the_tracepoint_alone_have_no_time() -> None:
    result = one_round(0, log=pages(16), missed=pages(), present=pages())
    assert writer.tlb_totals(result.stats["tlb"], frozenset({"tlb"})) == (4, None)


def test_files_are_for_their_owner_only(recorded: Path) -> None:
    old = os.umask(0)
    try:
        other = RecordingWriter(recorded.parent / "other", meta())
        other.add(one_round(0, log=pages(16), missed=pages(), present=pages()))
        other.close(complete=True)
    finally:
        os.umask(old)
    for directory in (recorded, recorded.parent / "other"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        found = {p.name: stat.S_IMODE(p.stat().st_mode) for p in directory.iterdir()}
        assert found == dict.fromkeys([*PROMISED, "meta.json"], 0o600)


def test_a_recording_is_valid_and_incomplete_until_it_is_closed(tmp_path: Path) -> None:
    directory = tmp_path / "rec"
    made = RecordingWriter(directory, meta())
    assert json.loads((directory / "meta.json").read_text())["complete"] is False
    made.add(one_round(0, log=pages(16), missed=pages(), present=pages()))
    assert len(pd.read_csv(directory / "rounds.csv")) == 1
    assert json.loads((directory / "meta.json").read_text())["complete"] is False
    made.close(complete=True, extra={"stopped_s": 0.5})
    content = json.loads((directory / "meta.json").read_text())
    assert (content["complete"], content["rounds"], content["stopped_s"]) == (True, 1, 0.5)


def test_a_directory_that_is_there_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(RedirtyError, match="exists already"):
        RecordingWriter(tmp_path, meta())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RedirtyError, match="does not exist"):
        RecordingWriter(tmp_path / "no" / "rec", meta())


# ---- parts ----


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("plain", b"plain"),
        ("a,b", b'"a,b"'),
        ('say "x"', b'"say ""x"""'),
        ("two\nlines", b'"two\nlines"'),
        ("cr\rhere", b'"cr\rhere"'),
        ("käse 🧀", "käse 🧀".encode()),
        ("\udc80", b"?"),
        (None, b'""'),
        (0, b"0"),
    ],
)
def test_fields(value: object, field: bytes) -> None:
    assert files.csv_bytes([(value,)]) == field + b"\r\n"


def test_fields_survive_a_round_trip() -> None:
    row = ["", "a,b", '"', "\r\n", " x ", "'", "#", "=1+1", "\t"]
    text = files.csv_bytes([row]).decode()
    assert list(csv.reader(io.StringIO(text, newline=""))) == [row]


def test_json_with_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    files.write_json(Folder.hold(tmp_path), "x.json", {"comm": "a\udcffb", "n": 1})
    assert json.loads((tmp_path / "x.json").read_bytes()) == {"comm": "a?b", "n": 1}


def test_classes_of_pages_in_no_mapping_any_more() -> None:
    numbers = np.array([0x0F, 0x10, 0x1F, 0x20, 0x30, 0x31, 1 << 40], np.uint64)
    assert page_classes(numbers, MAPPINGS) == [
        "", "anon_private", "anon_private", "file_shared", "file_private", "", "",
    ]  # fmt: skip
    assert page_classes(numbers, None) == [""] * 7


class Stacks:
    """A StackSource whose counts are returned once."""

    def __init__(self) -> None:
        self.rounds = [
            [(77, 1, 5), (77, -14, 2), (78, 2, 1)],
            [(77, 1, 4), (77, 3, 1)],
        ]  # stack 3 no longer exists

    def take_stacks(self) -> list[tuple[int, int, int]]:
        return self.rounds.pop(0) if self.rounds else []

    def stack(self, stack_id: int) -> list[int]:
        return {1: [0x3, 0x2, 0x1], 2: [0x9]}.get(stack_id, [])


class Names:
    """A Namer that names only what was requested, and only once it was waited for."""

    def __init__(self) -> None:
        self.known: set[tuple[int, int]] = set()
        self.asked: set[tuple[int, int]] = set()

    def request(self, pid: int, addresses: Sequence[int]) -> None:
        self.asked |= {(pid, address) for address in addresses}

    def poll(self) -> None:
        pass

    def finish(self) -> None:
        self.known |= self.asked

    def hurry(self) -> None:
        pass

    def close(self) -> None:
        self.asked.clear()

    def name(self, pid: int, address: int) -> str:
        return f"f{address}" if (pid, address) in self.known else "too early"


def test_stacks_are_folded_with_the_writer_last(tmp_path: Path) -> None:
    file = StackFile(Folder.hold(tmp_path), Stacks(), Names(), {77: "a;\rb"})
    file.poll()
    file.close()
    assert (tmp_path / "stacks.folded").read_text().splitlines() == [
        "a: b;f1;f2;f3 9",
        "a: b;[stack unknown] 3",
        "pid 78;f9 1",
    ]
    folded = load.load_folded_stacks(tmp_path)
    assert folded["stack"].tolist() == ["a: b;f1;f2;f3", "a: b;[stack unknown]", "pid 78;f9"]
    assert folded["pages"].tolist() == [9, 3, 1]
    table = load.load_stacks(tmp_path)
    assert table is not None
    assert table["stack_id"].fillna(-1).tolist() == [1, -1, 2, 3]
    assert table["pid"].tolist() == [77, 77, 78, 77]
    assert table["pages"].tolist() == [9, 2, 1, 1]
    assert table["stack"].tolist()[:2] == ["a: b;f1;f2;f3", "a: b;[stack unknown]"]


NEWER = {"rounds": "stayed_dirty_pages", "mappings": "stayed_dirty_pages", "pages": "runs"}


def test_a_recording_of_an_older_redirty_loads(recorded: Path) -> None:
    """Columns that an older redirty did not write are empty, never 0."""
    for name, first in NEWER.items():
        drop_columns(recorded, name, first)
    (recorded / "runs.csv").unlink()
    (recorded / "working_set.csv").unlink()
    assert load.load_pages(recorded)["runs"].isna().all()
    assert load.load_rounds(recorded)["stayed_dirty_pages"].isna().all()
    assert load.load_mappings(recorded)["stayed_dirty_pages"].isna().all()
    assert load.load_runs(recorded).empty
    assert load.load_working_set(recorded).empty
    assert load.load_stacks(recorded) is None
    assert summary.as_text(summary.summarise(recorded))


def test_an_empty_set_of_pages_has_no_rows(tmp_path: Path) -> None:
    made = RecordingWriter(tmp_path / "rec", meta())
    made.add(one_round(0, log=empty(), missed=empty(), present=empty()))
    made.close(complete=True)
    assert len(pd.read_csv(tmp_path / "rec/pages.csv")) == 0
