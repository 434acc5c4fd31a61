"""Counts in lines for people."""

from __future__ import annotations


def counted(n: float, one: str, several: str = "") -> str:
    """'1 round', '2 rounds', '2 processes'. several: where it is not the word with an s."""
    return f"{n} {one if n == 1 else several or one + 's'}"
