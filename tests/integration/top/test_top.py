"""redirty top in a real terminal, on real targets.

The screen shows what is recorded; however top ends, the terminal is restored and the target keeps running
with nothing attached.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest
from redirty.collector.target.guest import Guest
from redirty.collector.target.targets import Pids
from redirty.collector.units import show_bytes, show_pages
from redirty.tui.screens.overview import target_of
from redirty.tui.snapshots.snapshot import ProcessRow

from tests.integration.recording.test_vm_target import program, written
from tests.support.paths import TESTS
from tests.support.redirty_cli import REDIRTY
from tests.support.servers import redis
from tests.support.target_state import Condition, assert_released
from tests.support.tmux import Terminal
from tests.support.waiting import wait_until
from tests.workloads.driver import Crowd, Hold, Writer

pytestmark = pytest.mark.usefixtures("tracing")


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def programs(directory: Path) -> tuple[int, int]:
    """Return the PIDs of redirty top in a directory: the guard of the terminal, and the one that draws."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                where = (entry / "cwd").readlink()
            except OSError:
                continue
            if b"top" in words and where == directory and any(b"redirty" in w for w in words):
                found.append(int(entry.name))
    guards = [pid for pid in found if any(child in found for child in children(pid))]
    assert len(guards) == 1, found
    (drawing,) = [pid for pid in children(guards[0]) if pid in found]
    return guards[0], drawing


def test_redis_under_load(tmp_path: Path) -> None:
    """Each view of redis under load shows what it should, and keys have their effects."""
    with redis() as server, server.load(keys=20_000, size=256):
        words = [REDIRTY, "top", "-p", server.pid, "500ms", "--bandwidth", "1Gbit"]
        words += ["--max-overhead", "100%"]
        with Terminal(words, tmp_path, 160, 48) as terminal:
            terminal.wait_round(3)
            terminal.wait(f"process {server.pid}: redis-server", " live ", "tracing costs")
            for pattern in (
                r"dirty [1-9][\d.]* [KM]iB/s",
                r"page tables [1-9][\d.]* [KM]iB",
                "converges in|will not converge|uncertain",
                "anon_private",
            ):
                terminal.wait_for(re.compile(pattern).search, pattern)
            terminal.keys("3")
            assert "0x" in terminal.wait("a column per round")
            terminal.keys("b")
            terminal.wait("bandwidth:")
            terminal.keys(*"100kbit", "Enter")
            terminal.wait("bandwidth:", gone=True)
            terminal.keys("4")
            terminal.wait("100.0 kbit/s")
            terminal.wait("will not converge")
            terminal.keys("Space")
            terminal.wait("PAUSED")
            time.sleep(0.5)  # until all of it is drawn
            paused = terminal.screen()
            time.sleep(1.5)
            assert _round(terminal.screen()) == _round(paused)
            terminal.keys("Space")
            terminal.wait("PAUSED", gone=True)
            terminal.keys("-")
            shorter = re.compile(r"\(0\.25 s\)|rounds lengthened")  # as the guard may do at once
            terminal.wait_for(shorter.search, "rounds of 0.25 s, or what the guard made of them")
            terminal.keys("6")
            terminal.wait("not traced")
            terminal.keys("w")
            terminal.wait(f"{server.pid} (pid {server.pid})")
            terminal.wait("redis-server:")
            terminal.keys("?")
            terminal.wait("re-dirtied  those of them")
            terminal.keys("Escape")
            terminal.wait(
                "re-dirtied  those of them", gone=True
            )  # else the keys are taken for alt+e
            terminal.keys("e")
            terminal.wait("exported")
            terminal.keys("q")
            assert terminal.exit_code() == 0
        assert list(tmp_path.glob("redirty-writers-*.csv"))
        assert server.ask("ping") == "PONG"


def _round(shown: str) -> int:
    match = re.search(r"round (\d+)", shown)
    assert match, shown
    return int(match[1])


