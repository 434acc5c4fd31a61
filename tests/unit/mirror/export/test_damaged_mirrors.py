"""Exports of damaged mirrors: one line, nothing left behind, bounded time, memory and output.

REDIRTY_FUZZ=N tries N times as many damages.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from redirty.collector.cli import main as cli
from redirty.collector.errors import RedirtyError
from redirty.collector.mirror.export import criu, guest_ram
from redirty.collector.mirror.image import core_reader
from redirty.collector.pageset import PAGE_SIZE

from tests.support.mutations import limited_memory, of_bytes, of_json
from tests.support.small_mirror import FIRST, PAGES, WRITTEN, make_mirror, page

_DAMAGES = 10_000 * int(os.environ.get("REDIRTY_FUZZ", "1"))
_HEAD = 4096  # of a core file: what the damages change
VERBS = ("export-criu", "export-guest")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a mirror that is not damaged."""
    return make_mirror(tmp_path_factory.mktemp("mirror") / "m")


@pytest.fixture
def mirror(whole: Path, tmp_path: Path) -> Path:
    """Copy the mirror, holes included."""
    return copied(whole, tmp_path / "m")


def copied(whole: Path, to: Path) -> Path:
    to.mkdir()
    for path in whole.iterdir():
        with path.open("rb") as source, (to / path.name).open("wb") as target:
            os.truncate(target.fileno(), os.fstat(source.fileno()).st_size)
            at = 0
            try:
                while True:
                    at = os.lseek(source.fileno(), at, os.SEEK_DATA)
                    end = os.lseek(source.fileno(), at, os.SEEK_HOLE)
                    os.pwrite(target.fileno(), os.pread(source.fileno(), end - at, at), at)
                    at = end
            except OSError:  # ENXIO: no more data
                pass
    return to


def exported(capsys: pytest.CaptureFixture[str], verb: str, mirror: Path, to: Path) -> str:
    """Export a mirror that cannot be exported; check that nothing is left, and return the line."""
    before = set(mirror.iterdir())
    with limited_memory(1 << 30):
        assert cli.main([verb, str(mirror), "-o", str(to)]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1, shown
    assert "internal error" not in shown.err, shown
    assert not os.path.lexists(to) and set(mirror.iterdir()) == before
    return shown.err.removeprefix("redirty: ").rstrip()


def test_a_mirror_that_is_not_damaged(mirror: Path, tmp_path: Path) -> None:
    assert criu.export(mirror, tmp_path / "criu") == 104
    pages = (tmp_path / "criu" / "pages-1.img").read_bytes()
    own = [*range(FIRST, FIRST + 100), *range(FIRST + 200, FIRST + 203)]
    assert pages == b"".join(page(n) if n in WRITTEN else bytes(PAGE_SIZE) for n in own)
    assert (tmp_path / "criu" / "pages-2.img").read_bytes() == b"z" * PAGE_SIZE
    half = PAGES // 2 * PAGE_SIZE
    assert guest_ram.export(mirror, tmp_path / "guest") == (5 * half, True)
    guest = (tmp_path / "guest").read_bytes()
    memory = [page(FIRST + i) if FIRST + i in WRITTEN else bytes(PAGE_SIZE) for i in range(PAGES)]
    assert guest[:half] + guest[4 * half :] == b"".join(memory)
    assert not any(guest[half : 4 * half])


# ---- core files ----


def note_at(core: Path) -> int:
    """Return the offset of the first run in the note of own pages."""
    return core.read_bytes()[:_HEAD].index(b"REDIRTY\0") + 8


def with_number(core: Path, at: int, value: int, size: str = "<Q") -> None:
    with core.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack(size, value))


