"""Tests of recordings with missing, truncated or damaged files: a partial report, or a one-line error."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from redirty.collector.analyze import meta_schema as meta_fields
from redirty.collector.analyze import summary
from redirty.collector.cli import main as cli
from redirty.collector.cli import top_options
from redirty.collector.errors import RedirtyError
from redirty.collector.recording import columns
from redirty.collector.recording.writer import RecordingWriter
from redirty.collector.units import plural

from tests.support.error_assertions import only_an_error
from tests.support.factories import meta, one_round, pages
from tests.support.paths import TESTS

REDIS = TESTS / "data" / "redis"
CSV = sorted(p.name for p in REDIS.glob("*.csv"))


@pytest.fixture
def rec(tmp_path: Path) -> Path:
    """Copy a real recording of 32 rounds, without its events."""
    directory = tmp_path / "rec"
    shutil.copytree(REDIS, directory, ignore=shutil.ignore_patterns("events*"))
    return directory


def change(directory: Path, **fields: object) -> None:
    path = directory / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def report(directory: Path) -> str:
    return summary.as_text(summary.summarise(directory))


def cut_off(directory: Path, rounds: int) -> RecordingWriter:
    """Write a recording that is never closed, as after kill -9."""
    made = RecordingWriter(directory, meta())
    for number in range(rounds):
        made.add(one_round(number, log=pages(16, 17), missed=pages(), present=pages()))
    return made


def errors(directory: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run each command that reads a recording; check that it fails with one line, and return these."""
    found = []
    for words in (["report"], ["report", "--json"], ["predict", "--bandwidth", "1Gbit"]):
        assert cli.main([*words, str(directory)]) == 1
        shown = capsys.readouterr()
        assert only_an_error(shown.out, shown.err) and shown.err.count("\n") == 1
        found.append(shown.err.removeprefix("redirty: ").rstrip())
    options = cli._parser("top").parse_args(["top", "--replay", str(directory)])
    options.command = []
    with pytest.raises(RedirtyError) as error:
        top_options.choices_of(options)
    assert error.value.exit_code == 1
    return [*found, str(error.value)]


# ---- pages.csv ----


def test_without_pages_the_rest_is_reported(rec: Path) -> None:
    whole = report(rec)
    assert "pages.csv" not in whole
    (rec / "pages.csv").unlink()
    text = report(rec)
    assert "distinct pages: unknown: pages.csv is missing or has no pages\n" in text
    (again,) = (line for line in text.splitlines() if line.startswith("dirty again"))
    assert again.endswith("are dirty in the next one, too")
    assert "hot pages" not in text
    rates = [line for line in whole.splitlines() if line.startswith("  dirty  ")]
    assert rates[0] in text.splitlines()
    s = summary.summarise(rec)
    assert set(s["pages"].values()) == {None}
    assert s["pages_told_share"] == 0
    assert s["again"]["hot_set"] == []
    assert {row["pages"] for row in s["mappings"]} == {None}


@pytest.mark.parametrize("size", [0, 5, 200])
def test_pages_cut_off_before_the_first(size: int, rec: Path, tmp_path: Path) -> None:
    (rec / "pages.csv").unlink()
    without = report(rec)
    whole = (REDIS / "pages.csv").read_bytes()
    (rec / "pages.csv").write_bytes(whole[: min(size, whole.index(b"\n") + 9)])
    assert report(rec) == without


