"""A core file's head: where in the file each mapping's contents lie.

Sources: elf(5); fs/binfmt_elf.c; include/uapi/linux/elf.h (PN_XNUM).
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Sequence
from typing import NamedTuple

HEADER_BYTES = 64 << 20  # left free at the file's beginning, for 65,530 mappings and all notes
_MACHINES = {"x86_64": 62, "aarch64": 183}
_EHDR, _PHDR, _SHDR = (
    struct.Struct("<16sHHIQQQIHHHHHH"),
    struct.Struct("<IIQQQQQQ"),
    struct.Struct("<IIQQQQIIQQ"),
)
_PT_LOAD, _PT_NOTE, _ET_CORE, _PN_XNUM = 1, 4, 4, 0xFFFF
_PAGE = 4096


class Segment(NamedTuple):
    """A piece of a mapping. offset: in the file; None: its contents are zero, and not in the file."""

    start: int
    end: int
    perms: str
    offset: int | None


def machine() -> int:
    """This machine's ELF number."""
    return _MACHINES[platform.machine()]


def head_of(segments: Sequence[Segment], notes: bytes, machine_number: int) -> bytes:
    """The file's first bytes.

    Errors: ValueError when there is no room for them.
    """
    count = len(segments) + 1
    many = count >= _PN_XNUM
    notes_at = _EHDR.size + count * _PHDR.size + (_SHDR.size if many else 0)
    shdr_at = _EHDR.size + count * _PHDR.size if many else 0
    ident = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)
    parts = [
        _EHDR.pack(
            *(ident, _ET_CORE, machine_number, 1, 0, _EHDR.size, shdr_at, 0),
            *(_EHDR.size, _PHDR.size, _PN_XNUM if many else count),
            *(_SHDR.size if many else 0, 1 if many else 0, 0),
        ),
        _PHDR.pack(_PT_NOTE, 0, notes_at, 0, 0, len(notes), 0, 4),
    ]
    for s in segments:
        flags = 4 * (s.perms[0] == "r") + 2 * (s.perms[1] == "w") + (s.perms[2] == "x")
        size = s.end - s.start
        in_file = 0 if s.offset is None else size
        parts.append(_PHDR.pack(_PT_LOAD, flags, s.offset or 0, s.start, 0, in_file, size, _PAGE))
    if many:
        parts.append(_SHDR.pack(0, 0, 0, 0, 0, 0, 0, count, 0, 0))
    parts.append(notes)
    head = b"".join(parts)
    if len(head) > HEADER_BYTES:
        raise ValueError("mappings and threads need more room than a mirror's head has")
    return head
