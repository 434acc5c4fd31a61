"""What the link has left now, measured again and again while a screen compares with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from redirty.collector.errors import RedirtyError, one_line
from redirty.tui.readers.target import TargetReader

_EVERY_S = 10.0


class LinkWatch:
    """measure: gives (bytes per second, where that comes from); takes a second or so. What is asked of
    the reader follows it until somebody types a bandwidth."""

    def __init__(self, measure: Callable[[], tuple[float, str]]) -> None:
        self._measure = measure
        self._stop = threading.Event()
        self._said: str | None = None

    def follow(self, reader: TargetReader) -> None:
        """Begins, in a thread of its own."""
        self._stop = threading.Event()
        threading.Thread(
            target=self._run, args=(reader, self._stop), name="link", daemon=True
        ).start()

    def _run(self, reader: TargetReader, stop: threading.Event) -> None:
        source = reader.asked.source
        while not stop.is_set() and reader.asked.source == source:
            try:
                rate, source = self._measure()
                asked = replace(reader.asked, bandwidth=rate, source=one_line(source))
            except RedirtyError as e:
                source = f"assumed: {one_line(str(e))}"
                asked = replace(reader.asked, source=source)
            if stop.is_set() or reader.asked.source == "as typed":
                return
            reader.ask(asked)
            source = asked.source
            stop.wait(_EVERY_S)

    def close(self) -> None:
        """Ends it."""
        self._stop.set()
