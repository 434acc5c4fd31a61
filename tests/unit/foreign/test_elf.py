"""The functions of ELF files: as nm lists them, and no damage of a file is more than an error."""

from __future__ import annotations

import functools
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from redirty.collector.foreign.readers.elf import ElfError, Image

from tests.support.fuzz import fuzzed
from tests.tiers import require_program
from tests.workloads.process import build

SECTIONS_AT, SECTION_BYTES = 40, 64


def image(content: bytes) -> Image:
    return Image(lambda at, size: content[at : at + size], len(content))


def listed(path: Path, *words: str) -> dict[int, set[str]]:
    """Return the functions of a file by address, as nm lists them."""
    nm = require_program("nm", "binutils")
    lines = subprocess.run([nm, *words, path], capture_output=True, text=True, check=True).stdout
    found: dict[int, set[str]] = {}
    for line in lines.splitlines():
        words_of = line.split()
        if len(words_of) == 3 and words_of[1] in "tTiW":
            found.setdefault(int(words_of[0], 16), set()).add(words_of[2].partition("@")[0])
    return found


@pytest.fixture(scope="module")
def program() -> Path:
    return build() / "phases"


@pytest.mark.parametrize("stripped", [False, True])
def test_functions_are_those_of_nm(program: Path, stripped: bool) -> None:
    path = Path(sys.executable).resolve() if stripped else program  # Python exports its functions
    found = image(path.read_bytes())
    names = listed(path, *(["-D"] if found.stripped else []))
    assert len(names) > 10
    sized = {a: n for a, n in names.items() if found.name_at(a)}
    assert len(sized) > 10
    for address, expected in sized.items():
        assert found.name_at(address).decode() in expected, hex(address)
    assert found.name_at(0) == b""


def test_an_offset_in_the_file_is_the_address_that_the_program_headers_give(program: Path) -> None:
    content = program.read_bytes()
    found = image(content)
    readelf = require_program("readelf", "binutils")
    lines = subprocess.run([readelf, "-lW", program], capture_output=True, text=True, check=True)
    loads = [line.split() for line in lines.stdout.splitlines() if line.split()[:1] == ["LOAD"]]
    assert loads
    for _, offset, address, _, size, *_ in loads:
        last = int(size, 16) - 1
        assert found.address_of(int(offset, 16) + last) == int(address, 16) + last
    assert found.address_of(len(content) + (1 << 30)) is None


def test_the_build_id_is_that_of_the_linker(program: Path) -> None:
    readelf = require_program("readelf", "binutils")
    lines = subprocess.run([readelf, "-n", program], capture_output=True, text=True, check=True)
    found = image(program.read_bytes())
    assert f"Build ID: {found.build_id}" in lines.stdout if found.build_id else True
    assert not found.stripped


def test_a_debug_file_gives_its_functions(program: Path, tmp_path: Path) -> None:
    strip = require_program("strip", "binutils")
    bare = tmp_path / "bare"
    shutil.copy(program, bare)
    subprocess.run([strip, bare], check=True)
    found = image(bare.read_bytes())
    (address,) = [a for a, names in listed(program).items() if "main" in names]
    assert (found.stripped, found.name_at(address)) == (True, b"")
    found.adopt(image(program.read_bytes()))
    assert found.name_at(address) == b"main"


@pytest.mark.parametrize(
    "content",
    [b"", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF" + b"\xff" * 60, b"\x7fELF\x02\x01" + b"\xff" * 58],
)
def test_what_is_no_elf_file_is_refused(content: bytes) -> None:
    with pytest.raises(ElfError):
        image(content)


@pytest.mark.parametrize("field", range(10))
@pytest.mark.parametrize("value", [0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
def test_wrong_section_headers(program: Path, field: int, value: int) -> None:
    """Give one field of every section header a wrong value: an error or other names, nothing else."""
    content = bytearray(program.read_bytes())
    (at,) = struct.unpack_from("<Q", content, SECTIONS_AT)
    form = struct.Struct("<IIQQQQIIQQ")
    for start in range(at, len(content) - SECTION_BYTES + 1, SECTION_BYTES):
        fields = list(form.unpack_from(content, start))
        wide = field in (2, 3, 4, 5, 8, 9)
        fields[field] = value if wide else value & 0xFFFF_FFFF
        form.pack_into(content, start, *fields)
    read_it(bytes(content))


def read_it(content: bytes) -> None:
    """Read a damaged file, as the symbol reader would."""
    try:
        found = image(content)
    except ElfError:
        return
    for offset in (0, 0x1000, 0x1234, len(content) - 1):
        address = found.address_of(offset)
        if address is not None:
            assert isinstance(found.name_at(address), bytes)


@functools.cache
def small_program() -> bytes:
    """Return a program with few functions, as it is read thousands of times."""
    return (build() / "writer").read_bytes()


def damaged(rng: random.Random, content: bytearray) -> bytes:
    """Return a file with damage in its headers, in its tables or anywhere."""
    (sections,) = struct.unpack_from("<Q", content, SECTIONS_AT)
    odd = (0, 1, 2**63, 2**64 - 1, 2**32 - 1, 2**31, len(content), len(content) - 1)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        first, end = rng.choice(
            ((4, 64), (64, 64 + 56 * 12), (sections, len(content) - 8), (0, len(content) - 8))
        )
        at = rng.randrange(first, end)
        value = rng.choice((*odd, rng.getrandbits(64), rng.getrandbits(24)))
        if rng.random() < 0.5:
            struct.pack_into("<Q", content, min(at & ~7, len(content) - 8), value)
        else:
            content[at] = value & 0xFF
    if rng.random() < 0.1:
        del content[rng.randrange(len(content)) :]
    return bytes(content)


@fuzzed
def test_damaged_files(rng: random.Random) -> None:
    """A damaged file is an error or has other names."""
    read_it(damaged(rng, bytearray(small_program())))