def test_pages_cut_off_later_are_reported_as_a_part(rec: Path) -> None:
    whole = (REDIS / "pages.csv").read_bytes()
    (rec / "pages.csv").write_bytes(whole[: len(whole) // 2])
    share = summary.summarise(rec)["pages_told_share"]
    assert 0 < share < 1
    assert f"pages.csv covers {share:.1%} of the dirty pages of all rounds" in report(rec)


def test_killed_before_the_sums_were_written(tmp_path: Path) -> None:
    cut_off(tmp_path / "rec", 3)
    text = report(tmp_path / "rec")
    assert "3 rounds of 1 s, 3.0 s in all" in text and "ended early" in text
    assert "dirty again: 100.0%" in text and "pages.csv is missing" in text
    assert "unknown: curve.csv has no points" in text


def test_an_idle_target_has_no_pages_and_nothing_is_missing(tmp_path: Path) -> None:
    made = RecordingWriter(tmp_path / "rec", meta())
    made.add(one_round(0, log=pages(), missed=pages(), present=pages()))
    made.close(complete=True)
    text = report(tmp_path / "rec")
    assert "distinct pages: 0 ever dirty" in text and "not known" not in text


# ---- rounds.csv ----

HEADER = ",".join(columns.ROUNDS).encode() + b"\r\n"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "is missing"),
        (b"", "is damaged: it has no round"),
        (HEADER[:40], "is damaged: it has no round"),
        (HEADER, "is damaged: it has no round"),
        (HEADER + b"0,0.0,1.0", "is damaged: it has no round"),
        (bytes(5000), "is damaged: it has no round"),
        (random.Random(1).randbytes(4000), "is damaged: it has no column round"),
    ],
)
def test_no_rounds_where_there_were_some(
    content: bytes | None, fault: str, rec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rec / "rounds.csv"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    for line in errors(rec, capsys):
        assert line.startswith(f"{path} {fault}, though meta.json reports 32 rounds: ")


@pytest.mark.parametrize("rounds", [b"", b"\r\n0,0.0,1.", None])
def test_killed_before_a_round_was_complete(
    rounds: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "rec"
    cut_off(directory, 0)
    if rounds is None:
        (directory / "rounds.csv").unlink()
    else:
        (directory / "rounds.csv").write_bytes(HEADER.strip() + rounds)
    assert "no round was completed: nothing to report" in report(directory)
    assert summary.summarise(directory)["complete"] is False
    assert cli.main(["predict", str(directory), "--bandwidth", "1GB"]) == 1
    assert "has no complete round" in capsys.readouterr().err


def test_killed_in_a_round(tmp_path: Path) -> None:
    made = cut_off(tmp_path / "rec", 2)
    with (made.directory / "rounds.csv").open("ab") as file:
        file.write(b"2,2.0,1.0")
    assert report(made.directory).splitlines()[1].startswith("2 rounds of 1 s")


@pytest.mark.parametrize(
    ("column", "value"), [("round", ""), ("dirty_pages", ""), ("duration_s", "inf"), ("arm_s", "x")]
)
def test_rounds_with_a_value_that_is_not_a_number(
    column: str, value: str, rec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (rec / "rounds.csv").read_text().splitlines()
    fields = lines[3].split(",")
    fields[columns.ROUNDS.index(column)] = value
    lines[3] = ",".join(fields)
    (rec / "rounds.csv").write_text("\r\n".join([*lines, ""]))
    assert cli.main(["report", str(rec)]) == 1
    assert (
        f"is damaged: column {column} has a value that is not a number" in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", CSV)
def test_any_file_missing_cut_off_or_of_random_bytes(
    name: str, rec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, whole = rec / name, (REDIS / name).read_bytes()
    chance = random.Random(7)
    tried: list[bytes | None] = [None, b"", bytes(999), chance.randbytes(9999)]
    tried += [whole[: chance.randrange(len(whole))] for _ in range(4)]
    tried += [whole.splitlines(keepends=True)[0] + chance.randbytes(999) + b"\r\n"]
    tried += [b'\x00,"\r\n\n' * 99, whole.replace(b",", b"", 1), whole.replace(b"0", b"", 50)]
    for content in tried:
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        for words in (["report"], ["predict", "--bandwidth", "1Gbit"]):
            code = cli.main([*words, str(rec)])
            error = capsys.readouterr().err
            assert "internal error" not in error, (content, error)
            assert (code, error.count("\n")) in {(0, 0), (1, 1)}


# ---- meta.json ----

_SHARER = {"pid": 1, "comm": "x", "writable": True}


_NO_SIZES: list[object] = ["abc", None, 0, -1, True, 10**400]
_NO_TIMES: list[object] = [None, "1", 0, float("nan"), 10**400]
_NO_COUNTS: list[object] = ["32", -1, 1.5]
_NO_SCHEMAS: list[object] = ["1", None, []]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"target": "redis"}, "target"),
        ({"target": None}, "target"),
        ({"target": ["redis"]}, "target"),
        ({"target": {"comm": "x"}}, "target.description"),
        ({"target": {"comm": None, "description": "x"}}, "target.comm"),
        *[({"page_size": value}, "page_size") for value in _NO_SIZES],
        *[({"interval_s": value}, "interval_s") for value in _NO_TIMES],
        *[({name: None}, name) for name in ("probe", "arm", "complete", "rounds", "features")],
        *[({"rounds": value}, "rounds") for value in _NO_COUNTS],
        *[({"schema": value}, "schema") for value in _NO_SCHEMAS],
        ({"features": "tlb"}, "features"),
        ({"features": [["tlb"]]}, "features"),
        ({"pinned_kib": "some"}, "pinned_kib"),
        ({"refused_probes": []}, "refused_probes"),
        ({"shared_outside": [_SHARER, {"pid": 1}]}, "shared_outside"),
        ({"shared_outside": [_SHARER | {"comm": 5}]}, "shared_outside"),
        ({"shared_outside_hidden": "1"}, "shared_outside_hidden"),
    ],
)
def test_a_field_of_the_wrong_type(
    fields: dict[str, Any], field: str, rec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(rec, **fields)
    for line in errors(rec, capsys):
        assert line.startswith(f"{rec / 'meta.json'} is damaged: {field} is ")


@pytest.mark.parametrize("field", ["target", "probe", "arm", "page_size", "interval_s"])
def test_a_field_that_is_missing(field: str, rec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((rec / "meta.json").read_text())
    del content[field]
    (rec / "meta.json").write_text(json.dumps(content))
    for line in errors(rec, capsys):
        assert line.startswith(f"{rec / 'meta.json'} is damaged: {field} is missing; ")


def test_fields_that_older_versions_lack_may_be_missing(rec: Path) -> None:
    content = json.loads((rec / "meta.json").read_text())
    for name in meta_fields._OPTIONAL:
        del content[name]
    (rec / "meta.json").write_text(json.dumps(content))
    assert "32 rounds" in report(rec)


@pytest.mark.parametrize("text", ["", "{", "[" * 200_000, '"x"', "[]", "{}", "null", "\0"])
def test_a_file_that_is_not_an_object(
    text: str, rec: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (rec / "meta.json").write_text(text)
    for line in errors(rec, capsys):
        assert "meta.json" in line


def test_names_with_control_characters_are_made_printable(rec: Path) -> None:
    change(rec, probe="\ud800\x1b[2J", target={"description": "\x1b]0;x\a", "comm": "\udcff"})
    assert report(rec).replace("\n", "").isprintable()


# ---- singular and plural ----


def test_a_count_of_one_is_singular(tmp_path: Path) -> None:
    made = RecordingWriter(tmp_path / "rec", meta())
    made.add(one_round(0, log=pages(16), missed=pages(), present=pages()))
    made.close(complete=True, extra={"shared_outside_hidden": 1})
    text = report(made.directory)
    assert text.splitlines()[1].startswith("1 round of 1 s, 1.0 s in all")
    assert "shared memory: 1 process could not be read\n" in text
    assert "         1 page\n" in text
    change(made.directory, shared_outside_hidden=2)
    assert "shared memory: 2 processes could not be read\n" in report(made.directory)
    assert [plural(n, "round") for n in (0, 1, 2)] == ["0 rounds", "1 round", "2 rounds"]
