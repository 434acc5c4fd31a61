"""The header of an ELF core file, with the file offset of each mapping's contents.

Sources: elf(5); fs/binfmt_elf.c; include/uapi/linux/elf.h (PN_XNUM).
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Sequence
from typing import NamedTuple

from redirty.collector.pageset import PAGE_SIZE

# Left free at the start of the file, enough for 65,530 mappings and all notes.
HEADER_BYTES = 64 << 20
_MACHINES = {"x86_64": 62, "aarch64": 183}
_EHDR, _PHDR, _SHDR = (
    struct.Struct("<16sHHIQQQIHHHHHH"),
    struct.Struct("<IIQQQQQQ"),
    struct.Struct("<IIQQQQIIQQ"),
)
_PT_LOAD, _PT_NOTE, _ET_CORE, _PN_XNUM = 1, 4, 4, 0xFFFF


NO_ROOM = "no room for the mappings and threads in the header of a core file"


class Segment(NamedTuple):
    """A part of a mapping, in bytes. offset: in the file; None: all zero, and not in the file."""

    start: int
    end: int
    perms: str
    offset: int | None


def machine() -> int:
    """Return the ELF machine number of this machine."""
    return _MACHINES[platform.machine()]


def has_room(segments: int, notes: bytes) -> bool:
    """Return whether so many segments and the notes fit into HEADER_BYTES, at least roughly."""
    return _EHDR.size + segments * _PHDR.size + len(notes) <= HEADER_BYTES


def make_header(segments: Sequence[Segment], notes: bytes, machine_number: int) -> bytes:
    """Return the ELF header, the program headers and the notes.

    Raises:
        ValueError: they do not fit into HEADER_BYTES.
    """
    count = len(segments) + 1
    many = count >= _PN_XNUM
    notes_at = _EHDR.size + count * _PHDR.size + (_SHDR.size if many else 0)
    shdr_at = _EHDR.size + count * _PHDR.size if many else 0
    ident = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)
    # fmt: off
    elf_header = _EHDR.pack(
        ident, _ET_CORE, machine_number, 1, 0, _EHDR.size, shdr_at, 0,
        _EHDR.size, _PHDR.size, _PN_XNUM if many else count,
        _SHDR.size if many else 0, 1 if many else 0, 0,
    )
    # fmt: on
    parts = [elf_header, _PHDR.pack(_PT_NOTE, 0, notes_at, 0, 0, len(notes), 0, 4)]
    for s in segments:
        flags = 4 * (s.perms[0] == "r") + 2 * (s.perms[1] == "w") + (s.perms[2] == "x")
        size = s.end - s.start
        in_file = 0 if s.offset is None else size
        parts.append(
            _PHDR.pack(_PT_LOAD, flags, s.offset or 0, s.start, 0, in_file, size, PAGE_SIZE)
        )
    if many:
        parts.append(_SHDR.pack(0, 0, 0, 0, 0, 0, 0, count, 0, 0))
    parts.append(notes)
    header = b"".join(parts)
    if len(header) > HEADER_BYTES:
        raise ValueError(NO_ROOM)
    return header
