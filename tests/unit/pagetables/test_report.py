"""Texts about page tables and their move."""

from __future__ import annotations

from typing import Any

import numpy as np
from redirty.collector.linux.numa import NumaNodes
from redirty.collector.linux.smaps import SmapsMapping
from redirty.collector.pagetables import move, report
from redirty.collector.pagetables.placement import MappingRow, Placement, Row

_NONE = np.empty(0, np.uint64)
NODES = NumaNodes((0, 1), (0, 1), {0: 0, 1: 1}, _NONE, _NONE, _NONE.astype(np.int64))


def move_answer(**other: Any) -> dict[str, Any]:
    """Return the answer of a move that was done."""
    return {
        "pid": 7,
        "done": True,
        "before": {0: 40},
        "after": {0: 3, 1: 37},
        "to_node": 1,
        "tables": 37,
        "kept": {"the stack": 3},
        "steps": 4,
        "max_pause_s": 0.02,
        "longest_pause_s": 0.012,
        "stopped_s": 0.03,
        "moves_s": 0.02,
        "took_s": 0.2,
        "tlb": {"flushes": 9, "pages": 1, "full_flushes": 2, "other_cpus": 3, "time_s": 1e-3},
        **other,
    }


def test_a_move_as_text() -> None:
    text = move.as_text(move_answer())
    assert "process 7: page tables of the lowest level: 40 on node 0" in text
    assert "now          3 on node 0, 37 on node 1" in text
    assert "37 tables, 74.0 MiB of addresses, in 4 stops" in text
    assert "downtime     30.0 ms in all, 12.0 ms at most (20.0 ms requested)" in text
    assert "9, 2 full, other CPUs interrupted 3 times, 1.0 ms in all" in text
    assert "stay         3: the stack" in text
    assert "not counted here" in move.as_text(move_answer(tlb=None))
    untimed = {"flushes": 9, "pages": 1, "full_flushes": 2, "other_cpus": None, "time_s": None}
    assert "interrupted" not in move.as_text(move_answer(tlb=untimed))


def test_what_would_move_as_text() -> None:
    text = move.as_text(move_answer(done=False, steps=2))
    assert "would move   37 tables, 74.0 MiB of addresses" in text
    assert "--yes moves them" in text
    nothing = move.as_text(move_answer(done=False, tables=0, steps=0, kept={}))
    assert "would move   0 tables" in nothing
    assert "--yes" not in nothing


def placed(**other: Any) -> Placement:
    mapping = SmapsMapping(0x1000, 0x2000, "rw-p", "/a\nb", frozenset())
    rows = [Row("pgd", 0, 1), Row("pte", 0, 30), Row("pte", 1, 10)]
    values: dict[str, Any] = {
        "pid": 7,
        "comm": "x\ty",
        "counted_pages": 44,
        "huge_pages": 4,
        "levels": rows,
        "mappings": [MappingRow(mapping, 0, 30), MappingRow(mapping, 1, 10)],
        "ran_s": {1: 2.0},
        "nodes": NODES,
    }
    return Placement(**(values | other))


def test_where_tables_lie_as_text_and_json() -> None:
    text = report.as_text([placed()], NODES, "")
    assert "process 7 (x y): 176.0 KiB of page tables" in text
    assert "  pte               30          10" in text
    assert "0x1000 rw-p /a b" in text
    assert "4 huge pages need no pte" in text
    assert "remote page walks  75%" in text
    assert "-p 7 --to-node 1 --yes" in text
    assert "walked by BPF" in text
    answer = report.as_json([placed()], NODES, "")
    assert answer["source"] == "walk"
    assert answer["processes"][0]["remote_walk_share"] == 0.75


def test_placement_where_page_tables_cannot_be_walked() -> None:
    one = placed(levels=[], mappings=[], huge_pages=None)
    text = report.as_text([one], NODES, "lockdown")
    assert "cannot be read here for one process (lockdown)" in text
    assert "vmstat" in text
    answer = report.as_json([one], NODES, "lockdown")
    assert (answer["source"], answer["reason"]) == ("vmstat", "lockdown")
    assert answer["processes"][0]["counted_pages"] == 44
    assert answer["processes"][0]["remote_walk_share"] is None
