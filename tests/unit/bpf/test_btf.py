"""Kernel types from BTF: synthetic ones, whose offsets are all known, and the running kernel's."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest
import redirty.bpfprogs as programs
from redirty.collector.bpf import btf

from tests import tiers

_HEADER_BYTES = 24
INT, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, CONST = 1, 2, 3, 4, 5, 6, 8, 10
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = 12, 13, 14, 15, 16, 17, 18, 19


class Maker:
    """Writes BTF as Documentation/bpf/btf.rst of the kernel describes it; types count from 1."""

    def __init__(self) -> None:
        self.types = b""
        self.strings = b"\0"
        self.count = 0

    def name(self, text: str) -> int:
        """Add a name to the strings, also one that is there already; return its offset."""
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text) - 1

    def add(self, kind: int, name: str, vlen: int, size: int, *more: int, flag: int = 0) -> int:
        info = flag << 31 | kind << 24 | vlen
        self.types += struct.pack(f"<{3 + len(more)}I", self.name(name), info, size, *more)
        self.count += 1
        return self.count

    def members(
        self, kind: int, name: str, *members: tuple[str, int, int], size: int = 64, flag: int = 0
    ) -> int:
        """Add a struct or union; members: (name, type, offset in bits)."""
        words = [w for member, of, bits in members for w in (self.name(member), of, bits)]
        return self.add(kind, name, len(members), size, *words, flag=flag)

    def blob(self, magic: int = 0xEB9F) -> bytes:
        lengths = (0, len(self.types), len(self.types), len(self.strings))
        header = struct.pack("<HBBIIIII", magic, 1, 0, _HEADER_BYTES, *lengths)
        return header + self.types + self.strings


@pytest.fixture
def types() -> btf.Btf:
    m = Maker()
    number = m.add(INT, "int", 0, 4, 32)
    pointer = m.add(PTR, "", 0, number)
    m.add(ARRAY, "", 0, 0, number, number, 8)
    m.add(ENUM, "colour", 2, 4, m.name("red"), 0, m.name("mm"), 1)
    m.add(ENUM64, "wide", 1, 8, m.name("huge"), 0, 1)
    m.add(FLOAT, "double", 0, 8)
    # as the kernel's vm_area_struct has it: in an unnamed union in an unnamed struct
    inner = m.members(STRUCT, "", ("start", number, 0), ("vm_mm", pointer, 64))
    union = m.members(UNION, "", ("", inner, 0), ("rcu", number, 0))
    hidden = m.add(CONST, "", 0, m.add(TYPEDEF, "hidden_t", 0, union))
    m.members(STRUCT, "vma", ("first", number, 0), ("", hidden, 128), ("last", number, 512))
    # a member of a named inner struct is not one of the outer
    named = m.members(STRUCT, "named", ("deep", number, 32))
    m.members(STRUCT, "outer", ("box", named, 32), ("flags", number, 96))
    # bit fields: the offset's upper 8 bits are the field's size
    m.members(STRUCT, "bits", ("a", number, 3 << 24 | 1), ("b", number, 32 << 24 | 96), flag=1)
    proto = m.add(FUNC_PROTO, "", 2, number, m.name("vma"), pointer, m.name("address"), number)
    m.add(VAR, "counter", 0, number, 1)
    m.add(DATASEC, ".data", 1, 4, 19, 0, 4)
    m.add(DECL_TAG, "tag", 0, number, 0)
    m.add(TYPE_TAG, "user", 0, pointer)
    # of two of one name the first counts; a name that ends another is not that other
    m.members(STRUCT, "twice", ("x", number, 8))
    m.members(STRUCT, "twice", ("x", number, 16))
    m.members(STRUCT, "at_vma", ("first", number, 320))
    m.add(FUNC, "handle_mm_fault", 1, proto)
    return btf.Btf(m.blob())


@pytest.mark.parametrize(
    ("structure", "member", "offset"),
    [
        ("vma", "first", 0),
        ("vma", "start", 16),
        ("vma", "vm_mm", 24),
        ("vma", "rcu", 16),
        ("vma", "last", 64),
        ("outer", "flags", 12),
        ("outer", "box", 4),
        ("outer", "deep", None),
        ("bits", "b", 12),
        ("bits", "a", 0),
        ("twice", "x", 1),
        ("at_vma", "first", 40),
        ("vma", "none", None),
        ("none", "first", None),
        ("colour", "red", None),
    ],
)
def test_offsets(types: btf.Btf, structure: str, member: str, offset: int | None) -> None:
    assert types.offset(structure, member) == offset


def test_functions_by_name(types: btf.Btf) -> None:
    number = types.function_id("handle_mm_fault")
    assert number == types._at.index(len(types._words) - 3), "the last type of the blob"
    assert types.function_id("mm_fault") is None
    assert types.function_id("vma") is None, "a struct is not a function"


def test_parameters_by_name(types: btf.Btf) -> None:
    assert types.parameters("handle_mm_fault") == ["vma", "address"]
    assert types.parameters("vma") == []


def test_data_that_is_not_btf() -> None:
    with pytest.raises(btf.BtfError, match="format"):
        btf.Btf(Maker().blob(magic=0x9FEB))


def test_a_kernel_without_btf(tmp_path: Path) -> None:
    with pytest.raises(btf.BtfError, match="CONFIG_DEBUG_INFO_BTF"):
        btf.load(tmp_path / "vmlinux")


def test_a_missing_member_is_named(types: btf.Btf) -> None:
    with pytest.raises(btf.BtfError, match="task_struct has no member mm"):
        btf.offset_flags(types)


def test_flags_are_those_used_by_the_programs() -> None:
    used = set(re.findall(r"\bOFF_\w+", programs.source()))
    used |= set(re.findall(r"\bOFF_[A-Z]+_[A-Z]+", (programs.DIRECTORY / "compat.h").read_text()))
    assert used == {flag for flag, *_ in btf._OFFSETS}


def test_btf_of_the_running_kernel() -> None:
    tiers.require(os.access(btf.VMLINUX, os.R_OK), f"needs {btf.VMLINUX}")
    types = btf.load()
    flags = dict(flag.removeprefix("-D").split("=") for flag in btf.offset_flags(types))
    needed = {flag for flag, _, _, must in btf._OFFSETS if must}
    assert needed <= set(flags)
    # By the kernel's sources, for all versions and options: the order of vm_fault's members.
    assert int(flags["OFF_VMF_VMA"]) == 0
    assert int(flags["OFF_VMF_ADDRESS"]) in range(8, 64)
    assert types.offset("pt_regs", "orig_ax") in (None, 120)  # x86-64: the ABI of ptrace
    assert types.offset("list_head", "prev") == 8
    assert types.function_id("handle_mm_fault") is not None
    assert types.function_id("no_such_function_of_the_kernel") is None
