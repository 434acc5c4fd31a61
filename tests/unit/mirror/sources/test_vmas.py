"""Mappings of a process, parsed with the files behind them."""

from __future__ import annotations

from redirty.collector.mirror.sources.vmas import parse_line, without_overlaps
from redirty.collector.pageset import PAGE_SIZE


def test_a_line_of_maps_is_a_mapping() -> None:
    vma = parse_line(b"7f0000000000-7f0000002000 r--s 00003000 08:01 77    /a b\n"[:-1])
    assert vma is not None
    assert (vma.pages_of_file(), vma.shared, vma.has_file) == ((3, 5), True, True)
    assert vma.path == "/a b"
    assert parse_line(b"ffff0000-ffff1000 r--p 00000000 00:00 0    [vvar]") is None
    anonymous = parse_line(b"1000-2000 rw-p 00000000 00:00 0")
    assert anonymous is not None and not anonymous.has_file
    huge = parse_line(b"200000-400000 rw-p 00000000 00:0f 9   /anon_hugepage (deleted)")
    assert huge is not None and not huge.has_file
    grown = without_overlaps([vma, vma._replace(end=vma.end + PAGE_SIZE)])
    assert [(v.start, v.end) for v in grown] == [
        (vma.start, vma.end),
        (vma.end, vma.end + PAGE_SIZE),
    ]
    assert grown[1].offset == 0x5000