def test_the_rates_on_the_screen_are_those_of_the_recording(tmp_path: Path) -> None:
    """The rates shown for each round equal rounds.csv."""
    directory = tmp_path / "rec"
    shown: dict[int, list[str]] = defaultdict(list)
    with Writer(mib=64) as writer:
        writer.start("cyclic", rate=3000, pages=8000)
        words = [REDIRTY, "top", "-p", writer.pid, "500ms", "-o", directory]
        with Terminal([*words, "--max-overhead", "100%"], tmp_path, 120, 24) as terminal:
            while len(shown) < 7:
                screen = terminal.wait_round(0)
                shown[_round(screen)].append(screen)
                time.sleep(0.1)
            del shown[max(shown)]  # which may have been caught before it was drawn
            terminal.keys("q")
            assert terminal.exit_code() == 0
        writer.signal(signal.SIGKILL)
    rounds = pd.read_csv(directory / "rounds.csv").set_index("round")
    rows = rounds.to_dict("index")
    for number, screens in shown.items():
        row = rows[number]
        for name, column in (("dirty", "dirty_pages"), ("re-dirtied", "redirtied_pages")):
            rate = row[column] / row["duration_s"] * 4096
            # One may have been caught while it was drawn.
            said = f"{name} {show_bytes(rate)}/s"
            assert any(said in screen for screen in screens), (number, said, screens)
    assert rounds["dirty_pages"].sum() > 0


def test_a_guests_memory_alone(tmp_path: Path) -> None:
    """Only a guest's memory is traced, from the command line and from the overview."""
    with program() as (child, ram), Hold("sleep") as other:
        words = [REDIRTY, "top", "--vm", child.pid, "500ms", "--max-overhead", "100%"]
        with Terminal(words, tmp_path) as terminal:
            terminal.wait_round(2)
            terminal.wait(f"virtual machine of process {child.pid}: python")
            terminal.wait(f"present {show_pages(len(written(ram)))}")
            terminal.keys("q")
            assert terminal.exit_code() == 0
        row = ProcessRow(child.pid, "guest", "vm", "/", 0, 0.0, None, None, None, None)
        assert isinstance(target_of(row), Guest)
        assert isinstance(target_of(row._replace(pid=other.pid)), Pids)  # has no guest RAM


def test_a_target_that_ends(tmp_path: Path) -> None:
    with Writer(mib=8) as writer:
        writer.start("cyclic", rate=1000, pages=1000)
        with Terminal([REDIRTY, "top", "-p", writer.pid, "200ms"], tmp_path) as terminal:
            terminal.wait_round(2)
            writer.signal(signal.SIGKILL)
            terminal.wait("ended before", "round")
            terminal.keys("3", "4", "1")
            terminal.wait("would mirroring converge?")
            terminal.keys("q")
            assert terminal.exit_code() == 3
            assert "ended before the recording was complete" in terminal.screen()


def test_a_target_that_cannot_be_traced_is_reported(tmp_path: Path) -> None:
    with (
        Hold("uffd-wp") as holder,
        Terminal([REDIRTY, "top", "-p", holder.pid], tmp_path) as terminal,
    ):
        terminal.wait("userfaultfd", "failed")
        terminal.keys("2", "q")
        assert terminal.exit_code() == 1
        assert "redirty:" in terminal.screen()


@pytest.mark.parametrize("who", ["guard", "screen", "both"])
def test_killed_with_sigkill(tmp_path: Path, who: str) -> None:
    """The target keeps running with nothing attached; the guard, if left, restores the terminal."""
    with Hold("sleep") as target:
        before = Condition.of(target.pid)
        with Terminal([REDIRTY, "top", "-p", target.pid, "200ms"], tmp_path) as terminal:
            terminal.wait_round(2)
            guard, screen = programs(tmp_path)
            for pid in {"guard": [guard], "screen": [screen], "both": [guard, screen]}[who]:
                os.kill(pid, signal.SIGKILL)
            terminal.wait("exit-code:")
            wait_until(lambda: not Path(f"/proc/{screen}").exists(), "the end of the screen")
            if who == "screen":
                assert terminal.exit_code() == 128 + signal.SIGKILL
                assert "ended by SIGKILL" in terminal.screen()
        assert_released(target, before)
        assert len(target.write(0, 10).pages) == 10


def test_terminated_with_sigterm(tmp_path: Path) -> None:
    with Hold("sleep") as target:
        before = Condition.of(target.pid)
        with Terminal([REDIRTY, "top", "-p", target.pid, "200ms"], tmp_path) as terminal:
            terminal.wait_round(1)
            os.kill(programs(tmp_path)[0], signal.SIGTERM)
            assert terminal.exit_code() == 130
        assert_released(target, before)


