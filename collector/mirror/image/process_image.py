"""The processes of a mirror, with their mappings and the files behind those."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from redirty.collector.mirror.image.page_store import MAX_PAGE
from redirty.collector.pageset import PAGE_SHIFT

_MAX_ADDRESS = 1 << 63
_MAX_PID = 1 << 31


def _whole(value: object) -> int:
    """Require a whole number, as JSON has them."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("a number is missing")
    return value


@dataclass(frozen=True)
class PlacedMapping:
    """A mapping of a process.

    Attributes:
        first: page number of its start.
        end: page number of its end, exclusive.
        perms: as in /proc/PID/maps: 'rw-p'.
        path: as in /proc/PID/maps.
        source: number of the file behind it; None: no file.
        offset: its first page in that file.
    """

    first: int
    end: int
    perms: str
    path: str
    source: int | None = None
    offset: int = 0

    def __post_init__(self) -> None:
        if (
            not 0 <= self.first < self.end <= _MAX_ADDRESS >> PAGE_SHIFT
            or not 0 <= self.offset < MAX_PAGE
            or len(self.perms) != 4
        ):
            raise ValueError("invalid mapping")

    def as_json(self) -> list[Any]:
        """Return a JSON-serializable list that from_json() takes."""
        return [self.first, self.end, self.perms, self.path, self.source, self.offset]

    @classmethod
    def from_json(cls, fields: list[Any]) -> PlacedMapping:
        """Check and convert the result of as_json().

        Raises:
            ValueError: a field is out of range.
            TypeError: a field has the wrong type.
        """
        first, end, perms, path, source, offset = fields
        if not isinstance(perms, str) or not isinstance(path, str):
            raise TypeError("the permissions and the path of a mapping are strings")
        file = None if source is None else _whole(source)
        return cls(_whole(first), _whole(end), perms, path, file, _whole(offset))


@dataclass(frozen=True)
class PlacedProcess:
    """A process of the mirror.

    Attributes:
        pid: its process ID.
        source: number of the source of its own pages.
        mappings: its mappings, ascending, without overlaps.
        notes: the notes of its core file.
        zero: runs (first page, pages) of own pages that are zero and hide those of a file.
    """

    pid: int
    source: int
    mappings: tuple[PlacedMapping, ...]
    notes: bytes
    zero: tuple[tuple[int, int], ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-serializable dict that from_json() takes; the notes travel separately."""
        return {
            "pid": self.pid,
            "source": self.source,
            "zero": [list(run) for run in self.zero],
            "mappings": [m.as_json() for m in self.mappings],
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any], notes: bytes) -> PlacedProcess:
        """Check and convert the result of as_json().

        Raises:
            ValueError: a field is out of range, or mappings overlap.
            TypeError: a field has the wrong type.
            KeyError: a field is missing.
        """
        if not isinstance(fields, dict):
            raise TypeError("a process is an object")
        mappings = tuple(map(PlacedMapping.from_json, fields["mappings"]))
        if any(a.end > b.first for a, b in itertools.pairwise(mappings)):
            raise ValueError("mappings overlap")
        zero = tuple((_whole(first), _whole(length)) for first, length in fields["zero"])
        if any(first < 0 or length <= 0 or first + length > MAX_PAGE for first, length in zero):
            raise ValueError("page number out of range")
        pid = _whole(fields["pid"])
        if not 0 < pid < _MAX_PID:
            raise ValueError("process ID out of range")
        return cls(pid, _whole(fields["source"]), mappings, notes, zero)
