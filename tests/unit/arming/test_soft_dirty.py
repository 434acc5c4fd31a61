"""Arming by soft-dirty bits without a kernel: which pagemap entries count as written."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from redirty.collector.arming import soft_dirty
from redirty.collector.arming.soft_dirty import SoftDirtyArmed
from redirty.collector.errors import GoneError
from redirty.collector.linux import pagemap
from redirty.collector.linux.maps import Mapping, Mappings
from redirty.collector.pageset import U64, PageSet, page_numbers

PRESENT, SWAPPED, FILE, SOFT = 1 << 63, 1 << 62, 1 << 61, 1 << 55
ZERO = 7  # frame of the zero page

# By page: absent, clean, soft-dirty, zero page, file page, swapped clean, swapped soft-dirty.
ENTRIES = [
    SOFT,
    PRESENT | 9,
    PRESENT | SOFT | 9,
    PRESENT | SOFT | ZERO,
    PRESENT | SOFT | FILE | 9,
    SWAPPED | 5,
    SWAPPED | SOFT | 5,
]


class Entries:
    """A stand-in for /proc/PID/pagemap in which each mapping shows ENTRIES from its start on."""

    gone = False

    def __init__(self, pid: int, regions: int) -> None:
        pass

    def entries(self, first: int, count: int) -> U64:
        if self.gone:
            return np.empty(0, np.uint64)
        assert first % 16 + count <= len(ENTRIES)
        return np.array(ENTRIES[first % 16 :][:count], np.uint64)

    def close(self) -> None:
        pass


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftDirtyArmed]:
    monkeypatch.setattr(pagemap, "Pagemap", Entries)
    monkeypatch.setattr(pagemap, "hugetlb_kib", lambda _: 4)
    monkeypatch.setattr(soft_dirty, "zero_page_frame", lambda: ZERO)
    monkeypatch.setattr(soft_dirty, "starts_with_flag", lambda *_: frozenset({48 << 12, 64 << 12}))
    monkeypatch.setattr(SoftDirtyArmed, "protect", lambda _: None)
    opened = SoftDirtyArmed(os.getpid(), part=lambda _: Mappings.of(MAPPINGS))
    yield opened
    opened.close()


def mapping(number: int, perms: str) -> Mapping:
    """Return a mapping that starts at page 16 * number."""
    return Mapping(16 * number << 12, 16 * number + len(ENTRIES) << 12, perms, "")


MAPPINGS = (
    mapping(0, "rw-p"),
    mapping(1, "rw-s"),
    mapping(2, "r--s"),
    mapping(3, "rw-p"),  # hugetlb
    mapping(4, "r--s"),  # hugetlb
)


def by_mapping(pages: PageSet) -> dict[int, list[int]]:
    """Return the pages of each mapping, counted from its start."""
    found: dict[int, list[int]] = {number: [] for number in range(len(MAPPINGS))}
    for page in page_numbers(pages).tolist():
        found[page // 16].append(page % 16)
    return found


def test_soft_dirty_pages_are_candidates(armed: SoftDirtyArmed) -> None:
    mappings = Mappings.of(MAPPINGS)
    for again in (False, True):
        candidates = armed.arm(mappings)
        assert by_mapping(candidates) == {
            0: [2, 3, 4, 6],
            1: [2, 3, 4, 6],
            2: [2, 3, 4, 6],
            3: [1, 2, 3, 4, 5, 6],  # the kernel keeps no bits of hugetlb pages
            4: [2, 3, 4, 6],
        }
        written, present = armed.resolve(candidates, mappings)
        assert by_mapping(present) == by_mapping(candidates)
        assert by_mapping(written) == {
            0: [2, 6],  # neither the zero page nor a page of the file
            1: [2, 4, 6],
            2: [] if again else [2, 4, 6],  # one that stayed read-only was not written
            3: [1, 2, 5, 6],
            4: [] if again else [2, 4, 6],
        }


def test_pages_of_files_and_the_zero_page_are_nobodys_own(armed: SoftDirtyArmed) -> None:
    found = armed.present(Mappings.of(MAPPINGS), 0, 1 << 52)
    assert by_mapping(found.pages) == {number: [1, 2, 3, 4, 5, 6] for number in range(5)}
    files = [i for i, e in enumerate(ENTRIES) if e & int(pagemap.ENTRY_FILE)]
    zero = [i for i, e in enumerate(ENTRIES) if e & (1 << 63) and e & ((1 << 55) - 1) == ZERO]
    assert files and zero
    assert by_mapping(found.unowned) == {number: sorted({*files, *zero}) for number in range(5)}


def test_all_present_pages_are_candidates_when_the_log_may_lack_some(armed: SoftDirtyArmed) -> None:
    mappings = Mappings.of(MAPPINGS)
    candidates = armed.arm(mappings)
    more = armed.assume_dirty(mappings)
    assert by_mapping(more) == {number: [1, 2, 3, 4, 5, 6] for number in range(5)}
    written, _ = armed.resolve(candidates | more, mappings)
    assert by_mapping(written) == {
        0: [1, 2, 5, 6],
        1: [1, 2, 4, 5, 6],
        2: [2, 4, 6],  # at the arm it was not known yet that it stayed read-only
        3: [1, 2, 5, 6],
        4: [2, 4, 6],
    }


def test_memory_that_is_gone(armed: SoftDirtyArmed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Entries, "gone", True)
    with pytest.raises(GoneError):
        armed.arm(Mappings.of(MAPPINGS))