def test_resized_while_drawing(tmp_path: Path) -> None:
    with Writer(mib=8) as writer:
        writer.start("cyclic", rate=1000, pages=1000)
        words = [REDIRTY, "top", "-p", writer.pid, "50ms", "--max-overhead", "100%"]
        with Terminal(words, tmp_path) as terminal:
            terminal.wait_round(2)
            for size in [(160, 48), (30, 8), (200, 60), (80, 24), (10, 3), (120, 40)] * 4:
                terminal.resize(*size)
                time.sleep(0.05)
            shown = terminal.wait(" live ")
            assert _round(shown) > 2
            terminal.keys("q")
            assert terminal.exit_code() == 0
        writer.signal(signal.SIGKILL)


def test_sixty_thousand_mappings(tmp_path: Path) -> None:
    with (
        Crowd("mappings", 60_000) as crowd,
        Terminal([REDIRTY, "top", "-p", crowd.pid], tmp_path, 160, 48) as terminal,
    ):
        terminal.wait_round(1)
        crowd.write("private", 1, 5000)
        terminal.wait("MiB/s  new")
        terminal.keys("2", "End")
        terminal.wait("anon_")
        terminal.keys("q")
        assert terminal.exit_code() == 0


def test_costly_tracing_makes_rounds_longer(tmp_path: Path) -> None:
    with Writer(mib=64) as writer:
        writer.start("cyclic", rate=20_000, pages=16_000)
        words = [REDIRTY, "top", "-p", writer.pid, "100ms", "--max-overhead", "0.01%"]
        with Terminal(words, tmp_path, 160, 48) as terminal:
            terminal.wait("rounds lengthened")
            terminal.wait("(0.1 s)", gone=True)
            terminal.keys("q")
            assert terminal.exit_code() == 0
        writer.signal(signal.SIGKILL)


def test_a_command_is_traced_apart_from_the_terminal(tmp_path: Path) -> None:
    code = (
        "import time\nm = bytearray(1 << 24)\nwhile True: m[::4096] = b'x' * 4096; print('noise')"
    )
    words = [REDIRTY, "top", "200ms", "--", "python3", "-u", "-c", code]
    left: list[int] = []
    try:
        with Terminal(words, tmp_path) as terminal:
            shown = terminal.wait_round(
                1
            )  # the command prints a line each time it has written its memory
            assert "noise" not in shown
            (left,) = (children(pid) for pid in programs(tmp_path)[1:])
            left = [pid for pid in left if code.encode() in _words(pid)]
            assert len(left) == 1
            terminal.keys("q")
            assert terminal.exit_code() == 0
        assert code.encode() in _words(left[0])  # still running
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)


def test_a_command_that_ends(tmp_path: Path) -> None:
    """The screen reports the end of a command and stays; the exit code is 0."""
    words = [REDIRTY, "top", "100ms", "--", "sh", "-c", "sleep 1; exit 7"]
    with Terminal(words, tmp_path) as terminal:
        terminal.wait("has ended, exit status 7", " done ")
        terminal.keys("q")
        assert terminal.exit_code() == 0


def _words(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_overview_and_back(tmp_path: Path) -> None:
    with redis() as server, server.load(keys=20_000, size=256):
        with Terminal([REDIRTY, "top"], tmp_path, 120, 30) as terminal:
            terminal.wait("write faults/s")
            terminal.keys("/")
            terminal.keys(*str(server.pid), "Enter")
            terminal.wait(f"filter: {server.pid}")
            terminal.wait("1 of ")
            terminal.keys("Enter")
            terminal.wait(f"process {server.pid}: redis-server")
            terminal.wait_round(1)
            terminal.keys("Escape")
            terminal.wait("write faults/s")
            terminal.keys("q")
            assert terminal.exit_code() == 0
        assert server.ask("ping") == "PONG"


def test_without_colour(tmp_path: Path) -> None:
    recording = TESTS / "data" / "redis"
    words = [REDIRTY, "top", "--replay", recording]
    with Terminal(words, tmp_path, env="NO_COLOR=1") as terminal:
        terminal.wait("round 31")
        terminal.wait("converges")
        coloured = re.findall(r"\x1b\[[\d;]*38;2;(\d+);(\d+);(\d+)", terminal.colours())
        assert all(red == green == blue for red, green, blue in coloured)
        terminal.keys("q")
        assert terminal.exit_code() == 0
