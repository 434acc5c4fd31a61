"""A running QEMU traced from outside: dirty pages of its guest's memory, compared with the guest's count.

The guest writes over an area in order, and about once a second prints on its console how many pages it has
written. At any speed the pages that it wrote for certain during the recording are dirty, and not many others.
Where it got its time, no page is written twice in a round: then the number it counts in a time is the number
that must be dirty in it. What the guest's kernel writes in addition is not subtracted: at this rate that is
1 to 2 %.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from redirty.collector.linux.smaps import starts_with_flag

from tests.support.recorded_run import Recorded
from tests.support.servers import Server, guest, scratch
from tests.tiers import require, require_root
from tests.vm.kernels import KernelError, fetch
from tests.workloads.driver import guest_parameters, make_initramfs

KERNEL = "6.1"
MEMORY_MIB = 256
AREA_MIB = 160
PAGES = AREA_MIB * 256
RATE = 32_000  # pages a second
INTERVAL_S, LINES = 0.4, 10
TOLERANCE = 0.05
KERNEL_PAGES = 500  # that the guest's kernel may write in a round
STEADY = 0.1

Pages = npt.NDArray[np.int64]


class Console:
    """Reads the guest's progress lines, each with the time (UTC, s) at which it came.

    Attributes:
        times: (UTC, s) by line.
        writes: the guest's count.
        clock_s: the guest's clock.
    """

    def __init__(self, server: Server) -> None:
        self.times: list[float] = []
        self.writes: list[int] = []
        self.clock_s: list[float] = []
        self._server = server
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        with self._server.output.open("rb") as output:
            rest = b""
            while not self._ended.wait(0.002):
                rest += output.read()
                *lines, rest = rest.split(b"\n")
                for line in lines:
                    if line.startswith(b'{"event":"progress"'):
                        said = json.loads(line)
                        self.writes.append(said["writes"])
                        self.clock_s.append(said["now_ns"] / 1e9)
                        self.times.append(time.time())

    def got_its_time(self, first: int, last: int) -> bool:
        """Return whether the guest kept its pace from one line to another."""
        paces = np.diff(self.writes[first : last + 1]) / np.diff(self.clock_s[first : last + 1])
        return bool((np.abs(paces / RATE - 1) < TOLERANCE).all())

    def close(self) -> None:
        """Stop reading lines."""
        self._ended.set()
        self._thread.join()


@dataclass(frozen=True)
class Comparison:
    """Pages between two of the guest's lines: its own count, and those dirty in its memory."""

    seconds: float
    written: int
    dirty: float


def compare(
    console: Console, rounds: pd.DataFrame, dirty: Pages, started: float
) -> Comparison | None:
    """Compare over as much of the recording as there is between two lines; None where the guest was delayed.

    A line comes at any time within a round, whose dirty pages are assumed to be spread evenly. That holds unless
    the host delayed the guest at that time: lines in a round that differs from the others do not count.
    """
    ends = (rounds["start_s"] + rounds["duration_s"]).to_numpy()
    bounds = np.concatenate(([rounds["start_s"].iloc[0]], ends))
    total = np.concatenate(([0], np.cumsum(dirty)))
    times = np.array(console.times) - started
    within = np.searchsorted(bounds, times, side="right") - 1
    usual = np.median(dirty)
    steady = [
        line
        for line, number in enumerate(within)
        if 0 <= number < len(dirty) and abs(dirty[number] / usual - 1) < STEADY
    ]
    # A guest that was delayed catches up. If it wraps around within a round, it writes pages twice.
    if len(steady) < 2 or dirty.max() > 0.9 * PAGES:
        return None
    first, last = steady[0], steady[-1]
    if not console.got_its_time(first, last):
        return None
    before, after = np.interp([times[first], times[last]], bounds, total)
    written = console.writes[last] - console.writes[first]
    return Comparison(float(times[last] - times[first]), written, float(after - before))


def check(pid: int, directory: Path) -> tuple[pd.DataFrame, pd.DataFrame, float]:
    """Return the rounds, the rows of the guest's memory, and the start of the recording (UTC, s)."""
    meta = json.loads((directory / "meta.json").read_text())
    rounds = pd.read_csv(directory / "rounds.csv")
    mappings = pd.read_csv(directory / "mappings.csv")
    size = mappings["end"].map(lambda x: int(x, 16)) - mappings["start"].map(lambda x: int(x, 16))
    assert set(mappings["start"]) <= {hex(at) for at in starts_with_flag(pid, b"dc")}
    assert mappings["dirty_pages"].sum() == rounds["dirty_pages"].sum(), "nothing else counts"
    ram = mappings[size >= MEMORY_MIB << 20]
    assert ram["start"].nunique() == 1, ram
    return rounds, ram, datetime.fromisoformat(meta["started"]).timestamp()


def test_dirty_rate_of_a_guest(tmp_path: Path) -> None:
    require_root()
    try:
        kernel = fetch(KERNEL)
    except KernelError as e:
        require(False, f"needs a guest kernel: {e}")
        raise
    with scratch("qemu") as work:
        archive = make_initramfs(work / "initramfs")
        server = guest(work, kernel.image, archive, guest_parameters(RATE, AREA_MIB), MEMORY_MIB)
        console = Console(server)
        try:
            server.wait_ready(lambda: len(console.times) >= 2)
            earlier = len(console.times)
            with Recorded(tmp_path, "--vm", server.pid, interval=f"{INTERVAL_S}s") as recorded:
                # Lines that come from now on are written during the recording, and so are all but the first one's
                # pages, which it may have written before.
                begun = len(console.times)
                server.wait_ready(lambda: len(console.times) >= begun + LINES)
                ended = len(console.times) - 1
                recorded.pass_rounds(1)
            server.wait_ready(lambda: len(console.times) > ended + 2)
            rounds, ram, started = check(server.pid, recorded.directory)
        finally:
            console.close()
            server.close()
    sums = ram.groupby("round")["dirty_pages"].sum()
    dirty = sums.reindex(rounds["round"], fill_value=0).to_numpy()
    pages = pd.read_csv(recorded.directory / "pages.csv")
    surely = console.writes[ended] - console.writes[begun]
    at_most = console.writes[-1] - console.writes[earlier - 1]
    result = compare(console, rounds, dirty, started)
    print(
        f"guest surely wrote {surely} pages, at most {at_most}; dirty in its memory {dirty.sum()}, in {len(rounds)} "
        f"rounds, {dirty.min()} to {dirty.max()} in each; missed {rounds['missed_pages'].sum()}"
    )
    assert rounds["lost_events"].sum() == 0
    assert len(pages) >= min(surely, PAGES)
    if dirty.max() < 0.9 * PAGES:
        assert dirty.sum() >= surely
    assert dirty.sum() <= at_most + KERNEL_PAGES * len(rounds)
    if result is None:
        print("the guest did not get its time")
        return
    print(
        f"guest wrote {result.written} pages in {result.seconds:.2f} s, dirty in its memory "
        f"{result.dirty:.0f} ({result.dirty / result.written - 1:+.2%})"
    )
    assert result.dirty == pytest.approx(result.written, rel=TOLERANCE)
