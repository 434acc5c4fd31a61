"""The mirror screen in a real terminal, and the lines of redirty mirror.

A mirror is either complete or discarded, and the target is unchanged.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.top.test_top import programs
from tests.support.mirror_oracle import CoreFile, mirror_json
from tests.support.redirty_cli import REDIRTY, finish, start_redirty
from tests.support.servers import redis
from tests.support.target_state import Condition, assert_released
from tests.support.tmux import Terminal
from tests.support.waiting import PATIENCE_S, wait_until
from tests.workloads.driver import Writer

pytestmark = pytest.mark.usefixtures("tracing")


@pytest.fixture
def writer() -> Iterator[Writer]:
    """Yield a target that writes all the time; it must be unchanged at the end."""
    with Writer(64) as target:
        target.start("uniform", 2000, 16_384)
        before = Condition.of(target.pid)
        yield target
        assert_released(target, before)
        target.signal(signal.SIGKILL)


def mirrors(to: Path) -> list[int]:
    """Return the PIDs of redirty mirror into a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"--json-lines" in words and str(to).encode() in words:
                    found.append(int(entry.name))
    return found


def ask(terminal: Terminal, to: Path, *keys: str) -> None:
    terminal.keys("m")
    terminal.wait("mirror to:")
    terminal.keys(*str(to), "Enter")
    terminal.wait("mirror the target?")
    terminal.keys(*keys)


def mirror_slowly(terminal: Terminal, to: Path) -> None:
    ask(terminal, to, "b")
    terminal.wait("rate limit:")
    terminal.keys(*"1MiB", "Enter")
    terminal.wait("8.4 Mbit/s")
    terminal.keys("y")


def boxed(shown: str) -> str:
    """Return the words in the box on a screen, separated by single spaces."""
    return re.sub(r"\s+", " ", re.sub(r"[^│]*│ (.*) │.*\n", r"\1 ", shown))


def test_redis_under_load(tmp_path: Path) -> None:
    """The target screen leads to a correct mirror of redis, and the mirror screen back to it."""
    to = tmp_path / "mirror"
    with redis() as server, server.load(keys=20_000, size=256):
        words = [REDIRTY, "top", "-p", server.pid, "500ms", "--max-overhead", "100%"]
        words += ["--downtime", "50s"]
        with Terminal(words, tmp_path, 160, 48) as terminal:
            terminal.wait_round(2)
            ask(terminal, to)
            for text in (
                f"process {server.pid}: redis-server",
                "a new directory",
                "copied within 50.0 s",
                "v verify",
            ):
                terminal.wait_for(lambda shown, text=text: text in boxed(shown), text)  # type: ignore[misc]
            terminal.keys("v")
            terminal.wait("v verify     yes")
            terminal.keys("y")
            terminal.wait("identical", f"process {server.pid}: redis-server", "✔ mirrored to")
            terminal.wait("stop and copy", "stopped", f"in {len(mirror_json(to)['passes'])} passes")
            terminal.keys("Escape")
            terminal.wait("would mirroring converge?")
            terminal.wait_round(2)
            terminal.keys("q")
            assert terminal.exit_code() == 0
        made = mirror_json(to)
        assert made["state"] == "committed"
        assert made["verified"] is True
        assert CoreFile(to / "memory.core").threads()
        assert server.ask("ping") == "PONG"


def test_a_cancelled_mirror_and_one_that_does_not_converge(tmp_path: Path, writer: Writer) -> None:
    to = tmp_path / "mirror"
    words = [REDIRTY, "top", "-p", writer.pid, "500ms", "--max-overhead", "100%"]
    with Terminal(words, tmp_path) as terminal:
        terminal.wait_round(1)
        mirror_slowly(terminal, to)
        terminal.wait("copying, pass 1")
        terminal.wait("% of ")
        terminal.keys("x")
        terminal.wait("the mirror was discarded")
        assert not to.exists() or not (to / "mirror.json").exists()
        terminal.keys("Escape")
        terminal.wait_round(1)
        ask(terminal, to, "d")
        terminal.wait("downtime:")
        terminal.keys(*"1us", "Enter")
        terminal.wait("downtime   1 us")
        terminal.keys("y")
        terminal.wait("will not converge", "failed", "the target was not stopped")
        terminal.keys("q")
        assert terminal.exit_code() == 1
        assert "the mirror will not converge" in terminal.screen()
    assert not mirrors(to)


def test_a_screen_that_is_killed_leaves_the_target_alone(tmp_path: Path, writer: Writer) -> None:
    to = tmp_path / "mirror"
    with Terminal([REDIRTY, "top", "-p", writer.pid, "500ms"], tmp_path) as terminal:
        terminal.wait_round(1)
        mirror_slowly(terminal, to)
        terminal.wait("copying, pass 1")
        terminal.wait("% of ")
        assert len(mirrors(to)) == 1
        os.kill(programs(tmp_path)[1], signal.SIGKILL)
        terminal.wait("exit-code:")
        wait_until(lambda: not mirrors(to), "the end of the mirror")
    assert not (to / "mirror.json").exists()


def test_json_lines(tmp_path: Path, writer: Writer) -> None:
    """The lines of --json-lines agree with mirror.json."""
    words = ["-p", writer.pid, "--to", tmp_path / "m", "--downtime", "1h"]
    words += ["--passes", "2", "--bandwidth", "100MiB"]
    done = finish(start_redirty("mirror", "--json-lines", *words))
    assert done.code == 0, done
    assert not done.err
    events = [json.loads(line) for line in done.out.splitlines()]
    assert events[-1]["event"] == "done"
    kept = mirror_json(tmp_path / "m")
    assert events[-1]["mirror"]["passes"] == kept["passes"]
    going = [e for e in events if e["event"] == "going" and e["pass"] == 1]
    assert going
    done_pages = [e["done_pages"] for e in going]
    assert done_pages == sorted(done_pages)
    assert done_pages[-1] <= going[0]["pages"]
    passes = [e for e in events if e["event"] == "pass"]
    assert [p["bytes"] for p in passes] == [p["bytes"] for p in kept["passes"][:-1]]
    assert all(p["round_s"] > 0 for p in passes)


def test_a_closed_pipe_cancels_the_mirror(tmp_path: Path, writer: Writer) -> None:
    words = ["-p", writer.pid, "--to", tmp_path / "m", "--bandwidth", "2MiB"]
    process = start_redirty("mirror", "--json-lines", *words)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(PATIENCE_S) == 130
    assert not (tmp_path / "m" / "mirror.json").exists()
