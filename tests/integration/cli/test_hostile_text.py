"""Texts from outside on a real terminal: no command in them reaches it, whoever they come from."""

from __future__ import annotations

import csv
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.closing import Closing
from tests.support.processes import ManagedProcess
from tests.support.redirty_cli import REDIRTY, run_redirty
from tests.support.screen_factories import REDIS
from tests.support.tmux import Terminal
from tests.support.waiting import PATIENCE_S
from tests.tiers import require_root

# Sets a terminal's title; C1 forms of the same; colours; the right to left override; a way out of Textual's markup.
HOSTILE = "\x1b]0;PWNED\x07\x9d0;PWNED\x9c\x1b[31m\u202e\u2066[/b][@click=app.quit]=1+1"


def on_terminal(*words: object, cwd: Path | None = None) -> tuple[int, str]:
    """Run redirty in a terminal; return its exit code and all that it wrote there."""
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [REDIRTY, *map(str, words)], stdin=slave, stdout=slave, stderr=slave, cwd=cwd,
            env={**os.environ, "PYTHONUTF8": "1"}, start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(slave)
    parts = []
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(master)
    return process.wait(PATIENCE_S), b"".join(parts).decode(errors="surrogateescape")


def assert_clean(written: str) -> None:
    """Assert that nothing in an output is a command to the terminal, and that it is no internal error."""
    odd = {c for c in written if not c.isprintable() and c not in "\r\n\t"}
    assert not odd, (odd, written)
    assert "internal error" not in written and "Traceback" not in written, written


def hostile_recording(directory: Path, file: str, *columns: str) -> Path:
    """Copy a recording, with hostile text behind each text of some columns of one file."""
    shutil.copytree(REDIS, directory)
    path = directory / file
    if file == "meta.json":

        def changed(value: object) -> object:
            if isinstance(value, dict):
                return {key: changed(inner) for key, inner in value.items()}
            if isinstance(value, list):
                return [changed(inner) for inner in value]
            return value + HOSTILE if isinstance(value, str) else value

        path.write_text(json.dumps(changed(json.loads(path.read_text()))))
        return directory
    with path.open(newline="") as old:
        head, *rows = csv.reader(old)
    texts = [i for i, name in enumerate(head) if name in columns]
    assert texts
    for row in rows:
        for i in texts:
            row[i] += HOSTILE
    with path.open("w", newline="") as new:
        csv.writer(new, lineterminator="\r\n").writerows([head, *rows])
    return directory


TEXTS = (
    ("meta.json",),
    ("mappings.csv", "path"),
    ("mappings.csv", "mapping_class"),
    ("tlb.csv", "reason"),
    ("stacks.csv", "stack"),
)


@pytest.mark.parametrize("texts", TEXTS, ids=".".join)
@pytest.mark.parametrize("command", [("report",), ("predict", "--bandwidth", "1Gbit")])
def test_a_recording_of_somebody_else(
    texts: tuple[str, ...], command: tuple[str, ...], tmp_path: Path
) -> None:
    directory = hostile_recording(tmp_path / "rec", *texts)
    _, written = on_terminal(command[0], directory, *command[1:])
    assert written
    assert_clean(written)


@pytest.mark.parametrize(
    "words",
    [
        ("report", f"/nonexistent/{HOSTILE}"),
        ("report", "/nonexistent/\udcff\udc9b31m"),
        ("record", "-p", "1", "-o", HOSTILE, "--arm", HOSTILE),
        ("record", "-p", HOSTILE, "-o", "x"),
        (HOSTILE,),
        ("top", "--config", f"/nonexistent/{HOSTILE}"),
        ("mirror", "-p", "1", "--to", f"{HOSTILE}:99999999"),
        ("export-criu", f"/nonexistent/{HOSTILE}"),
    ],
)
def test_arguments(words: tuple[str, ...], tmp_path: Path) -> None:
    code, written = on_terminal(*words, cwd=tmp_path)
    assert code in (1, 2)
    assert written
    assert_clean(written)


def test_replay_of_a_recording_of_somebody_else(tmp_path: Path) -> None:
    """All views of the screen show it; the title of the terminal stays, and no colour is switched on."""
    directory = hostile_recording(tmp_path / "rec", "mappings.csv", "path")
    with Terminal([REDIRTY, "top", "--replay", directory], tmp_path, 140, 45) as terminal:
        terminal.wait("dirty")
        for view in "123456789":
            terminal.keys(view)
            screen = terminal.screen()
            assert "internal error" not in screen
        assert "PWNED" not in terminal._do("display-message", "-p", "#{pane_title}")
        terminal.keys("q")
        assert terminal.exit_code() == 0


