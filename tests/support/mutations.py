"""Random damage to files: bytes, cells, rows, columns, values of JSON. Seeded, so that a failure can be repeated."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import resource
from collections.abc import Iterator
from random import Random
from typing import Any

CELLS = (
    "", "-1", "0", "1", "0.5", "1e308", "-1e308", "1e-320", "inf", "-inf", "nan", "NaN", "NA", "None", "True",
    "9" * 20, "9" * 400, "4398046511104", "35184372088832", "9007199254740993", "18446744073709551615", "1_0",
    "0x", "0x10", "-0x10", "0x" + "f" * 16, "0x" + "f" * 17, "0xfffffffffffff000", "a,b", 'a"b', "\r\n", "\0",
    " 5", "5 ", "+5", "\u0663", "\ud7ff", "x" * 5000, "anon_private", "rw-p", "1e5", "1j", "2026-01-01",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), 1 << 63, 10**400, "", "x",
    "0x10", "-0x10", "0x" + "f" * 17, "\ud800", "\x1b]0;x\a", "a\nb", [], {}, [None], [[]], [{}], {"": None},
)  # fmt: skip


def of_bytes(data: bytes, chance: Random) -> bytes:
    """Change some bytes: flipped, inserted, removed, repeated, zeroed, cut off."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at = chance.randrange(len(found) + 1)
        size = chance.choice((1, 1, 4, 8, 100, len(found)))
        match chance.randrange(7):
            case 0 if at < len(found):
                found[at] ^= 1 << chance.randrange(8)
            case 1:
                found[at:at] = chance.randbytes(min(size, 100))
            case 2:
                del found[at : at + size]
            case 3:
                found[at:at] = found[at : at + min(size, 1000)]
            case 4:
                found[at : at + size] = bytes(len(found[at : at + size]))
            case 5:
                del found[at:]
            case _:
                found[at : at + 8] = chance.choice((b"\xff" * 8, b"\x7f" * 8, bytes(8)))
    return bytes(found)


def of_csv(data: bytes, chance: Random) -> bytes:
    """Change some bytes, cells, rows or columns of a CSV file."""
    if chance.random() < 0.2:
        return of_bytes(data, chance)
    rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
    for _ in range(chance.choice((1, 1, 1, 2))):
        at, column = chance.randrange(len(rows)), chance.randrange(len(rows[0]))
        row = rows[at]
        match chance.randrange(9):
            case 0:
                del rows[at]
                if not rows:
                    return b""
            case 1:
                rows.insert(chance.randrange(len(rows) + 1), row)
            case 2:
                other = chance.randrange(len(rows))
                rows[at], rows[other] = rows[other], row
            case 3:
                rows = [r[:column] + r[column + 1 :] for r in rows]
            case 4:
                rows = [[*r[:column], *r[column : column + 1], *r[column:]] for r in rows]
            case 5:
                cell = chance.choice(CELLS)
                rows = [rows[0], *([*r[:column], cell, *r[column + 1 :]] for r in rows[1:])]
            case 6:
                rows[at] = [*row, chance.choice(CELLS)]
            case _ if column < len(row):
                rows[at] = [*row[:column], chance.choice(CELLS), *row[column + 1 :]]
        if not rows[0]:
            break
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def _places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*path, key))


def of_json(data: bytes, chance: Random) -> bytes:
    """Change some bytes or values of a JSON object."""
    if chance.random() < 0.2:
        return of_bytes(data, chance)
    content = json.loads(data)
    for _ in range(chance.choice((1, 1, 2))):
        places = list(_places(content))
        if not places:
            break
        *path, key = chance.choice(places)
        inside = content
        for step in path:
            inside = inside[step]
        if chance.random() < 0.2:
            del inside[key]
        else:
            inside[key] = chance.choice(VALUES)
    return json.dumps(content).encode()


@contextlib.contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Let this process have `more` bytes of address space in addition to what it has now."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        now = int(file.read().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)
