"""The parser of the command line: a wrong one is reported as any other error, by one line."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
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

    def option_names(self) -> list[str]:
        """Return the long options."""
        return [name for name in self._option_string_actions if name.startswith("--")]

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse as argparse does, but refuse the arguments of a command that it does not know.

        Mistyped options first: what is missing may be what they were meant to give.
        """
        given = [word for word in args or () if word.startswith("--")]
        if self._subparsers is None:
            self._refuse([w for w in given if w.partition("=")[0] not in self.option_names()])
        found, unknown = super().parse_known_args(args, namespace)
        self._refuse(unknown)
        return found, unknown

    def _refuse(self, unknown: Sequence[str]) -> None:
        """Refuse arguments, if there are any, with the option that was probably meant."""
        if unknown:
            first = next((word for word in unknown if word.startswith("-")), unknown[0])
            hint = did_you_mean(first.partition("=")[0], self.option_names())
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return '; did you mean X?' for the name that a word resembles most; empty if it resembles none."""
    import difflib

    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""
