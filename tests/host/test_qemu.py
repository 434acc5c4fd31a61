"""A running QEMU traced from outside: the pages dirty in its guest's memory, against the guest's
own count.

The guest writes over an area in order, so slowly that no page is written twice in a round: what it
counts in a time is what must be dirty in it. About once a second it tells the count on its console.
Nothing is taken off for what the guest's kernel writes besides: at this rate that is about 1 %.
"""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.host.programs import Server, guest, run_redirty, scratch
from tests.tiers import require, require_root
from tests.vm.kernels import KernelError, fetch
from tests.workloads.driver import guest_parameters, make_initramfs

KERNEL = "6.1"
MEMORY_MIB = 256
AREA_MIB = 96
PAGES = AREA_MIB * 256
RATE = 16_000  # pages a second
INTERVAL_S, ROUNDS = 0.5, 20
TOLERANCE = 0.05


class Console:
    """Reads the guest's progress lines, each with the time (UTC, s) at which it came."""

    def __init__(self, server: Server) -> None:
        self.times: list[float] = []
        self.writes: list[int] = []
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
                        self.times.append(time.time())
                        self.writes.append(json.loads(line)["writes"])

    def close(self) -> None:
        """No more lines."""
        self._ended.set()
        self._thread.join()

    def written(self, begin: float, end: float) -> float:
        """How many pages the guest wrote between two times, which must lie between its lines."""
        assert self.times[0] <= begin < end <= self.times[-1]
        first, last = np.interp([begin, end], self.times, self.writes)
        return float(last - first)


def record(pid: int, directory: Path) -> tuple[pd.DataFrame, pd.DataFrame, float]:
    """The rounds, the rows of the guest's memory, and when it started (UTC, s)."""
    words = ["-p", pid, f"{INTERVAL_S}s", ROUNDS, "-o", directory]
    done = run_redirty("record", *words, timeout_s=120)
    assert done.code == 0, done
    meta = json.loads((directory / "meta.json").read_text())
    rounds = pd.read_csv(directory / "rounds.csv")
    mappings = pd.read_csv(directory / "mappings.csv")
    size = mappings["end"].map(lambda x: int(x, 16)) - mappings["start"].map(lambda x: int(x, 16))
    # The other large one is executable: the emulator's translated code.
    ram = mappings[(size >= MEMORY_MIB << 20) & (mappings["perms"] == "rw-p")]
    ram = ram[ram["dirty_pages"] > 0]
    assert ram["start"].nunique() == 1, ram
    return rounds, ram, datetime.fromisoformat(meta["started"]).timestamp()


@pytest.mark.timeout(400)
def test_dirty_rate_of_a_guest(tmp_path: Path) -> None:
    require_root()
    try:
        kernel = fetch(KERNEL)
    except KernelError as e:
        require(False, f"needs a guest kernel: {e}")
        raise
    directory = tmp_path / "recording"
    with scratch("qemu") as work:
        archive = make_initramfs(work / "initramfs")
        server = guest(work, kernel.image, archive, guest_parameters(RATE, AREA_MIB), MEMORY_MIB)
        console = Console(server)
        try:
            server.wait_ready(lambda: len(console.times) >= 2, 240)
            rounds, ram, started = record(server.pid, directory)
            seen = len(console.times)
            server.wait_ready(lambda: len(console.times) >= seen + 2, 60)
        finally:
            console.close()
            server.close()
    begin = started + rounds["start_s"].iloc[0]
    end = started + rounds["start_s"].iloc[-1] + rounds["duration_s"].iloc[-1]
    written = console.written(begin, end)
    dirty = int(ram["dirty_pages"].sum())
    per_round = ram.groupby("round")["dirty_pages"].sum()
    pages = pd.read_csv(directory / "pages.csv")
    # The writer comes by at each page this often; what is dirty far more often is not its work.
    often = written / PAGES
    others = pages[pages["rounds_dirty"] > 2 * often + 2]
    print(
        f"guest wrote {written:.0f} pages in {end - begin:.2f} s, dirty in its memory {dirty} "
        f"({dirty / written - 1:+.2%}); a round {per_round.min()} to {per_round.max()}; "
        f"pages dirty in nearly every round: {len(others)}; "
        f"missed {rounds['missed_pages'].sum()}, lost {rounds['lost_events'].sum()}"
    )
    # What makes the comparison exact: no round in which the writer came full circle.
    assert per_round.max() < PAGES
    assert written == pytest.approx(RATE * (end - begin), rel=0.2), "the guest did not keep up"
    assert rounds["lost_events"].sum() == 0
    assert dirty == pytest.approx(written, rel=TOLERANCE)
