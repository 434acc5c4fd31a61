"""Arming by userfaultfd without a kernel: registration, and the preparation of shared mappings."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from redirty.collector.arming.uffd import UffdArmed
from redirty.collector.arming.uffd_registration import adjacent
from redirty.collector.linux import pagemap
from redirty.collector.linux.maps import Mapping, Mappings

SIZE = 128 << 20  # eight of them are all that is prepared


class Scans:
    """A stand-in for /proc/PID/pagemap that finds nothing and records the requests.

    prepared: (start, end) of the scans that also protect places without a page.
    """

    def __init__(self, pid: int) -> None:
        self.prepared: list[tuple[int, int]] = []

    def scan(self, start: int, end: int, **how: Any) -> pagemap.Regions:
        if how.get("flags", 0) & pagemap.WP_MATCHING and not how.get("anyof"):
            self.prepared.append((start, end))
        return np.empty(0, pagemap.REGION)

    def close(self) -> None:
        pass


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch) -> Iterator[UffdArmed]:
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: 0)
    monkeypatch.setattr(pagemap, "Pagemap", Scans)
    opened = UffdArmed(os.getpid(), os.open(os.devnull, os.O_RDONLY), 0.0)
    yield opened
    opened.close()


def shared(number: int, start: int = 0, end: int = SIZE) -> Mapping:
    """Return a part of the shared mapping of a number."""
    at = (number + 1) << 32
    return Mapping(at + start, at + end, "rw-s", f"/memfd:{number}")


def prepared(armed: UffdArmed, *items: Mapping) -> list[Mapping]:
    """Arm; return those of the mappings that were prepared by it."""
    scans = armed._pagemap
    assert isinstance(scans, Scans)
    scans.prepared.clear()
    armed.arm(Mappings.of(items))
    return [m for m in items if any(a <= m.start and m.end <= b for a, b in scans.prepared)]


def test_up_to_a_gibibyte_is_prepared(armed: UffdArmed) -> None:
    nine = [shared(i) for i in range(9)]
    assert prepared(armed, *nine) == nine[:8]
    assert prepared(armed, *nine) == [], "once is enough"


def test_large_and_private_ones_are_not_prepared(armed: UffdArmed) -> None:
    private = Mapping(1 << 40, (1 << 40) + SIZE, "rw-p", "")
    assert prepared(armed, shared(0, end=3 * SIZE), private) == []


def test_a_mapping_that_changes_counts_once(armed: UffdArmed) -> None:
    """A mapping that is split, merged and grown repeatedly takes the room of one mapping."""
    for cut in range(4096, 40 * 4096, 4096):
        halves = [shared(0, end=cut), shared(0, start=cut)]
        assert prepared(armed, *halves) == halves
        whole = shared(0, end=SIZE + cut)
        assert prepared(armed, whole) == [whole]


def test_a_mapping_that_is_unmapped_gives_its_share_back(armed: UffdArmed) -> None:
    eight = [shared(i) for i in range(8)]
    assert prepared(armed, *eight) == eight
    assert prepared(armed, *eight[1:], shared(8)) == [shared(8)]
    assert prepared(armed, *eight[1:], shared(8), shared(9)) == []
    for number in range(10, 30):
        assert prepared(armed, shared(number)) == [shared(number)]


# ---- runs ----


def row_of(count: int, gaps: frozenset[int] = frozenset()) -> list[Mapping]:
    """Return adjacent mappings of a page each, with gaps behind some of them."""
    at, found = 1 << 32, []
    for i in range(count):
        found.append(Mapping(at, at + 4096, "rw-p", str(i)))
        at += 8192 if i in gaps else 4096
    return found


def test_runs_end_at_gaps() -> None:
    row = row_of(7, frozenset({1, 5}))
    assert adjacent(row) == [row[:2], row[2:6], row[6:]]
    assert adjacent(row[:1]) == [row[:1]]
    assert adjacent([]) == []


@pytest.mark.parametrize("refused", [set(), {0}, {99}, {3, 4, 50}, set(range(100))], ids=str)
def test_one_call_for_a_run_and_few_for_one_with_refused_mappings(
    armed: UffdArmed, monkeypatch: pytest.MonkeyPatch, refused: set[int]
) -> None:
    """The kernel takes all of a range or nothing of it, so a refused run is tried in halves."""
    row = row_of(100)
    done: list[Mapping] = []
    calls = 0

    def register(_fd: int, _request: int, argument: bytes) -> int:
        nonlocal calls
        calls += 1
        start, length, _, _ = struct.unpack("QQQQ", argument)
        inside = [m for m in row if start <= m.start < start + length]
        if any(row.index(m) in refused for m in inside):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        done.extend(inside)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", register)
    armed.arm(Mappings.of(tuple(row)))
    assert done == [m for i, m in enumerate(row) if i not in refused], "each once"
    assert armed.unarmed == len(refused)
    assert calls <= 1 + 2 * 7 * len(refused)
    calls = 0
    armed.arm(Mappings.of((*row, Mapping(1 << 40, (1 << 40) + 4096, "rw-p", ""))))
    assert calls == 1, "what is refused is not tried again"
