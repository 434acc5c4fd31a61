"""The consumer of a session's rounds."""

from __future__ import annotations

from typing import Any, Protocol

from redirty.collector.tracking.rounds import Round


class RoundSink(Protocol):
    """What becomes of a session's rounds."""

    def tick(self) -> None:
        """Called many times a second."""

    def add(self, result: Round) -> None:
        """After each round."""

    def close(self, *, complete: bool, lost_events: int, extra: dict[str, Any]) -> None:
        """At the end, whatever it was."""
