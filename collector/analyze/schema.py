"""Schema of the files of a recording: kinds of values, which may be empty, in which order rows are.

A recording may be damaged, edited, or come from somebody else. Whatever a loader returns has passed these checks,
so that no later step meets a negative count, an infinite time, or a sum that overflows.
"""

from __future__ import annotations

from dataclasses import dataclass

from redirty.collector.recording import columns


@dataclass(frozen=True)
class Number:
    """A column of numbers from `least` to `most`.

    Attributes:
        whole: there are no fractions.
        empty: the field may be empty.
    """

    least: float
    most: float
    whole: bool = True
    empty: bool = False


@dataclass(frozen=True)
class Text:
    """A column of texts. allowed: all that may occur; None: any."""

    allowed: frozenset[str] | None = None


@dataclass(frozen=True)
class Address:
    """A column of addresses: hexadecimal in CSV, numbers in Parquet and after loading."""

    empty: bool = False


Kind = Number | Text | Address

_CLASSES = frozenset({"", "anon_private", "anon_shared", "file_private", "file_shared"})
_PERMS = frozenset(r + w + x + s for r in "r-" for w in "w-" for x in "x-" for s in "ps")
MOST_PAGES = float(1 << 45)  # of 4 KiB, in 57 bits of address
_COUNT, _COUNT_OR_EMPTY = Number(0, MOST_PAGES), Number(0, MOST_PAGES, empty=True)
_ROUND = Number(0, 1 << 40)
_LENGTH = Number(1, 1 << 40)  # in rounds
_PID = Number(0, (1 << 31) - 1)
_SECONDS, _SECONDS_OR_EMPTY = Number(0, 1e9, whole=False), Number(0, 1e9, whole=False, empty=True)
_DURATION = Number(1e-9, 1e9, whole=False)
_MEAN = Number(0, MOST_PAGES, whole=False)
_MEAN_OR_EMPTY = Number(0, MOST_PAGES, whole=False, empty=True)
MOST_WORD = (1 << 64) - 1
_WORD = Number(0, MOST_WORD)
_TEXT, _CLASS = Text(), Text(_CLASSES)


@dataclass(frozen=True)
class Table:
    """The schema of a file.

    Attributes:
        kinds: the kind of each column.
        oldest: number of columns in the oldest recordings; later ones are then empty.
        order: columns by which rows ascend.
        unique: no two rows have the same values in them.
        at_most: pairs of columns: the first is never more than the second.
    """

    kinds: dict[str, Kind]
    oldest: int
    order: tuple[str, ...] = ()
    unique: bool = False
    at_most: tuple[tuple[str, str], ...] = ()


def _table(
    names: tuple[str, ...],
    default: Kind,
    kinds: dict[str, Kind],
    oldest: str | None = None,
    order: tuple[str, ...] = (),
    at_most: tuple[tuple[str, str], ...] = (),
    *,
    unique: bool = False,
) -> Table:
    """Return a schema. default: kind of the columns not in `kinds`; oldest: last column of old recordings."""
    assert kinds.keys() <= set(names)
    last = names[-1] if oldest is None else oldest
    return Table(
        {name: kinds.get(name, default) for name in names},
        names.index(last) + 1,
        order,
        unique,
        at_most,
    )


