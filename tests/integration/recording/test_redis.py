"""redis under redis-benchmark, recorded for 10 s: no event is lost, and redis still answers correctly."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from tests.support.redirty_cli import run_redirty
from tests.support.servers import redis
from tests.tiers import require_root

SECONDS = 10
KEYS = 50_000


def test_recorded_under_writes(tmp_path: Path) -> None:
    require_root()
    directory = tmp_path / "recording"
    with redis() as server:
        server.ask("set", "kept", "as it was")
        with server.load(keys=KEYS) as load:
            server.server.wait_ready(lambda: int(server.ask("dbsize")) > 0.9 * KEYS)
            before = _commands(server.ask("info", "stats"))
            words = ["-p", server.pid, "1s", "-d", f"{SECONDS}s", "--json", "-o", directory]
            done = run_redirty("record", *words)
            written = _commands(server.ask("info", "stats")) - before
            assert load.alive, f"a client ended: {load.text()}"
        assert done.code == 0, done
        assert server.ask("ping") == "PONG"
        assert server.ask("get", "kept") == "as it was"
        # every key of the benchmark, and the one of this test
        assert 0.9 * KEYS < int(server.ask("dbsize")) <= KEYS + 1
        assert "error" not in load.text().lower(), load.text()
        errors = server.ask("info", "errorstats").splitlines()[1:]
        assert errors == [], errors
    rounds = pd.read_csv(directory / "rounds.csv")
    meta = json.loads((directory / "meta.json").read_text())
    assert meta["complete"] is True
    assert rounds["duration_s"].sum() > SECONDS - 0.5
    assert rounds["lost_events"].sum() == 0
    # A busy machine may let a round pass by without the server, or cut one short.
    assert (rounds["dirty_pages"] > 0).sum() >= 2
    # Values of a running redis are rewritten repeatedly: nearly all dirty pages were present before.
    assert rounds["redirtied_pages"].sum() > 0.5 * rounds["dirty_pages"].sum()
    heap = pd.read_csv(directory / "mappings.csv").groupby("mapping_class")["dirty_pages"].sum()
    assert heap["anon_private"] > 0.9 * heap.sum()
    print(
        f"{len(rounds)} rounds, {written} commands, {rounds['dirty_pages'].mean():.0f} dirty pages "
        f"a round, missed {rounds['missed_pages'].sum()}, lost {rounds['lost_events'].sum()}"
    )


def _commands(stats: str) -> int:
    """Return total_commands_processed of INFO stats."""
    line = next(line for line in stats.splitlines() if line.startswith("total_commands_processed"))
    return int(line.split(":")[1])
