"""The torture test, run for a minute; python -m tests.torture runs it for any time.

REDIRTY_SEED repeats a run, REDIRTY_TORTURE_S sets how long it takes.
"""

from __future__ import annotations

import os

from tests.support.kill_points import SEED
from tests.support.tested_methods import ARM, PROBE
from tests.torture.run import Plan, torture

SECONDS = float(os.environ.get("REDIRTY_TORTURE_S", "60"))


def test_nothing_is_lost(tracing: None) -> None:
    tally = torture(Plan(SECONDS, SEED, arm=ARM, probe=PROBE))
    print(f"seed {SEED}: {tally}")
    assert not tally.losses, "\n".join([f"REDIRTY_SEED={SEED}", *map(str, tally.losses)])
    assert not tally.late, f"REDIRTY_SEED={SEED}: {tally}"
    assert tally.laps and tally.rounds > tally.laps and tally.writes and tally.copies
