"""Compare what is rewritten within one second between rounds of several lengths."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from redirty.collector.metrics.within import WrittenWithin
from redirty.collector.metrics.write_curves import WindowCurves, inside

from tests.support.stepped_rounds import LiveRounds
from tests.workloads.driver import Writer

pytestmark = pytest.mark.usefixtures("tracing")

RATE, PAGES, LOG_S = 6000, 16384, 1800
LENGTHS_S = [float(n) for n in os.environ.get("REDIRTY_ROUNDS_S", "0.1,0.5,1,4").split(",")]
"""Of rounds; 16 s take a minute more."""
SPAN_S, LEAST_ROUNDS = 6.0, 2
TOLERANCE = 0.10


@pytest.mark.parametrize("length_s", LENGTHS_S)
def test_it_does_not_depend_on_the_rounds(length_s: float) -> None:
    """Compare it with the writer's own rate, by its log: a page is written again only after 2.7 s."""
    windows, within = WindowCurves(), WrittenWithin()
    found: list[float] = []
    with Writer(mib=PAGES >> 8) as writer, LiveRounds(writer.pid) as live:
        writer.start("cyclic", RATE, PAGES, LOG_S, log=True)
        writer.wait_until_it_writes(RATE, LOG_S)
        live.begin()
        begin_ns = float(live.recorder.started_ns)
        for number in range(max(int(SPAN_S / length_s), LEAST_ROUNDS)):
            time.sleep(length_s)
            result = live.end_round()
            assert result.number == number
            pages = within.add([*inside(result), *windows.add(result).points])
            if pages is not None and (not found or pages != found[-1]):
                found.append(pages)
        end_ns = begin_ns + (result.start_s + result.duration_s) * 1e9
        run = writer.end()
    # A busy machine holds the writer up, which then catches up: one second is not like the next.
    starts_ns = np.arange(begin_ns, end_ns - 1e9, 5e6)
    seconds = run.writes_at(starts_ns + 1e9) - run.writes_at(starts_ns)
    print(
        f"rounds of {length_s} s: {np.mean(found):.0f} pages in 1 s; written were {seconds.mean():.0f}, "
        f"{seconds.min():.0f} to {seconds.max():.0f}"
    )
    assert found, "known after the first window of a second"
    assert min(found) >= seconds.min() * (1 - TOLERANCE)
    assert max(found) <= seconds.max() * (1 + TOLERANCE)
