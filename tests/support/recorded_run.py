"""A run of `redirty record` on a target, while a test has the target write."""

from __future__ import annotations

import signal
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from redirty.collector.analyze import load

from tests.support.processes import ManagedProcess
from tests.support.redirty_cli import Done, finish, start_redirty
from tests.support.tested_methods import METHOD_OPTIONS
from tests.support.waiting import wait_until
from tests.workloads.pages import Area, Pages


class Recorded(ManagedProcess):
    """Runs `redirty record` in the background, from its first complete round on.

    Leaving the `with` block interrupts it and waits for its end.

    Attributes:
        directory: the recording.
        done: how it ended; None while it runs.
    """

    def __init__(self, tmp_path: Path, *words: object, interval: str = "100ms") -> None:
        """Start it; words: the target and more options; interval: of a round."""
        self.directory = tmp_path / "recording"
        process = start_redirty("record", *METHOD_OPTIONS, *words, interval, "-o", self.directory)
        super().__init__(process, stop=signal.SIGINT)
        self.done: Done | None = None
        try:
            self.pass_rounds(1)
        except BaseException:
            self.close()
            raise

    @property
    def rounds(self) -> int:
        """The number of complete rounds."""
        path = self.directory / "rounds.csv"
        return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0

    def pass_rounds(self, count: int = 2) -> None:
        """Wait for `count` more rounds. After two, everything written before lies in complete rounds."""
        goal = self.rounds + count

        def there() -> bool:
            if not self.alive:
                raise AssertionError(f"redirty ended: {finish(self._process)}")
            return self.rounds >= goal

        wait_until(there, f"{count} rounds")

    def wait_for(self, pid: int) -> None:
        """Wait until a process that joined the target has been armed for a round."""
        mappings = self.directory / "mappings.csv"
        known = f",{pid},0x"
        wait_until(lambda: known in mappings.read_text(), f"process {pid} is recorded")

    def close(self) -> None:
        """Interrupt redirty and collect what it printed."""
        if self.alive:
            self._request_end()
        self.done = finish(self._process)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        if error is None:
            assert self.done is not None and self.done.code == 130, self.done

    # ---- afterwards ----

    def meta(self) -> dict[str, Any]:
        """Return the contents of meta.json."""
        return load.load_meta(self.directory)

    def times_dirty(self, pid: int, area: Area) -> dict[int, int]:
        """Return the number of rounds in which each page of an area was dirty, by page number."""
        table = load.load_pages(self.directory)
        at = table["address"].to_numpy()
        inside = (at >= area.start) & (at < area.end) & (table["pid"] == pid).to_numpy()
        pages = (at[inside] >> np.uint64(12)).tolist()
        return dict(zip(pages, table["rounds_dirty"].to_numpy()[inside].tolist(), strict=True))

    def pids(self) -> list[int]:
        """Return the PIDs of all processes that belonged to the target."""
        found: list[int] = self.meta()["target"]["pids"]
        return found


def counts(*written: Pages) -> dict[int, int]:
    """Return how often each page was written, given the pages of each command."""
    every = np.concatenate(written) if written else np.empty(0, np.uint64)
    pages, times = np.unique(every, return_counts=True)
    return dict(zip(pages.tolist(), times.tolist(), strict=True))
