"""Arming by userfaultfd, without a kernel: which shared mappings get page tables ahead of time."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from redirty.collector.arm import pagemap
from redirty.collector.arm.uffd import UffdArmed
from redirty.collector.host.mappings import Mapping, Mappings

SIZE = 128 << 20  # eight of them are all that is prepared


class Scans:
    """In place of /proc/PID/pagemap: finds nothing, and keeps what was asked for.

    prepared: (start, end) of the scans that protect also places where no page is.
    """

    def __init__(self, pid: int) -> None:
        self.prepared: list[tuple[int, int]] = []

    def scan(self, start: int, end: int, **how: Any) -> pagemap.Regions:
        if how["flags"] & pagemap.WP_MATCHING and not how["anyof"]:
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
    """A part of the shared mapping of a number."""
    at = (number + 1) << 32
    return Mapping(at + start, at + end, "rw-s", f"/memfd:{number}")


def prepared(armed: UffdArmed, *items: Mapping) -> list[Mapping]:
    """Arms; those of the mappings that were prepared in it."""
    scans = armed._pagemap
    assert isinstance(scans, Scans)
    scans.prepared.clear()
    armed.arm(Mappings.of(items))
    return [m for m in items if (m.start, m.end) in scans.prepared]


def test_up_to_a_gibibyte_is_prepared(armed: UffdArmed) -> None:
    nine = [shared(i) for i in range(9)]
    assert prepared(armed, *nine) == nine[:8]
    assert prepared(armed, *nine) == [], "once is enough"


def test_large_and_private_ones_are_not_prepared(armed: UffdArmed) -> None:
    private = Mapping(1 << 40, (1 << 40) + SIZE, "rw-p", "")
    assert prepared(armed, shared(0, end=3 * SIZE), private) == []


def test_a_mapping_that_changes_counts_once(armed: UffdArmed) -> None:
    """Split in two, joined and grown again and again: it is one mapping's worth all the time."""
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


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EPERM])
def test_a_mapping_that_was_gone_for_a_moment(
    armed: UffdArmed, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Unmapped when it is to be put under the descriptor, and there again in the next list: which
    may look the same."""
    mappings = Mappings.of((shared(0),))
    done = []

    def gone(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    armed.arm(Mappings.of((shared(1),)))
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "ioctl", gone)
        armed.arm(mappings)
    assert armed.unarmed == 1
    monkeypatch.setattr(fcntl, "ioctl", lambda *_: done.append(1))
    armed.arm(mappings)
    assert done and armed.unarmed == 0


def test_one_that_cannot_be_armed_is_not_tried_for_ever(
    armed: UffdArmed, monkeypatch: pytest.MonkeyPatch
) -> None:
    mappings = Mappings.of((shared(0),))
    tried = []

    def refuse(*_: object) -> int:
        tried.append(1)
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    for _ in range(20):
        armed.arm(mappings)
    assert 1 < len(tried) < 10 and armed.unarmed == 1
