"""top.toml: whatever it holds, it is read, or it is one line."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest
from redirty.collector.errors import UsageError
from redirty.tui import config
from redirty.tui.app import Appearance

from tests.support.fuzz import damaged, fuzzed, text

VALID = b'theme = "textual-light"\n[keys]\npause = "space,x"\nhelp = "f1"\n"export.csv" = "e"\n'
DIRECTORY: list[Path] = []


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path) -> None:
    DIRECTORY[:] = [tmp_path]


def read(content: bytes) -> Appearance | None:
    memory = os.memfd_create("top.toml")  # files on a disk would take most of the time
    os.write(memory, content)
    try:
        return config.read(Path(f"/proc/self/fd/{memory}"))
    except UsageError as e:
        assert str(e)
        return None
    finally:
        os.close(memory)


def test_the_valid_one() -> None:
    found = read(VALID)
    assert found is not None and found.theme == "textual-light" and found.keys["pause"] == "space,x"


@fuzzed
def test_any_configuration(rng: random.Random) -> None:
    content = damaged(rng, VALID)
    if rng.random() < 0.2:
        content = f"theme = '''{text(rng)}'''\n[keys]\npause = '''{text(rng)}'''\n".encode(
            "utf-8", "replace"
        )
    found = read(content)
    if found is not None:
        assert all(isinstance(key, str) and key.strip() for key in found.keys.values())


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"[" * 100_000,
        b"a = " + b"[" * 100_000,
        b"theme = 1979-05-27",
        b"keys = 1",
        b"\0",
        b"theme=[1]",
        b"theme={}",
    ],
)
def test_odd_files(content: bytes) -> None:
    assert read(content) is None


def test_a_number_of_too_many_digits_is_refused() -> None:
    assert read(b"theme = " + b"9" * 10_000) is None


def test_a_pipe_is_read_only_if_it_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO in the place of the default file is not waited for; `--config <(…)` works."""
    (DIRECTORY[0] / "redirty").mkdir()
    fifo = DIRECTORY[0] / "redirty/top.toml"
    os.mkfifo(fifo)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(DIRECTORY[0]))
    with pytest.raises(UsageError, match="not a regular file"):
        config.read(None)
    threading.Thread(target=fifo.write_bytes, args=(VALID,)).start()
    assert config.read(fifo).theme == "textual-light"


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(UsageError, match="larger than a configuration"):
        config.read(Path("/dev/zero"))