def test_the_working_directory_is_markup(tmp_path: Path) -> None:
    """The path of an export is shown as it is, and the screen stays."""
    directory = tmp_path / "[@click=app.quit]x[/b]" / HOSTILE.replace("/", "")
    directory.mkdir(parents=True)
    with Terminal([REDIRTY, "top", "--replay", REDIS], directory, 140, 45) as terminal:
        terminal.wait("dirty")
        terminal.keys("e")
        terminal.wait("exported")
        assert "PWNED" not in terminal._do("display-message", "-p", "#{pane_title}")
        terminal.keys("q")
        assert terminal.exit_code() == 0
    assert list(directory.glob("redirty-*.csv"))


class Qmp(Closing):
    """A monitor whose answers are hostile; machine: its answer to a human's command, else errors."""

    def __init__(self, path: Path, machine: str | None) -> None:
        self.path = path
        self._machine = machine
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client, client.makefile("rwb") as file:

            def say(answer: object) -> None:
                file.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
                file.flush()

            say({"QMP": {"version": {}, "capabilities": []}})
            for line in file:
                request = json.loads(line)
                command = request["execute"]
                if command == "query-status":
                    say({"return": {"running": True}})
                elif command == "human-monitor-command" and self._machine is not None:
                    mtree = "mtree" in request["arguments"]["command-line"]
                    say({"return": self._machine if mtree else f"{HOSTILE} no"})
                elif command == "query-memdev" and self._machine is not None:
                    say({"return": [{"id": "pc.ram"}]})
                elif command.startswith("query") or command == "human-monitor-command":
                    say({"error": {"class": HOSTILE, "desc": HOSTILE}})
                else:
                    say({"return": {}})

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


MTREE = (
    'FlatView #0\n AS "memory", root: system\n'
    "  0000000000000000-00000000000fffff (prio 0, ram): pc.ram\n"
)


class Named(ManagedProcess):
    """A process with hostile names: its own, and that of a file that it maps."""

    def __init__(self, directory: Path) -> None:
        code = (
            "import mmap, sys, time; open('/proc/self/comm', 'wb').write(sys.argv[1].encode()[:15])\n"
            "f = open(sys.argv[2], 'w+b'); f.truncate(1 << 16); m = mmap.mmap(f.fileno(), 0); print(flush=True)\n"
            "while True:\n for p in range(16): m[p << 12] = 1\n time.sleep(0.001)\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, HOSTILE, directory / HOSTILE.replace("/", "")],
            stdout=subprocess.PIPE,
        )
        super().__init__(process)
        assert process.stdout is not None
        process.stdout.readline()


@pytest.fixture
def named(tmp_path: Path) -> Iterator[Named]:
    require_root()
    with Named(tmp_path) as process:
        yield process


@pytest.mark.usefixtures("tracing")
@pytest.mark.parametrize("machine", [None, MTREE, MTREE.replace("pc.ram", HOSTILE)])
def test_a_monitor_with_hostile_answers(machine: str | None, named: Named, tmp_path: Path) -> None:
    with Qmp(tmp_path / "qmp", machine) as monitor:
        _, written = on_terminal(
            "mirror", "-p", named.pid, "--qmp", monitor.path, "--to", tmp_path / "m"
        )
    assert written
    assert_clean(written)
    assert named.alive


@pytest.mark.usefixtures("tracing")
def test_a_target_with_hostile_names(named: Named, tmp_path: Path) -> None:
    """Record its names as they are, show them without what a terminal obeys."""
    directory = tmp_path / "rec"
    code, written = on_terminal(
        "record", "-p", named.pid, "100ms", "3", "-o", directory, "--stacks", "-v"
    )
    assert code == 0, written
    assert_clean(written)
    for words in (
        ("report", directory),
        ("report", directory, "--json"),
        ("pagetables", "-p", named.pid),
    ):
        _, written = on_terminal(*words)
        assert_clean(written)
    assert "\x1b]0;PWNED\x07" in (directory / "mappings.csv").read_text()
    found = json.loads(run_redirty("report", directory, "--json").out)
    assert any("PWNED" in str(value) for value in found.values())
