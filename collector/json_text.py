"""JSON without NaN and Infinity, which Python reads and writes but other programs refuse."""

from __future__ import annotations

import json
import math
from typing import Any

SCHEMA = 1  # of the objects that commands print; grows when a key is added


def parse(text: bytes) -> object:
    """Parse JSON in UTF-8. Numbers that are not finite become None.

    Raises: ValueError for anything else, nested too deeply included.
    """
    try:
        found: object = json.loads(
            text.decode("utf-8"), parse_float=_finite, parse_constant=lambda _: None
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return found


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def dump(content: object, indent: int | None = 2) -> str:
    """Format as JSON in ASCII. Numbers that are not finite become null."""
    return json.dumps(_with_null(content), indent=indent, allow_nan=False)


class Answer:
    """The one JSON object that a command with --json prints. printed: whether it was."""

    def __init__(self) -> None:
        self.printed = False

    def print(self, content: dict[str, Any]) -> None:
        """Print the answer, with the version of its schema."""
        self.print_file({"schema": SCHEMA, **content})

    def print_file(self, content: dict[str, Any]) -> None:
        """Print the answer just as a file has it."""
        print(dump(content))
        self.printed = True

    def print_error(self, message: str, exit_code: int) -> None:
        """Print the error in place of an answer; with one, the exit code and stderr report it."""
        if not self.printed:
            self.print({"error": {"message": message, "exit_code": exit_code}})


answer = Answer()


def _with_null(content: object) -> object:
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, dict):
        return {key: _with_null(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_with_null(value) for value in content]
    return content