@pytest.mark.parametrize(
    ("first", "pages"),
    [
        (FIRST, 1 << 40),
        (FIRST, 1 << 63),
        (FIRST, (1 << 64) - 1),
        (FIRST, PAGES + 2),
        (FIRST, 0),
        (0, 1),
        (1 << 51, 1),
        (1 << 63, 1 << 63),
        (FIRST + 199, 2),
        (1 << 30, (1 << 31) + 1),
    ],
)
def test_a_run_of_pages_that_are_not_there(
    first: int, pages: int, mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = note_at(mirror / "memory.core")
    with_number(mirror / "memory.core", at, first)
    with_number(mirror / "memory.core", at + 8, pages)
    line = exported(capsys, "export-criu", mirror, tmp_path / "x")
    assert line == f"{mirror / 'memory.core'} is not a core file of redirty mirror"


def test_reserved_memory_takes_no_time_and_no_space(mirror: Path, tmp_path: Path) -> None:
    """The pages of a whole reservation are holes in the image: 16 GiB in no time."""
    at = note_at(mirror / "memory.core")
    with_number(mirror / "memory.core", at + 16, 1 << 30)
    with_number(mirror / "memory.core", at + 24, 1 << 22)
    assert criu.export(mirror, tmp_path / "x") == 101 + (1 << 22)
    size = (tmp_path / "x" / "pages-1.img").stat()
    assert size.st_size == (100 + (1 << 22)) * PAGE_SIZE and size.st_blocks * 512 < 1 << 20


@pytest.mark.parametrize(
    ("at", "value", "size"),
    [
        (0, 0, "<Q"),  # no ELF
        (4, 1, "<B"),  # 32 bits
        (5, 2, "<B"),  # big endian
        (32, 1 << 63, "<Q"),  # program headers
        (56, 0xFFFE, "<H"),  # their number
        (56, 0xFFFF, "<H"),
        (64 + 32, 1 << 63, "<Q"),  # size of the notes
        (64 + 32, (1 << 64) - 1, "<Q"),
        (64 + 32, 0, "<Q"),
        (64 + 8, 1 << 40, "<Q"),  # their offset
        (64, 1, "<I"),  # no notes
        (64 + 56, 4, "<I"),  # two notes
        (64 + 56 + 8, 1, "<Q"),  # offset of a mapping
        (64 + 56 + 8, 1 << 63, "<Q"),
        (64 + 56 + 16, (1 << 64) - PAGE_SIZE, "<Q"),  # address
        (64 + 56 + 32, (1 << 64) - PAGE_SIZE, "<Q"),  # size in the file
        (64 + 56 + 40, PAGE_SIZE, "<Q"),  # size in memory, less than in the file
        (64 + 56 + 40, (1 << 64) - PAGE_SIZE, "<Q"),
    ],
)
def test_a_header_that_is_wrong(
    at: int,
    value: int,
    size: str,
    mirror: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_number(mirror / "memory.core", at, value, size)
    line = exported(capsys, "export-criu", mirror, tmp_path / "x")
    assert line == f"{mirror / 'memory.core'} is not a core file of redirty mirror"


def test_contents_beyond_the_end_of_the_file(
    mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_number(mirror / "memory.core", 64 + 56 + 8, 1 << 40)
    line = exported(capsys, "export-criu", mirror, tmp_path / "x")
    assert line == f"{mirror / 'memory.core'} is truncated: make a new mirror"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", ["memory.core", "mirror.json"])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "a FIFO"),
        (os.mkdir, "a directory"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
    ],
)
def test_no_file_in_the_place_of_one(
    verb: str,
    name: str,
    make: Callable[[Path], None],
    kind: str,
    mirror: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (mirror / name).unlink()
    make(mirror / name)
    line = exported(capsys, verb, mirror, tmp_path / "x")
    assert line == f"cannot read {mirror / name}: it is {kind}, not a regular file"


# ---- mirror.json ----


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        '{"a":' * 100_000,
        "null",
        "[]",
        '{"state": "committed"}',
        "\xff",
        "1" * 9999,
    ],
)
def test_a_manifest_that_is_none(
    verb: str, text: str, mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mirror / "mirror.json").write_text(text)
    line = exported(capsys, verb, mirror, tmp_path / "x")
    assert line.startswith(str(mirror))


@pytest.mark.parametrize("verb", VERBS)
def test_a_sparse_manifest_of_a_tebibyte(
    verb: str, mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.truncate(mirror / "mirror.json", 1 << 40)
    line = exported(capsys, verb, mirror, tmp_path / "x")
    assert line.startswith(f"cannot read {mirror / 'mirror.json'}: it has 1.0 TiB, more than ")


_FAR = [{"guest_address": hex(1 << 57), "size": "0x1000", "address": hex(FIRST * PAGE_SIZE)}]
_ELSEWHERE = [{"guest_address": "0x0", "size": "0x1000", "address": "0x1000"}]
_MANY = [
    {"guest_address": hex(i << 30), "size": hex(PAGES << 12), "address": hex(FIRST << 12)}
    for i in range(9)
]


@pytest.mark.parametrize(
    ("verbs", "fields", "fault"),
    [
        (VERBS, {"cores": [None, None]}, "cores is not the name of a file"),
        (VERBS, {"cores": ["../x", "y"]}, "cores is not the name of a file"),
        (VERBS, {"cores": ["\ud800", "y"]}, "cores is not the name of a file"),
        (VERBS, {"cores": "memory.core"}, "cores is not a list"),
        (VERBS, {"cores": []}, "it does not have one core file for each process"),
        (VERBS, {"cores": ["memory.core"] * 2}, "it does not have one core file for each process"),
        (VERBS, {"target": None}, "is missing"),
        (VERBS, {"target": {"pids": ["7"], "ns_pids": [7.5]}}, "is not a number from 1 to 2147483648"),
        (VERBS, {"target": {"pids": [-7], "ns_pids": [True]}}, "is not a number from 1 to 2147483648"),
        (VERBS[:1], {"target": {"ns_pids": [7, 7]}}, "a process occurs twice"),
        (VERBS[:1], {"uptime_s": "12"}, "uptime_s is not a number of seconds"),
        (VERBS[:1], {"uptime_s": float("inf")}, "uptime_s is not a number of seconds"),
        (VERBS[:1], {"uptime_s": 1e300}, "uptime_s is not a number of seconds"),
        (VERBS[1:], {"guest_ram": "x"}, "guest_ram is not a list"),
        (VERBS[1:], {"guest_ram": [None]}, "guest_ram.start is missing"),
        (VERBS[1:], {"guest_ram": [{"start": "0x0", "end": "0x0", "pid": 7}]}, "is empty"),
        (VERBS[1:], {"guest_ram": [{"start": 0, "end": 4096, "pid": 7}]}, "is not an address"),
        (VERBS[1:], {"guest_memory": [{"size": "0x1"}]}, "guest_memory.guest_address is missing"),
        (VERBS[1:], {"guest_memory": _ELSEWHERE}, "remapped"),
        (VERBS[1:], {"guest_memory": _MANY}, "the pieces of guest memory are more than its blocks"),
        (VERBS[1:], {"guest_memory": _MANY[:1] * 2}, "pieces of guest memory overlap"),
    ],
)  # fmt: skip
def test_values_that_no_mirror_has(
    verbs: tuple[str, ...],
    fields: dict[str, Any],
    fault: str,
    mirror: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = json.loads((mirror / "mirror.json").read_text())
    (mirror / "mirror.json").write_text(json.dumps(content | fields))
    for verb in verbs:
        line = exported(capsys, verb, mirror, tmp_path / "x")
        assert line.startswith(f"{mirror} is not a mirror that can be exported: ") and fault in line


def test_a_guest_address_that_no_file_reaches(
    mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((mirror / "mirror.json").read_text())
    (mirror / "mirror.json").write_text(json.dumps(content | {"guest_memory": _FAR}))
    line = exported(capsys, "export-guest", mirror, tmp_path / "x")
    assert line == f"cannot write {tmp_path / 'x'}: File too large (EFBIG)"


# ---- random damage ----


def test_every_damage_is_exported_or_refused(whole: Path, tmp_path: Path) -> None:
    mirror, to = copied(whole, tmp_path / "m"), tmp_path / "x"
    core, manifest = mirror / "memory.core", mirror / "mirror.json"
    head, text = core.read_bytes()[:_HEAD], manifest.read_bytes()
    size, refused = core.stat().st_size, 0
    with limited_memory(1 << 30), core.open("r+b") as file:
        for seed in range(_DAMAGES):
            chance = Random(seed)
            if chance.random() < 0.5:
                manifest.write_bytes(of_json(text, chance))
            else:
                os.pwrite(file.fileno(), of_bytes(head[:500], chance)[:_HEAD], 0)
                if chance.random() < 0.05:
                    os.truncate(core, chance.randrange(size))
            export = chance.choice((criu.export, guest_ram.export))
            try:
                export(mirror, to)
            except RedirtyError:
                refused += 1
                assert not os.path.lexists(to), seed
            except Exception as e:
                e.add_note(f"seed {seed}")
                raise
            else:
                used = sum(p.lstat().st_blocks for p in (to.iterdir() if to.is_dir() else [to]))
                assert used * 512 <= 16 << 20, seed
                shutil.rmtree(to) if to.is_dir() else to.unlink()
            os.truncate(core, size)
            os.pwrite(file.fileno(), head, 0)
            manifest.write_bytes(text)
    assert 0 < refused < _DAMAGES


def test_pieces_that_a_file_system_without_holes_returns(
    mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where SEEK_DATA knows no holes, all pages come out, the zero ones too."""
    core = core_reader.CoreFile(mirror / "memory.core")
    found = dict(core.data(FIRST, PAGES))

    def seek(_fd: int, at: int, how: int) -> int:
        return at if how == os.SEEK_DATA else core._size

    monkeypatch.setattr(os, "lseek", seek)
    ((first, data),) = core.data(FIRST, PAGES)
    core.close()
    assert (first, len(data)) == (FIRST, PAGES * PAGE_SIZE)
    for start, part in found.items():
        at = (start - FIRST) * PAGE_SIZE
        assert data[at : at + len(part)] == part