_REDIRTIED = (("redirtied_pages", "dirty_pages"),)
_REDIRTIED_ONCE = (*_REDIRTIED, ("redirtied_once_pages", "dirty_once_pages"))
_RANGE = (("start", "end"),)
TABLES: dict[str, Table] = {
    "rounds": _table(
        columns.ROUNDS,
        _COUNT_OR_EMPTY,
        {
            "round": _ROUND,
            "start_s": _SECONDS,
            "duration_s": _DURATION,
            "arm_s": _SECONDS,
            "tlb_flush_s": _SECONDS_OR_EMPTY,
            "boundary_s": _SECONDS_OR_EMPTY,
            "busiest_thread_s": _SECONDS_OR_EMPTY,
            **dict.fromkeys(
                ("present_pages", "dirty_pages", "redirtied_pages", "new_pages"), _COUNT
            ),
        },
        "new_pages",
        ("round",),
        _REDIRTIED_ONCE,
        unique=True,
    ),
    # An address space, and after an exec another one of the same process, may have a mapping at one address.
    "mappings": _table(
        columns.MAPPINGS,
        _COUNT,
        {
            "round": _ROUND,
            "pid": _PID,
            "start": Address(),
            "end": Address(),
            "perms": Text(_PERMS),
            "mapping_class": _CLASS,
            "path": _TEXT,
            "stayed_dirty_pages": _COUNT_OR_EMPTY,
        },
        "write_faults",
        ("round",),
        (*_REDIRTIED, *_RANGE),
    ),
    "pages": _table(
        columns.PAGES,
        _COUNT,
        {
            "pid": _PID,
            "address": Address(),
            "mapping_class": _CLASS,
            "first_round": _ROUND,
            "last_round": _ROUND,
            "runs": _COUNT_OR_EMPTY,
        },
        "last_round",
        ("pid", "address"),
        (
            ("first_round", "last_round"),
            ("rounds_redirtied", "rounds_dirty"),
            ("runs", "rounds_dirty"),
        ),
        unique=True,
    ),
    "curve": _table(
        columns.CURVE,
        _MEAN,
        {"pid": _PID, "elapsed_s": _DURATION},
        order=("pid", "elapsed_s"),
    ),
    "curves": _table(
        columns.CURVES,
        _ROUND,
        {
            "mapping_class": _CLASS,
            "elapsed_s": _SECONDS,
            "dirty_pages": _MEAN,
            "redirtied_pages": _COUNT_OR_EMPTY,
            "raced_pages": _COUNT_OR_EMPTY,
            "dirty_once_pages": _MEAN_OR_EMPTY,
            "redirtied_once_pages": _COUNT_OR_EMPTY,
        },
        "redirtied_pages",
        at_most=(*_REDIRTIED_ONCE, ("raced_pages", "dirty_pages")),
    ),
    "tlb": _table(
        columns.TLB,
        _COUNT_OR_EMPTY,
        {
            "round": _ROUND,
            "pid": _PID,
            "reason": _TEXT,
            "time_s": _SECONDS_OR_EMPTY,
            "arm_time_s": _SECONDS_OR_EMPTY,
        },
        "full_flushes",
        ("round",),
    ),
    "runs": _table(
        columns.RUNS,
        _COUNT,
        {"pid": _PID, "rounds_from": _LENGTH, "rounds_to": _LENGTH},
        order=("pid", "rounds_from"),
        at_most=(("rounds_from", "rounds_to"),),
        unique=True,
    ),
    "working_set": _table(
        columns.WORKING_SET, _COUNT, {"first_round": _ROUND, "rounds": _LENGTH, "pid": _PID}
    ),
    "stacks": _table(columns.STACKS, _COUNT, {"pid": _PID, "stack_id": _COUNT_OR_EMPTY, "stack": _TEXT}),
    "zeros": _table(
        columns.ZEROS,
        _COUNT,
        {
            "pid": _PID,
            "start": Address(),
            "end": Address(),
            "mapping_class": _CLASS,
            **dict.fromkeys(
                ("unread_pages", "once_pages", "present_once_pages", "zero_once_pages"),
                _COUNT_OR_EMPTY,
            ),
        },
        "zero_pages",
        at_most=(
            ("present_pages", "pages"),
            ("zero_pages", "present_pages"),
            ("once_pages", "pages"),
            ("present_once_pages", "once_pages"),
            ("zero_once_pages", "present_once_pages"),
            *_RANGE,
        ),
    ),
    "events": _table(
        columns.EVENTS,
        _PID,
        {
            "time_s": _SECONDS,
            "address": Address(),
            "ip": Address(empty=True),
            "kind": _TEXT,
            "stack_id": Number(0, (1 << 31) - 1, empty=True),
        },
    ),
    "physical": _table(
        ("round", "first_pfn", "bits"), _WORD, {"round": _ROUND}, order=("round",)
    ),
    "frames": _table(
        ("round", "pid", "address", "pfn"),
        _PID,
        {"round": _ROUND, "address": Address(), "pfn": Number(0, MOST_WORD, empty=True)},
        order=("round",),
    ),
}  # fmt: skip
