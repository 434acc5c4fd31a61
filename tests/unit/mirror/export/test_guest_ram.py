"""The memory of a QEMU guest: its addresses, and the process that has it."""

from __future__ import annotations

import pytest
from redirty.collector.mirror.export.guest_ram import find_owner
from redirty.collector.target.qemu import Piece, pieces


def test_guest_physical_addresses_come_from_the_flat_view() -> None:
    """Memory that is read-only in part is one piece; video memory, and other views, do not count."""
    flat_view = """FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000fff (prio 0, ram): pc.ram

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000effff (prio 0, rom): pc.ram @00000000000c0000
  00000000000f0000-00000000bfffffff (prio 0, ram): pc.ram @00000000000f0000
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  0000000100000000-000000013fffffff (prio 0, ram): pc.ram @00000000c0000000
  0000000140000000-0000000147ffffff (prio 0, ram): /objects/one KVM
"""
    expected = [(0, 0xA0000), (0xC0000, 0xC0000000), (0x100000000, 0x140000000)]
    assert pieces(flat_view, {"pc.ram"}) == expected
    assert pieces(flat_view, {"one", "/objects/one"}) == [(0x140000000, 0x148000000)]
    assert pieces("FlatView #0\n no such lines\n", {"pc.ram"}) == []


def test_the_owner_of_guest_memory_is_the_process_with_all_pieces() -> None:
    mib = 1 << 20
    blocks = [(4 * mib, 16 * mib, 1), (4 * mib, 32 * mib, 1), (8 * mib, 64 * mib, 2)]
    one, two = Piece(0, mib, 16 * mib), Piece(mib, 4 * mib, 32 * mib)
    assert find_owner([one, two], blocks) == 1
    assert find_owner([Piece(0, 8 * mib, 64 * mib)], blocks) == 2
    for wrong in ([one, Piece(0, mib, 64 * mib)], [Piece(0, 8 * mib, 16 * mib)], [Piece(0, 1, 0)]):
        with pytest.raises(ValueError, match="remapped"):
            find_owner(wrong, blocks)
