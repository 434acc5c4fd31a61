"""A recording is read once, by whichever test is first: reading takes longer than most tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from redirty.tui.readers import replay
from redirty.tui.readers.recording import Recorded

_READ: dict[object, Recorded] = {}


def _once(directory: Path) -> Recorded:
    """By what is in the directory: some tests damage theirs."""
    files = sorted(directory.iterdir())
    key = tuple(
        (f.name, f.stat().st_size, f.stat().st_mtime_ns, f.read_bytes()[:64]) for f in files
    )
    if key not in _READ:
        _READ[key] = Recorded(directory)
    return _READ[key]


@pytest.fixture(autouse=True)
def _recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "Recorded", _once)
