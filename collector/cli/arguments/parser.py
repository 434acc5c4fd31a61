"""The parser of the command line: a wrong one is reported as any other error, by one line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from redirty.collector.errors import UsageError

_SHOWN = 100  # characters of a value that is wrong


class Parser(argparse.ArgumentParser):
    """A parser of a command or of the program. Raises UsageError for a wrong command line.

    Arguments that nobody knows are reported by the parser of the command, not by that of the whole program.
    """

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with the reason, and where to find the usage."""
        text = (
            message if len(message) <= 2 * _SHOWN else f"{message[:_SHOWN]}...{message[-_SHOWN:]}"
        )
        raise UsageError(f"{text}; '{self.prog} --help' shows the usage")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse as argparse does, but refuse the arguments of a command that it does not know."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown
