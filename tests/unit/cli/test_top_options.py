"""The command line and the configuration of redirty top, and the process table it reads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from redirty.collector.cli.top_options import parse_percent
from redirty.collector.errors import UsageError
from redirty.collector.linux.cpu_time import CpuTimeSampler, cpu_s
from redirty.collector.target.process_table import ProcessTable
from redirty.tui import config
from redirty.tui.web import argv_without_serve

from tests.support.paths import ROOT
from tests.support.screen_factories import REDIS

PROGRAM = Path(sys.executable).with_name("redirty")


def redirty(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *map(str, words)], check=False, capture_output=True, text=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--replay", "x", "-p", "1"), "leave out a target"),
        (("--replay", "x", "-o", "y"), "leave out -o"),
        (("-o", "y"), "name one"),
        (("--serve", "--", "sleep", "1"), "starts a new redirty top for each visit"),
    ],
)
def test_wrong_usage_is_one_line(words: tuple[str, ...], message: str) -> None:
    done = redirty("top", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_terminal_is_reported() -> None:
    done = redirty("top", "--replay", REDIS)
    assert done.returncode == 1
    assert "needs a terminal" in done.stderr


@pytest.mark.parametrize(("text", "share"), [("2", 0.02), ("2%", 0.02), ("0.5 %", 0.005)])
def test_percentages(text: str, share: float) -> None:
    assert parse_percent(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "101", "nan", "%"])
def test_invalid_percentages(text: str) -> None:
    with pytest.raises(UsageError, match="must be a percentage"):
        parse_percent(text)


@pytest.mark.parametrize(
    ("words", "visit"),
    [
        (["r", "top", "--serve"], ["r", "top"]),
        (["r", "top", "--serve", "8080", "-p", "1"], ["r", "top", "-p", "1"]),
        (["r", "top", "--serve=8080", "-p", "1"], ["r", "top", "-p", "1"]),
        (["r", "top", "-p", "12", "--serve", "--replay", "8"], ["r", "top", "-p", "12", "--replay", "8"]),
    ],
)  # fmt: skip
def test_a_visit_has_the_same_command_line(words: list[str], visit: list[str]) -> None:
    assert argv_without_serve(words) == visit


@pytest.mark.parametrize(
    "words",
    [
        ("top", "--ser", "0", "--replay", REDIS),
        ("top", "--serv=0", "--replay", REDIS),
        ("top", "--repl", REDIS),
        ("report", "--hel", REDIS),
        ("record", "--tre", "1"),
        ("mirror", "--downt", "1s", "-p", "1", "--to", "x"),
        ("receive", "--lis", "127.0.0.1:0", "--to", "x"),
        ("--vers",),
    ],
)
def test_options_have_no_abbreviations(words: tuple[object, ...]) -> None:
    """Each visit of `top --ser 0` was started with it, and served, too."""
    done = redirty(*words)
    assert done.returncode == 2, done


@pytest.mark.parametrize("port", ["+1", "-1", "1_0", "x", "٣", "1.0", " 1"])
def test_ports_are_digits(port: str) -> None:
    """Refuse others: what argparse took for a port stayed in the command line of each visit."""
    done = redirty("top", "--replay", REDIS, f"--serve={port}")
    assert done.returncode == 2 and "--serve" in done.stderr, done


# ---- configuration ----


def test_keys_and_theme_are_read(tmp_path: Path) -> None:
    file = tmp_path / "top.toml"
    file.write_text('theme = "textual-light"\n[keys]\npause = "x"\n"seek.back" = "h"\n')
    appearance = config.read(file)
    assert appearance.theme == "textual-light"
    assert appearance.keys == {"pause": "x", "seek.back": "h"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("theme = ", "not valid TOML"),
        ('theme = "none such"', "unknown theme 'none such'"),
        ('[keys]\nnothing = "x"', "unknown name 'nothing'"),
        ("[keys]\npause = 1", "must be a string"),
        ('keys = "x"', "must be a table"),
        ("more = 1", "unknown setting 'more'"),
    ],
)
def test_errors_in_the_configuration_are_reported(
    tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "top.toml"
    file.write_text(content)
    with pytest.raises(UsageError, match=message):
        config.read(file)


def test_a_configuration_that_is_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "deep.toml").write_text("x = " + "[" * 100_000)
    with pytest.raises(UsageError, match="not valid TOML"):
        config.read(tmp_path / "deep.toml")


def test_a_missing_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config.read(None).keys == {}
    with pytest.raises(UsageError, match="does not exist"):
        config.read(tmp_path / "other.toml")


def test_names_of_keys_are_unique_and_those_of_the_man_page() -> None:
    names = config.key_names()
    assert len(names) == len(set(names))
    manual = (ROOT / "docs/redirty.1").read_text(encoding="utf-8")
    listed = re.search(r"^The names:\n(.*?)\.RE$", manual, re.DOTALL | re.MULTILINE)
    assert listed
    assert sorted(re.split(r"[,.]\s+", listed[1].strip().removesuffix("."))) == sorted(names)


def test_keys_of_every_screen_can_be_changed(tmp_path: Path) -> None:
    """The confirmations' keys are documented, and were refused as unknown names."""
    file = tmp_path / "top.toml"
    file.write_text('[keys]\n"mirror.yes" = "z"\n"confirm.no" = "q"\n"mirror.cancel" = "k"\n')
    assert len(config.read(file).keys) == 3


# ---- processes ----


def test_cpu_time_of_a_process() -> None:
    before = cpu_s(os.getpid())
    times = CpuTimeSampler()
    assert times.take([os.getpid()]) is None  # the first sample has nothing to compare with
    while (cpu_s(os.getpid()) or 0.0) < (before or 0.0) + 0.05:
        pass
    used = times.take([os.getpid(), 1 << 22])
    assert used is not None
    assert used >= 0.04
    assert cpu_s((1 << 22) - 1) is None


def test_the_process_table_follows_starts_and_ends() -> None:
    table = ProcessTable()
    table.poll()
    me = table.processes[os.getpid()]
    assert me.name
    assert me.rss_bytes > 1 << 20
    assert me.kind == "process"
    assert (
        2 not in table.processes or table.processes[2].rss_bytes > 0
    )  # kernel threads are left out
    child = subprocess.Popen(["sleep", "infinity"])
    try:
        ended = table.poll()  # others of this machine may end meanwhile
        assert child.pid not in ended
        assert not any(Path(f"/proc/{pid}").exists() for pid in ended)
        assert table.processes[child.pid].name == "sleep"
    finally:
        child.kill()
        child.wait()
    assert child.pid in table.poll()
    assert child.pid not in table.processes


def test_a_virtual_machine_has_the_name_of_its_guest() -> None:
    script = "import ctypes, sys, time; ctypes.CDLL(None).prctl(15, b'qemu-system-x86'); "
    script += "print(flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", script, "-name", "guest=web1,debug-threads=on"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as machine:
        assert machine.stdout is not None
        machine.stdout.readline()
        found = ProcessTable()
        found.poll()
        known = found.processes[machine.pid]
        assert (known.kind, known.name) == ("vm", "web1")
        machine.kill()
