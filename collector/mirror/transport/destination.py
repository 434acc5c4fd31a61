"""The two kinds of destination that a mirror can have."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from redirty.collector.errors import RedirtyError, why
from redirty.collector.mirror.image.image import Image
from redirty.collector.mirror.rate_limiter import RateLimiter
from redirty.collector.mirror.transport.dial import connect
from redirty.collector.mirror.transport.local_sink import LocalSink
from redirty.collector.mirror.transport.network_sink import NetworkSink
from redirty.collector.mirror.transport.protocol import ConnectionLostError
from redirty.collector.mirror.transport.sink import PageSink


class Destination(Protocol):
    """Destination of a mirror."""

    def open(self, rate_limiter: RateLimiter) -> PageSink:
        """Open the sink of the mirror's pages.

        Raises:
            RedirtyError: the destination cannot be opened.
        """


@dataclass(frozen=True)
class DirectoryDestination:
    """A new directory of this machine."""

    directory: Path

    def open(self, rate_limiter: RateLimiter) -> PageSink:
        """See Destination."""
        return LocalSink(Image.create(self.directory, secrets.token_hex(16)), rate_limiter)


@dataclass(frozen=True)
class ReceiverDestination:
    """A receiver, as started by redirty receive.

    Attributes:
        text: the destination as the user typed it, for messages.
        host: name or address of the receiver.
        port: its TCP port.
        code: the pairing code for TLS; None: a connection within this machine, without TLS.
        patience_s: for how long a lost connection is retried.
    """

    text: str
    host: str
    port: int
    code: bytes | None = field(repr=False)
    patience_s: float

    def open(self, rate_limiter: RateLimiter) -> PageSink:
        """See Destination."""
        try:
            return NetworkSink(
                lambda: connect(self.host, self.port, self.code), rate_limiter, self.patience_s
            )
        except OSError as e:
            hint = " (with the same --code-file, if it has one)" if self.code is None else ""
            raise RedirtyError(
                f"cannot connect to {self.text}: {why(e)}; start redirty receive there{hint}"
            ) from None
        except ConnectionLostError as e:
            raise RedirtyError(
                f"{self.text} refused the mirror: {e}; redirty receive reports the reason there"
            ) from None
