"""Fuzzing: how many inputs a reader is tried on, and damage of valid inputs.

A test takes a seed from hypothesis and makes PER_SEED inputs of it, since drawing each byte would take longer than what
is tested. REDIRTY_FUZZ=N: the number of inputs of each reader.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

INPUTS = int(os.environ.get("REDIRTY_FUZZ", "10000"))
PER_SEED = 50
_ODD = (
    b"", b"\0", b"\n", b" ", b":", b"-", b"(", b")", b"\\", b"\xff", b"\x1b]0;x\x07", b"0", b"-1", b"9" * 40, b"f" * 40,
    b"\xe2\x80\xae", b"\xed\xa0\x80", b"[/b]", b"{", b"}", b"[" * 2000, b'"', b"null", b"1e999", b"NaN", b"kB", b"\t\r",
)  # fmt: skip


def fuzzed(test: Callable[[random.Random], None]) -> Callable[[], None]:
    """Decorate a test that takes a source of randomness and tries one input."""

    @settings(
        max_examples=max(1, INPUTS // PER_SEED),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 2**63))
    def run(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(PER_SEED):
            test(rng)

    def wrapper() -> None:
        run()

    wrapper.__name__, wrapper.__doc__ = test.__name__, test.__doc__
    return wrapper


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Return a content with some damage: bytes, words and lines that are wrong, missing, repeated or cut off."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(found) + 1)
        end = min(len(found), at + rng.choice((0, 1, 1, 2, 8, 100)))
        found[at:end] = rng.choice(_ODD) if rng.random() < 0.7 else rng.randbytes(rng.randrange(8))
    if rng.random() < 0.2:
        lines = bytes(found).split(b"\n")
        a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
        lines[a], lines[b] = lines[b], lines[a]
        found = bytearray(b"\n".join(lines * rng.choice((1, 1, 2))))
    if rng.random() < 0.1:
        del found[rng.randrange(len(found) + 1) :]
    return bytes(found)


def value(rng: random.Random, depth: int = 3) -> Any:
    """Return any JSON value."""
    kind = rng.randrange(9 if depth else 7)
    if kind == 7:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 8:
        return {text(rng): value(rng, depth - 1) for _ in range(rng.randrange(4))}
    plain = (None, True, rng.randrange(-(2**70), 2**70), rng.random(), 0, -1, text(rng))
    return plain[kind]


def text(rng: random.Random) -> str:
    """Return a text of any characters, among them those that harm."""
    harmful = (
        "\x1b]0;PWN\x07", "\x9b31m", "\u202e", "\u2066", "\r", "\n", "\ud800", "[/b]", "[red]", "=1+1", "\0", "ä", "漢",
        "\U0001f600", "\x7f", "\u200b", "\ufeff", "a", "z", " ", "\\", "[@click=app.quit]x[/]",
    )  # fmt: skip
    return "".join(rng.choice(harmful) for _ in range(rng.randrange(12)))


def values_in(mutated: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container of a JSON value and a key in it, to be changed in place."""
    pairs: Sequence[tuple[Any, Any]] = ()
    if isinstance(mutated, dict):
        pairs = list(mutated.items())
    elif isinstance(mutated, list):
        pairs = list(enumerate(mutated))
    for key, inner in pairs:
        yield mutated, key
        yield from values_in(inner)
