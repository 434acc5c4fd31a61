"""Assertions on how redirty fails: one clear line, the right exit code, and complete files."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from tests.support.redirty_cli import Done

COULD_NOT, WRONG_USAGE, TARGET_ENDED = 1, 2, 3


def assert_refused(done: Done, code: int, *words: str) -> None:
    """Assert one error line that contains the given words."""
    assert done.code == code, done
    assert only_an_error(done.out, done.err), done
    lines = done.lines
    assert len(lines) == 1, done
    assert lines[0].startswith("redirty: "), done
    for word in ("Traceback", "internal error"):
        assert word not in done.err, done
    for word in words:
        assert word in lines[0], done


def only_an_error(out: str, err: str) -> bool:
    """Return whether stdout has nothing, or with --json the same error as stderr and nothing else."""
    if not out:
        return True
    found = json.loads(out)
    return found.keys() == {"schema", "error"} and err == f"redirty: {found['error']['message']}\n"


def assert_valid(directory: Path) -> int:
    """Assert that every file of a recording is complete; return its number of rounds."""
    tables = {
        path.stem: pd.read_csv(path) for path in directory.glob("*.csv") if path.stat().st_size
    }
    for path in directory.glob("*.csv"):
        data = path.read_bytes()
        assert not data or data.endswith(b"\r\n"), path
    if "rounds" not in tables:
        return 0
    rounds = tables["rounds"]
    assert list(rounds["round"]) == list(range(len(rounds)))
    if rounds["dirty_pages"].sum():
        sums = tables["mappings"].groupby("round")["dirty_pages"].sum()
        sums = sums.reindex(rounds["round"], fill_value=0)
        assert (sums.to_numpy() <= rounds["dirty_pages"].to_numpy()).all()
        assert sums.sum() > 0.9 * rounds["dirty_pages"].sum()
    return len(rounds)
