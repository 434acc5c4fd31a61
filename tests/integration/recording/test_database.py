"""Databases under writes, recorded for 10 s: no event is lost, no transaction lost or wrong."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pandas as pd

from tests.support.redirty_cli import run_redirty
from tests.support.servers import postgres
from tests.tiers import require_root

SECONDS = 10

_SQLITE_WRITER = """
import os, sqlite3, sys
base = sqlite3.connect(sys.argv[1], isolation_level=None)
base.execute("pragma mmap_size=67108864")
base.execute("pragma synchronous=off")
base.execute("create table entry(number integer primary key, text)")
print("ready", flush=True)
number = 0
while not os.path.exists(sys.argv[2]):
    base.execute("begin")
    for _ in range(100):
        number += 1
        base.execute("insert into entry values(?, ?)", (number, str(number) * 20))
    base.execute("update entry set text = text || 'x' where number % 97 = ?", (number % 97,))
    base.execute("commit")
    base.execute("delete from entry where number < ?", (number - 20000,))
print(number, flush=True)
"""


def rounds_of(directory: Path) -> pd.DataFrame:
    """Return the rounds of a recording; check that it is complete, at least 10 s long, and without a lost event."""
    assert json.loads((directory / "meta.json").read_text())["complete"] is True
    rounds = pd.read_csv(directory / "rounds.csv")
    assert rounds["duration_s"].sum() > SECONDS - 0.5
    assert rounds["lost_events"].sum() == 0
    # A busy machine may let a round pass by without the writer, or cut one short.
    assert (rounds["dirty_pages"] > 0).sum() >= 2
    print(
        f"{len(rounds)} rounds, {rounds['dirty_pages'].mean():.0f} dirty pages a round, "
        f"missed {rounds['missed_pages'].sum()}, lost {rounds['lost_events'].sum()}"
    )
    return rounds


def test_postgres_tree(tmp_path: Path) -> None:
    require_root()
    directory = tmp_path / "recording"
    with postgres() as server:
        server.fill(scale=2)
        with server.load() as load:
            server.server.wait_ready(lambda: int(server.sql(_HISTORY)) > 100)
            words = ["--tree", server.pid, "1s", "-d", f"{SECONDS}s", "-o", directory]
            done = run_redirty("record", *words)
            load.signal(signal.SIGALRM)
            assert load.wait() == 0, load.text()
        assert done.code == 0, done
        assert "number of failed transactions: 0" in load.text(), load.text()
        # The invariant of the benchmark: every transaction changes all four sums alike.
        sums = server.sql(
            "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from "
            "pgbench_tellers), (select sum(bbalance) from pgbench_branches), (select sum(delta) "
            "from pgbench_history)"
        )
        assert len(set(sums.split("|"))) == 1, sums
        said = load.text().split("number of transactions actually processed: ")[1]
        assert int(server.sql(_HISTORY)) == int(said.split()[0].split("/")[0])
        assert server.server.alive
    rounds_of(directory)
    pages = pd.read_csv(directory / "pages.csv")
    # Children of the postmaster write: four backends, the WAL writer and the background writer.
    assert pages["pid"].nunique() >= 4
    # Shared buffers are a shared mapping of every process.
    assert {"anon_private", "anon_shared"} <= set(pages["mapping_class"])


_HISTORY = "select count(*) from pgbench_history"


def test_sqlite(tmp_path: Path) -> None:
    require_root()
    directory, base, stop = (tmp_path / name for name in ("recording", "base", "stop"))
    program = [sys.executable, "-I", "-c", _SQLITE_WRITER, str(base), str(stop)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        try:
            words = ["-p", writer.pid, "1s", "-d", f"{SECONDS}s", "-o", directory]
            done = run_redirty("record", *words)
        finally:
            stop.touch()
        last = int(writer.stdout.readline())
    assert writer.returncode == 0
    assert done.code == 0, done
    rounds_of(directory)
    with sqlite3.connect(base) as opened:
        assert opened.execute("pragma integrity_check").fetchone() == ("ok",)
        rows = opened.execute("select number, text from entry").fetchall()
    assert [number for number, _ in rows] == list(range(max(1, last - 20000), last + 1))
    assert not [n for n, text in rows if text.rstrip("x") != str(n) * 20]
