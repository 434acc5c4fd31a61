"""Text from outside: what reaches a terminal, and what reaches a spreadsheet."""

from __future__ import annotations

import io
import random
import unicodedata

import pytest
from redirty.collector import text
from redirty.collector.cli.streams import CleanStream

from tests.support import fuzz

HOSTILE = (
    "\x1b]0;title\x07", "\x1b[31mred", "\x9b31m", "\x9d0;title\x9c", "\x08\x08", "\x00", "\x7f", "a\rb", "\x0b\x0c",
    "\u202egpj.exe", "\u2066x\u2069", "\u200b", "\ufeff", "\ud800", "\u2028", "\x85", "\U000e0001",
)  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_a_terminal_obeys_becomes_spaces(hostile: str) -> None:
    cleaned = text.lines(f"before {hostile} after")
    assert len(cleaned) == len(f"before {hostile} after")
    assert cleaned.isprintable()
    assert cleaned.startswith("before ") and cleaned.endswith(" after")


@pytest.mark.parametrize("plain", ["", "a b", "two\nlines\n", "a\tb", "ä 漢 😀 █ …", "[/b] =1+1"])
def test_other_text_stays(plain: str) -> None:
    assert text.lines(plain) == plain


def _stream(errors: str = "strict") -> tuple[io.BytesIO, CleanStream]:
    raw = io.BytesIO()
    return raw, CleanStream(raw, "utf-8", errors)


def test_a_stream_cleans_all_that_is_printed() -> None:
    raw, stream = _stream()
    for hostile in HOSTILE:
        print("x", hostile, "y", file=stream)
    stream.flush()
    printed = raw.getvalue().decode()
    assert printed.replace("\n", "").isprintable()
    assert printed.count("\n") == len(HOSTILE)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("\rround 1   ", "\rround 1   "),
        ("\r   \r", "\r   \r"),
        ("\r", "\r"),
        ("a\rb", "a b"),
        ("\ra\rb\r", "\ra b\r"),
        ("a\r\nb", "a \nb"),
    ],
)
def test_progress_lines_keep_their_carriage_return(written: str, kept: str) -> None:
    raw, stream = _stream()
    assert stream.write(written) == len(written)
    stream.flush()
    assert raw.getvalue().decode() == kept


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("=HYPERLINK(1,2)", "'=HYPERLINK(1,2)"),
        ("+1+1", "'+1+1"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\tx", "'\tx"),
        ("\r=1", "'\r=1"),
        ("-", "'-"),
        ("-1.5", "-1.5"),
        ("+3", "+3"),
        ("-1e-05", "-1e-05"),
        ("-1\n", "'-1\n"),
        ("a=b", "a=b"),
        ("", ""),
        (-5, -5),
        (-0.5, -0.5),
        (None, None),
    ],
)
def test_a_spreadsheet_gets_no_formula(value: object, shown: object) -> None:
    assert list(text.cells([[value, 1]])) == [[shown, 1]]


@fuzz.fuzzed
def test_any_text(rng: random.Random) -> None:
    """Nothing but ends of lines and tabs is left of what is not printable, and nothing else is changed."""
    raw = (
        fuzz.text(rng)
        if rng.random() < 0.5
        else "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(8)))
    )
    cleaned = text.lines(raw)
    assert len(cleaned) == len(raw)
    for before, after in zip(raw, cleaned, strict=True):
        category = unicodedata.category(before)
        if before in "\n\t" or before.isprintable():
            assert after == before
        else:
            assert after == " " and category[0] in "CZ"
    stream = _stream("backslashreplace")[1]
    stream.write(raw)
    assert text.lines(cleaned) == cleaned
    (cell,) = next(text.cells([[raw]]))
    assert not str(cell).startswith(("=", "@", "\t", "\r"))
