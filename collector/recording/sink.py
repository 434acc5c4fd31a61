"""The interface of a consumer of rounds."""

from __future__ import annotations

from typing import Any, Protocol

from redirty.collector.tracking.rounds import Round


class RoundSink(Protocol):
    """Consumer of a session's rounds."""

    def tick(self) -> None:
        """Read what would otherwise be lost; called several times a second."""

    def add(self, result: Round) -> None:
        """Consume a round."""

    def hurry(self) -> None:
        """Let close() leave out what it would wait for; may be called from a signal handler."""

    def close(self, *, complete: bool, lost_events: int, extra: dict[str, Any]) -> None:
        """Finish, however the session ended.

        complete: whether it ran as long as planned. extra: further keys of meta.json.
        """

    def done(self) -> None:
        """Give what was written to the user: nothing is written any more."""
