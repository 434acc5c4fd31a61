"""Text from outside: names, paths, answers of other programs, recordings of other people. May hold anything.

Whatever reaches a terminal is cleaned by lines() (the program's streams do that), what Textual shows by lines() too and
never as markup (tui/widgets/plain.py), and a CSV file that people open in a spreadsheet by cells(). The files of a
recording are read by programs and keep names as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

_FORMULA = "=+-@\t\r"
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?", re.ASCII)


def lines(text: str) -> str:
    """Replace by a space what a terminal would obey or hide: control characters, bidirectional overrides, surrogates.

    Ends of lines and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


def cells(rows: Iterable[Sequence[object]]) -> Iterator[list[object]]:
    """Yield rows of a table with a ' before each text that a spreadsheet would take for a formula."""
    for row in rows:
        yield [_cell(value) for value in row]


def _cell(value: object) -> object:
    if not isinstance(value, str) or not value.startswith(tuple(_FORMULA)):
        return value
    return value if _NUMBER.fullmatch(value) else "'" + value
