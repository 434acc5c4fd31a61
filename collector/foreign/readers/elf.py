"""Reads the functions of an ELF file. The file may be anything: all sizes are checked and bounded.

Used by the symbol reader, with Python's standard library only. Source: elf(5).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from itertools import islice
from typing import NamedTuple

from .target_files import Read

_MAX_TABLE_BYTES = 256 << 20
_MAX_SYMBOLS = 2_000_000
_MAX_NAME_BYTES = 4096
_MAX_NESTED = 16  # symbols that begin before an address and end before it, too
_LOAD = 1
_SYMTAB, _NOTE, _DYNSYM = 2, 7, 11
_FUNC, _IFUNC = 2, 10
_BUILD_ID = 3


class ElfError(ValueError):
    """A file that is not ELF, or a damaged one."""


class _Section(NamedTuple):
    kind: int
    offset: int
    size: int
    link: int


class _Segment(NamedTuple):
    offset: int
    address: int
    size: int


class _Layout(NamedTuple):
    """The formats of one class of ELF files; fields in the order of the 64-bit class."""

    header: struct.Struct  # from e_phoff on
    segment: struct.Struct
    symbol: struct.Struct
    section: struct.Struct
    wide: bool


_WIDE = _Layout(
    struct.Struct("<QQIHHHHHH"), struct.Struct("<IIQQQQQQ"), struct.Struct("<IBBHQQ"),
    struct.Struct("<IIQQQQIIQQ"), True,
)  # fmt: skip
_NARROW = _Layout(
    struct.Struct("<IIIHHHHHH"), struct.Struct("<IIIIIIII"), struct.Struct("<IIIBBH"),
    struct.Struct("<IIIIIIIIII"), False,
)  # fmt: skip
_HEADER_AT = {2: 32, 1: 28}  # where e_phoff is


class Image:
    """The functions of an ELF file.

    Attributes:
        build_id: The build ID in hexadecimal; empty if there is none.
        stripped: Whether it has only symbols for the dynamic linker.

    Raises:
        ElfError: The file is no ELF file or damaged.
        OSError: It cannot be read.
    """

    def __init__(self, read: Read, size: int) -> None:
        self._read = read
        self._size = size
        self.build_id = ""
        self.stripped = True
        self._symbols: list[tuple[int, int, int]] = []  # (address, size, name's offset), ascending
        self._names = b""
        head = read(0, 64)
        if head[:4] != b"\x7fELF" or head[5:6] != b"\x01" or head[4] not in _HEADER_AT:
            raise ElfError("not an ELF file of this machine")
        self._layout = _WIDE if head[4] == 2 else _NARROW
        try:
            fields = self._layout.header.unpack_from(head, _HEADER_AT[head[4]])
        except struct.error:
            raise ElfError("cut short") from None
        segments_at, sections_at, _, _, segment_size, segments, section_size, sections, _ = fields
        self._segments = self._read_segments(segments_at, segment_size, segments)
        found = self._read_sections(sections_at, section_size, sections)
        self._read_symbols(found)
        self._read_build_id(found)

    def _table(self, at: int, each: int, count: int, form: struct.Struct) -> list[tuple[int, ...]]:
        if count and each != form.size:
            raise ElfError("entries of an unknown size")
        content = self._part(at, each * count)
        return list(form.iter_unpack(content))

    def _part(self, at: int, size: int) -> bytes:
        """Return a part of the file. Raises: ElfError unless it is within the file, and not huge."""
        if at + size > self._size or size > _MAX_TABLE_BYTES:
            raise ElfError("a part is outside the file")
        content = self._read(at, size)
        if len(content) != size:
            raise ElfError("cut short")
        return content

    def _read_segments(self, at: int, each: int, count: int) -> list[_Segment]:
        found = []
        for row in self._table(at, each, count, self._layout.segment):
            if self._layout.wide:
                kind, _, offset, address, _, size, _, _ = row
            else:
                kind, offset, address, _, size, _, _, _ = row
            if kind == _LOAD:
                found.append(_Segment(offset, address, size))
        return found

    def _read_sections(self, at: int, each: int, count: int) -> list[_Section]:
        rows = self._table(at, each, count, self._layout.section)
        return [_Section(row[1], row[4], row[5], row[6]) for row in rows]

    def _read_symbols(self, sections: list[_Section]) -> None:
        for kind in (_SYMTAB, _DYNSYM):
            for section in sections:
                if section.kind == kind and section.link < len(sections):
                    self._symbols = self._functions(section)
                    names = sections[section.link]
                    self._names = self._part(names.offset, names.size)
                    self.stripped = kind == _DYNSYM
                    if self._symbols:
                        return

    def _functions(self, section: _Section) -> list[tuple[int, int, int]]:
        form = self._layout.symbol
        content = self._part(section.offset, section.size // form.size * form.size)
        rows = islice(form.iter_unpack(content), _MAX_SYMBOLS)
        if self._layout.wide:
            found = [
                (value, size, name)
                for name, kind, _, index, value, size in rows
                if kind & 15 in (_FUNC, _IFUNC) and index and value
            ]
        else:
            found = [
                (value, size, name)
                for name, value, size, kind, _, index in rows
                if kind & 15 in (_FUNC, _IFUNC) and index and value
            ]
        found.sort()
        return found

    def _read_build_id(self, sections: list[_Section]) -> None:
        for section in sections:
            if section.kind != _NOTE or section.size > 4096:
                continue
            content = self._part(section.offset, section.size)
            if len(content) > 16:
                owner_size, size, kind = struct.unpack_from("<III", content)
                if (owner_size, kind) == (4, _BUILD_ID) and content[12:16] == b"GNU\0":
                    self.build_id = content[16 : 16 + size].hex()

    def adopt(self, debug: Image) -> None:
        """Take the functions of the same program's debug file."""
        self._symbols, self._names = debug._symbols, debug._names

    def address_of(self, offset: int) -> int | None:
        """Return the address, as the file's symbols have it, of an offset in the file."""
        for segment in self._segments:
            if segment.offset <= offset < segment.offset + segment.size:
                return offset - segment.offset + segment.address
        return None

    def name_at(self, address: int) -> bytes:
        """Return the name of the function at an address of the file; empty if there is none."""
        at = bisect_right(self._symbols, (address, 1 << 64, 0)) - 1
        for value, size, name in reversed(self._symbols[max(0, at - _MAX_NESTED) : at + 1]):
            if address < value + max(size, 1):
                end = self._names.find(b"\0", name, name + _MAX_NAME_BYTES)
                return self._names[name:end] if end > name else b""
        return b""
