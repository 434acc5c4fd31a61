"""Polls the free bandwidth of the link while a screen compares with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from redirty.collector.errors import RedirtyError, one_line
from redirty.tui.readers.target import TargetReader
from redirty.tui.snapshots.convergence import AS_TYPED

_EVERY_S = 10.0


class LinkWatch:
    """Keeps a reader's question up to date with the link, until a bandwidth is typed.

    measure() returns (bytes per second, origin) and takes about a second.
    """

    def __init__(self, measure: Callable[[], tuple[float, str]]) -> None:
        self._measure = measure
        self._stop = threading.Event()

    def start(self, reader: TargetReader) -> None:
        """Start polling for a reader, in a separate thread."""
        self._stop = threading.Event()
        threading.Thread(
            target=self._run, args=(reader, self._stop), name="link", daemon=True
        ).start()

    def _run(self, reader: TargetReader, stop: threading.Event) -> None:
        source = reader.question.source
        while not stop.is_set() and reader.question.source == source:
            try:
                rate, source = self._measure()
                question = replace(reader.question, bandwidth=rate, source=one_line(source))
            except RedirtyError as e:
                source = f"assumed: {one_line(str(e))}"
                question = replace(reader.question, source=source)
            if stop.is_set() or reader.question.source == AS_TYPED:
                return
            reader.ask(question)
            source = question.source
            stop.wait(_EVERY_S)

    def close(self) -> None:
        """Stop polling; do not wait."""
        self._stop.set()
