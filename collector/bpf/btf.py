"""Offsets of kernel structures from BTF, the type information the kernel carries.

Format: Documentation/bpf/btf.rst of the kernel. Only what is needed is read: one walk over
the types finds where each starts; names are compared as bytes in place.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from redirty.collector.errors import RedirtyError

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_MAGIC = 0xEB9F
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM = 1, 2, 3, 4, 5, 6
_FUNC, _FUNC_PROTO, _VAR, _DATASEC, _DECL_TAG, _ENUM64 = 12, 13, 14, 15, 17, 19
_MODIFIERS = (8, 9, 10, 11, 18)  # typedef, volatile, const, restrict, type tag
# 32-bit words after the first three of a type: a fixed number, or a number for each member
_FIXED = {_INT: 1, _ARRAY: 3, _VAR: 1, _DECL_TAG: 1}
_EACH = {_STRUCT: 3, _UNION: 3, _ENUM: 2, _FUNC_PROTO: 2, _DATASEC: 3, _ENUM64: 3}


class BtfError(RedirtyError):
    """The kernel has no BTF, or its BTF lacks a required type."""


class Btf:
    """The kernel's types. The constructor walks them once (about 0.1 s).

    Raises:
        BtfError: The format is unknown.
    """

    def __init__(self, data: bytes) -> None:
        magic, _version, _flags, header = struct.unpack_from("<HBBI", data)
        if magic != _MAGIC:
            raise BtfError("the kernel's BTF has an unknown format")
        type_off, type_len, str_off, str_len = struct.unpack_from("<IIII", data, 8)
        self._strings = data[header + str_off : header + str_off + str_len]
        self._words = memoryview(data)[header + type_off : header + type_off + type_len].cast("I")
        self._at = [0]
        words, at, end = self._words, 0, len(self._words)
        append = self._at.append
        fixed, each = _FIXED, _EACH
        while at < end:
            append(at)
            info = words[at + 1]
            kind = (info >> 24) & 31
            at += 3 + fixed.get(kind, 0) + each.get(kind, 0) * (info & 0xFFFF)
        self._by_name: dict[tuple[int, int], int] = {}
        for number, place in enumerate(self._at[1:], 1):
            kind = (words[place + 1] >> 24) & 31
            if kind in (_STRUCT, _FUNC):
                self._by_name.setdefault((kind, words[place]), number)

    def _name_offset(self, name: str) -> Iterator[int]:
        """Yield the offsets of a whole name in the string section.

        Linkers share no tails of names, but other names that end alike must not match.
        """
        needle = b"\0" + name.encode() + b"\0"
        at = self._strings.find(needle)
        while at >= 0:
            yield at + 1
            at = self._strings.find(needle, at + 1)

    def _id(self, kind: int, name: str) -> int | None:
        for offset in self._name_offset(name):
            number = self._by_name.get((kind, offset))
            if number is not None:
                return number
        return None

    def function_id(self, name: str) -> int | None:
        """Return the BTF ID of a kernel function, or None."""
        return self._id(_FUNC, name)

    def parameters(self, function: str) -> list[str]:
        """Return the names of a kernel function's parameters; empty if it is not listed."""
        number = self.function_id(function)
        if number is None:
            return []
        words = self._words
        proto = self._at[words[self._at[number] + 2]]
        count = words[proto + 1] & 0xFFFF
        return [self._string(words[proto + 3 + 2 * i]) for i in range(count)]

    def _string(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def offset(self, struct_name: str, member: str) -> int | None:
        """Return the byte offset of a member, also in an unnamed inner struct; None if it is missing."""
        number = self._id(_STRUCT, struct_name)
        if number is None:
            return None
        names = frozenset(self._name_offset(member))
        bits = self._find(number, names, 0)
        return None if bits is None else bits // 8

    def _find(self, number: int, names: frozenset[int], base: int) -> int | None:
        words = self._words
        place = self._at[number]
        info = words[place + 1]
        kind = (info >> 24) & 31
        if kind in _MODIFIERS:
            return self._find(words[place + 2], names, base)
        if kind not in (_STRUCT, _UNION):
            return None
        bitfields = info >> 31
        for i in range(info & 0xFFFF):
            name, inner, where = words[place + 3 + 3 * i : place + 6 + 3 * i]
            where = where & 0xFFFFFF if bitfields else where
            if name in names:
                return base + where
            if name == 0:
                found = self._find(inner, names, base + where)
                if found is not None:
                    return found
        return None


def load(path: Path = VMLINUX) -> Btf:
    """Load the running kernel's BTF.

    Raises:
        BtfError: The kernel was built without CONFIG_DEBUG_INFO_BTF.
    """
    try:
        return Btf(path.read_bytes())
    except FileNotFoundError:
        raise BtfError(
            f"this kernel has no type information ({path} is missing): redirty needs one built "
            "with CONFIG_DEBUG_INFO_BTF, as Debian's are since 5.10"
        ) from None


# name of the -D flag, structure, member, whether it is required
_OFFSETS = (
    ("OFF_TASK_MM", "task_struct", "mm", True),
    ("OFF_TASK_TGID", "task_struct", "tgid", True),
    ("OFF_TASK_FLAGS", "task_struct", "flags", True),
    ("OFF_TASK_SIGNAL", "task_struct", "signal", True),
    ("OFF_SIGNAL_LIVE", "signal_struct", "live", True),
    ("OFF_MM_OWNER", "mm_struct", "owner", False),
    ("OFF_VMA_MM", "vm_area_struct", "vm_mm", True),
    ("OFF_VMA_OPS", "vm_area_struct", "vm_ops", False),
    ("OFF_VMF_VMA", "vm_fault", "vma", True),
    ("OFF_VMF_FLAGS", "vm_fault", "flags", True),
    ("OFF_VMF_ADDRESS", "vm_fault", "address", True),
)
# likewise, for reading page tables
_TABLE_OFFSETS = (
    ("OFF_TASK_FILES", "task_struct", "files"),
    ("OFF_FILES_FDT", "files_struct", "fdt"),
    ("OFF_FDT_FD", "fdtable", "fd"),
    ("OFF_FILE_PRIVATE", "file", "private_data"),
    ("OFF_MM_PGD", "mm_struct", "pgd"),
)


def offset_flags(btf: Btf) -> list[str]:
    """Return the -D flags for compat.h.

    Raises:
        BtfError: A required structure or member is missing.
    """
    flags = []
    for flag, structure, member, required in _OFFSETS:
        offset = btf.offset(structure, member)
        if offset is not None:
            flags.append(f"-D{flag}={offset}")
        elif required:
            raise BtfError(
                f"this kernel's {structure} has no member {member}: redirty cannot trace it"
            )
    # Before change_protection got a tlb as its first parameter (5.19), mprotect made pages writable
    # that were armed by soft-dirty bits (fixed in 6.0, "fix soft-dirty check in
    # can_change_pte_writable").
    if btf.parameters("change_protection")[:1] == ["vma"]:
        flags.append("-DRD_MPROTECT_OPENS")
    return flags


def table_offset_flags(btf: Btf) -> list[str]:
    """Return the -D flags for tables.bpf.c.

    Raises:
        BtfError: A structure or member is missing.
    """
    flags = []
    for flag, structure, member in _TABLE_OFFSETS:
        offset = btf.offset(structure, member)
        if offset is None:
            raise BtfError(f"this kernel's {structure} has no member {member}")
        flags.append(f"-D{flag}={offset}")
    return flags
