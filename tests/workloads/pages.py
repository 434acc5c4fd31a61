"""Areas, and sets of pages as sorted numpy arrays of page numbers (address / 4096)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

PAGE_BYTES = 4096

Pages = NDArray[np.uint64]


def expand(ranges: Iterable[Sequence[int]], base: int = 0) -> Pages:
    """Return the page numbers of [[first, last], ...], sorted, each raised by `base`."""
    parts = [np.arange(first + base, last + base + 1, dtype=np.uint64) for first, last in ranges]
    return union(parts)


def union(sets: Iterable[Pages]) -> Pages:
    """Return all page numbers that are in any of the sets, sorted, each once."""
    parts = list(sets)
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, dtype=np.uint64)


def digest(contents: bytes | bytearray | memoryview) -> int:
    """Return what phases' `digest` gives for an area with these contents:
    sum of mix64(word + (i + 1) * odd) mod 2^64.
    """
    words = np.frombuffer(contents, dtype="<u8").astype(np.uint64)
    values = words + np.arange(1, len(words) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return int(values.sum(dtype=np.uint64))


@dataclass(frozen=True)
class Area:
    """A mapping of a workload. `kind` is how it was made, `mapping_class` what redirty calls it."""

    name: str
    kind: str
    mapping_class: str
    start: int
    end: int
    fd: int
    path: str

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Build an area from the fields of an answer."""
        return cls(**fields)

    @property
    def first_page(self) -> int:
        """The page number of its first page."""
        return self.start // PAGE_BYTES

    @property
    def page_count(self) -> int:
        """The number of its pages."""
        return (self.end - self.start) // PAGE_BYTES

    @property
    def pages(self) -> Pages:
        """The page numbers of all its pages."""
        return np.arange(self.first_page, self.end // PAGE_BYTES, dtype=np.uint64)

    def expand(self, ranges: Iterable[Sequence[int]]) -> Pages:
        """Return page numbers of ranges of page indices within this area."""
        return expand(ranges, self.first_page)


@dataclass(frozen=True)
class Touched:
    """The pages that one command touched, and by which thread; times are CLOCK_MONOTONIC."""

    area: Area
    pages: Pages
    threads: dict[int, Pages] = field(default_factory=dict)
    start_ns: int = 0
    end_ns: int = 0

    @classmethod
    def from_json(cls, area: Area, answer: Mapping[str, Any]) -> Self:
        """Build it from an answer."""
        threads = {
            int(tid): area.expand(ranges) for tid, ranges in answer.get("threads", {}).items()
        }
        # Only `transient` answers with writers: many threads, one page each.
        threads.update(
            {tid: area.expand([[page, page]]) for tid, page in answer.get("writers", [])}
        )
        return cls(
            area,
            area.expand(answer["ranges"]),
            threads,
            answer.get("start_ns", 0),
            answer.get("end_ns", 0),
        )


def areas_of(answer: Mapping[str, Any]) -> dict[str, Area]:
    """Return the areas that an answer lists, by name."""
    return {fields["name"]: Area.from_json(fields) for fields in answer.get("areas", [])}
