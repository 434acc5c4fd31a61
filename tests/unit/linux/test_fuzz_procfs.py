"""Lists of mappings and the files of a process, with any names in them and with any damage."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
from redirty.collector.errors import RedirtyError
from redirty.collector.linux import maps, procfs, smaps
from redirty.collector.mirror.sources import vmas
from redirty.collector.ptrace.helpers import procfs as bare

from tests.support.fuzz import damaged, fuzzed, text

PERMS = ("r--p", "rw-p", "r-xp", "rw-s", "---p", "r--s")
STAT_TAIL = "S 1 2 2 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4242 1000 77 18446744073709551615 1 1"
STATUS = b"Name:\t%s\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t7\nPid:\t7\nVmRSS:\t     123 kB\n"


def path_of(rng: random.Random) -> bytes:
    """Return a path as the kernel shows it: with newlines escaped, and nothing else."""
    name = text(rng).encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        name += rng.randbytes(rng.randrange(8))
    name = name.replace(b"\n", b"\\012").replace(b"\0", b"")
    kinds = (
        b"",
        b"/" + name,
        b"/a/" + name + b" (deleted)",
        b"[anon:" + name + b"]",
        b"[heap]",
        b"/memfd:" + name,
    )
    return rng.choice(kinds)


def mappings_of(rng: random.Random) -> list[tuple[int, int, str, int, int, bytes]]:
    found = []
    at = 0x1000
    for _ in range(rng.randrange(8)):
        start = at + (rng.randrange(1 << rng.randrange(1, 30)) << 12)
        end = start + (rng.randrange(1, 1 << rng.randrange(1, 20)) << 12)
        path = path_of(rng)
        inode = rng.randrange(1, 2**64) if path.startswith(b"/") else 0
        found.append((start, end, rng.choice(PERMS), rng.randrange(1 << 20) << 12, inode, path))
        at = end
    return found


def line_of(start: int, end: int, perms: str, offset: int, inode: int, path: bytes) -> bytes:
    line = f"{start:08x}-{end:08x} {perms} {offset:08x} fd:01 {inode} ".encode()
    return line.ljust(73) + path if path else line


@fuzzed
def test_any_name_of_a_mapping(rng: random.Random) -> None:
    """Every reader finds the mappings that are there, and their names byte for byte."""
    listed = mappings_of(rng)
    content = b"".join(line_of(*m) + b"\n" for m in listed)
    found = maps.parse(content)
    assert [(m.start, m.end, m.perms) for m in found] == [m[:3] for m in listed]
    assert [m.path.encode(errors="surrogateescape") for m in found] == [m[5] for m in listed]
    assert all(m.mapping_class in maps.CLASSES for m in found)
    maps.Mappings.of(found)
    for m in listed:
        vma = vmas.parse_line(line_of(*m))
        assert vma is not None
        assert (vma.start, vma.end, vma.offset, vma.inode) == (m[0], m[1], m[3], m[4])
        assert vma.path.encode(errors="surrogateescape") == m[5]
    helper = bare.parse_maps(content)
    assert [m for m, _ in helper] == [m[:3] for m in listed]
    assert [bare.path_of(rest) for _, rest in helper] == [m[5] for m in listed]


@fuzzed
def test_damaged_lists_of_mappings(rng: random.Random) -> None:
    """A list that no kernel writes is parsed, or is an error of the program."""
    content = damaged(rng, b"".join(line_of(*m) + b"\n" for m in mappings_of(rng)))
    try:
        maps.parse(content)
    except RedirtyError as e:
        assert str(e).isprintable() and len(str(e)) < 400


@fuzzed
def test_damaged_smaps(rng: random.Random) -> None:
    parts = [
        line_of(*m) + b"\nSize:    4 kB\nVmFlags: rd " + rng.choice((b"dc", b"wr mr")) + b" \n"
        for m in mappings_of(rng)
    ]
    content = b"".join(parts)
    intact = rng.random() < 0.3
    if not intact:
        content = damaged(rng, content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smaps, "open", lambda path, mode: io.BytesIO(content), raising=False)
        try:
            marked, all_of_them = smaps.ranges_with_flag(1, b"dc"), smaps.detailed(1)
        except RedirtyError:
            assert not intact
            return
    if intact:
        assert len(all_of_them) == len(parts)
        assert len(marked) == sum(b" dc " in part[part.rindex(b"VmFlags") :] for part in parts)


@fuzzed
def test_any_name_of_a_process(rng: random.Random) -> None:
    """A process may call itself anything: its other fields stay what they are."""
    name = text(rng).encode("utf-8", "surrogatepass")[:15].replace(b"\0", b"")
    stat = procfs.parse_stat(b"7 (" + name + b") " + STAT_TAIL.encode() + b"\n")
    assert stat is not None
    assert (stat.comm, stat.state, stat.parent, stat.start_ticks, stat.resident_pages) == (
        name.decode(errors="replace"), "S", 1, 4242, 77
    )  # fmt: skip
    escaped = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    status = STATUS % escaped
    fields: dict[str, Any] = procfs.parse_status(status)
    assert (fields["State"], fields["Tgid"], fields["VmRSS"]) == ("S (sleeping)", "7", "123 kB")
    assert procfs.find_field(status, "Tgid") == "7"


@fuzzed
def test_damaged_files_of_a_process(rng: random.Random) -> None:
    """A file that is cut short or odd gives odd values, and no error."""
    procfs.parse_stat(damaged(rng, b"7 (x) " + STAT_TAIL.encode() + b"\n"))
    status = damaged(rng, STATUS % b"x")
    procfs.parse_status(status)
    procfs.find_field(status, rng.choice(("Name", "State", "VmRSS", "")))
