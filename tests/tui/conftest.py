"""Reads each recording once, in whichever test is first: reading takes longer than most tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from redirty.tui.readers import replay
from redirty.tui.readers.recording import LoadedRecording

_READ: dict[object, LoadedRecording] = {}


def _load_once(directory: Path) -> LoadedRecording:
    """Load a recording, cached by its contents, as some tests damage theirs."""
    files = sorted(directory.iterdir())
    key = tuple(
        (f.name, f.stat().st_size, f.stat().st_mtime_ns, f.read_bytes()[:64]) for f in files
    )
    if key not in _READ:
        _READ[key] = LoadedRecording(directory)
    return _READ[key]


@pytest.fixture(autouse=True)
def _recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "LoadedRecording", _load_once)
