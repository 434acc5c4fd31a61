"""Tests of the command line: accepted and refused arguments, exit codes, streams, and imports."""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redirty.collector import VERSION
from redirty.collector.cli import interrupts
from redirty.collector.cli import main as cli
from redirty.collector.errors import RedirtyError, TargetEndedError, UsageError

HEAVY = ("numpy", "pandas", "pyarrow", "bcc", "pyroute2", "logging", "asyncio")


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[argparse.Namespace]:
    """Collect the arguments of `record` instead of recording."""
    seen: list[argparse.Namespace] = []
    module = importlib.import_module("redirty.collector.cli.record")

    def run(options: argparse.Namespace) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(module, "run", run)
    return seen


@pytest.mark.parametrize("verb", ["", *cli.VERBS])
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(([verb] if verb else []) + ["--help"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.startswith(f"usage: redirty {verb}".rstrip())
    if not verb:
        assert all(name in shown.out and line in shown.out for name, (_, line) in cli.VERBS.items())
        assert "exit codes: 0 success, 1 failure, 2 wrong usage" in shown.out
    if verb == "record":
        for flag in ("--pid", "--tree", "--cgroup", "--arm", "--probe", "--events", "--stacks"):
            assert flag in shown.out
        assert "redirty record TARGET [interval [count]] [-d TIME] -o DIR" in shown.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["recrod"], "there is no command 'recrod'; did you mean record?"),
        (["reprot", "rec"], "there is no command 'reprot'; did you mean report?"),
        (["pagetable", "-p", "1"], "did you mean pagetables?"),
        (["miror", "--to", "x"], "did you mean mirror?"),
        (["tpo"], "did you mean top?"),
        (["xyzzy"], "there is no command 'xyzzy'; 'redirty --help' lists the commands"),
        (["record", "--duraton", "5"], "did you mean --duration?; 'redirty record --help'"),
        (["record", "--ouput=rec"], "did you mean --output?; 'redirty record --help'"),
        (["predict", "rec", "--bandwith", "1Gbit", "--link", "lo"], "did you mean --bandwidth?"),
        (["report", "rec", "--jsn"], "did you mean --json?; 'redirty report --help'"),
        (["top", "--max-overhed", "1%"], "did you mean --max-overhead?"),
        (["check", "--xyzzy"], "unrecognized arguments: --xyzzy; 'redirty check --help'"),
    ],
)
def test_a_typo_is_answered_with_what_was_meant(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert says in shown.err


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        (["report", "/nonexistent", "--json"], "/nonexistent", 1),
        (["predict", "/nonexistent", "--json", "--bandwidth", "1Gbit"], "/nonexistent", 1),
        (["predict", "rec", "--json", "--bandwidth", "fast"], "--bandwidth", 2),
        (["record", "--json", "--duraton", "5"], "--duraton", 2),
        (["recrod", "--json"], "recrod", 2),
        (["mirror", "--json", "-p", "1"], "--to", 2),
    ],
)
def test_an_error_of_a_command_that_answers_in_json_is_json_too(
    words: list[str], says: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == code
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["schema"] >= 1 and found["error"]["exit_code"] == code
    assert says in found["error"]["message"]
    assert shown.err == f"redirty: {found['error']['message']}\n", "for people, as without --json"
    assert cli.main([word for word in words if word != "--json"]) == code
    assert capsys.readouterr().out == ""


def test_the_json_of_the_command_that_is_traced_is_its_own(
    requests: list[argparse.Namespace], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["record", "-o", "x", "--bogus", "--", "redis-cli", "--json"]) == 2
    assert capsys.readouterr().out == "" and not requests


@pytest.mark.parametrize("words", [["help"], ["help", "record"], ["record", "help", "--help"]])
def test_help_is_a_command_too(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    usage = "usage: redirty record" if "record" in words else "usage: redirty [-h]"
    assert capsys.readouterr().out.startswith(usage)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"redirty {VERSION}\n"


def test_help_imports_nothing_heavy() -> None:
    """--help is immediate: it imports no module that takes a tenth of a second or more."""
    code = (
        "import sys\n"
        "from redirty.collector.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)\n"
        "sys.exit(code)"
    )
    for words in (
        ["--help"],
        ["record", "--help"],
        ["check", "--help"],
        ["report", "--help"],
        ["predict", "--help"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr.strip()) == (0, "[]"), words


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["dance"],
        ["--dance"],
        ["record"],
        ["record", "-p", "1"],
        ["record", "-p", "-1", "-o", "d"],
        ["record", "-p", "1", "-o", "d", "1s", "many"],
        ["record", "-p", "1", "-o", "d", "--arm", "magic"],
        ["record", "-p", "1", "-o", "d", "--probe", "magic"],
        ["record", "-p", "1", "-o", "d", "1s", "2", "3"],
        ["report"],
        ["check", "now"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2_and_says_where_the_usage_is(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    verb = f"{words[0]} " if words and words[0] in cli.VERBS else ""
    assert shown.out == ""
    assert shown.err.startswith("redirty: ") and shown.err.count("\n") == 1
    assert verb == "record " or f"; 'redirty {verb}--help' " in shown.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-p", "1", "0"], "must be at least 1ms"),
        (["-p", "1", "0.5ms"], "must be at least 1ms"),
        (["-p", "1", "soon"], "interval: invalid time"),
        (["-p", "1", "1s", "-2"], None),
        (["-p", "1", "1s", "0"], "count must be at least 1, got 0"),
        (["-p", "1", "-d", "0"], "--duration must be positive, got 0"),
        (["-p", "1", "-d", "long"], "--duration: invalid time"),
        (["-p", "1", "-d", ""], "invalid time"),
        (["-p", "1", "-d", "inf"], "invalid time"),
        (["-p", "1", "-d", "9" * 400], "too long"),
        (["-p", "1", "nan"], "interval: invalid time"),
        (["-p", "1", "inf"], "invalid time"),
        (["-p", "1", "-1"], "invalid time"),
        (["-p", "1", "-.5"], "invalid time"),
        (["-p", "1", ".0001"], "must be at least 1ms"),
        (["-p", "1", "."], "invalid time"),
        (["-p", "1", "-1s"], None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_arguments_that_make_no_sense(
    words: list[str], why: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["record", *words, "-o", str(tmp_path / "rec")]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    if why:  # a message of redirty itself: one line
        assert shown.startswith("redirty: ")
        assert shown.count("\n") == 1
        assert why in shown
    assert not (tmp_path / "rec").exists()


@pytest.mark.parametrize("passes", ["0", "-1", "1001", "9" * 30])
def test_passes_of_a_mirror_are_limited(
    passes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["mirror", "-p", "1", "--to", str(tmp_path / "m"), f"--passes={passes}"]
    assert cli.main(words) == 2
    assert capsys.readouterr().err == (
        f"redirty: --passes must be between 1 and 1000, got {int(passes)}\n"
    )


@pytest.mark.parametrize(("interval", "seconds"), [(".1", 0.1), (".5s", 0.5), ("1.", 1.0)])
def test_a_number_may_start_or_end_with_its_point(
    interval: str, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def session(plan: Any, **_: Any) -> None:
        seen.append(plan.interval_s)
        raise RedirtyError("far enough")

    monkeypatch.setattr("redirty.collector.linux.privileges.require_root", lambda: None)
    monkeypatch.setattr("redirty.collector.cli.record.target_of", lambda _: None)
    monkeypatch.setattr("redirty.collector.cli.recording_session.RecordingSession", session)
    assert cli.main(["record", "-p", "1", interval, "-o", str(tmp_path / "rec")]) == 1
    assert seen == [seconds]


def test_a_directory_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["record", "-p", "1", "-o", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"redirty: {tmp_path} exists already: name another directory, or remove it\n"
    )


def test_words_after_two_dashes_are_the_command(requests: list[argparse.Namespace]) -> None:
    words = ["record", "100ms", "5", "-o", "rec", "--", "sh", "-c", "x -- -o y", "--", "-p", "1"]
    assert cli.main(words) == 0
    (options,) = requests
    assert options.command == ["sh", "-c", "x -- -o y", "--", "-p", "1"]
    assert (options.interval, options.count, options.output) == ("100ms", 5, "rec")
    assert options.pid is None


def test_arguments_come_in_any_order(requests: list[argparse.Namespace]) -> None:
    assert cli.main(["record", "-o", "rec", "-p", "7", "--pid", "8", "2s", "-q", "-v"]) == 0
    (options,) = requests
    assert (options.pid, options.interval, options.count) == (["7", "8"], "2s", None)
    assert (options.quiet, options.verbose, options.command) == (True, True, [])
    assert (options.arm, options.probe) == ("auto", "auto")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RedirtyError("no"), 1, "redirty: no\n"),
        (UsageError("no"), 2, "redirty: no\n"),
        (TargetEndedError("over"), 3, "redirty: over\n"),
        (KeyboardInterrupt(), 130, "redirty: interrupted\n"),
        (RedirtyError("process 7 (a\nb\x0b\u2028\x1b[2J)"), 1, "redirty: process 7 (a b   [2J)\n"),
        (ValueError("a\nb"), 1, "redirty: internal error: ValueError: a b (a bug: "),
        (MemoryError(), 1, "redirty: out of memory: free some, "),
        (OSError(errno.EMFILE, "Too many", "/x\ny"), 1, "redirty: cannot continue: /x y: Too many"),
        (
            OSError("libx.so: failed to map"),
            1,
            "redirty: cannot continue: libx.so: failed to map\n",
        ),
        (RuntimeError("can't start new thread"), 1, "redirty: cannot start a thread: "),
        (RuntimeError("else"), 1, "redirty: internal error: RuntimeError: else (a bug: "),
        (ImportError("a\nb", name="numpy"), 1, "redirty: cannot load numpy: a; check the limits "),
        (UnicodeError("encoding with 'idna' codec failed"), 1, "redirty: invalid name of a host: "),
        (UnicodeError("else"), 1, "redirty: internal error: UnicodeError: else (a bug: "),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(importlib.import_module("redirty.collector.cli.check"), "run", fail)
    monkeypatch.delenv("REDIRTY_DEBUG", raising=False)
    assert cli.main(["check"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(line)
    assert len(shown.splitlines()) == 1


def test_a_failure_of_the_machine_behind_another_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A library that ran out of memory may say anything: the first error of the chain counts."""

    def fail(_: object) -> int:
        try:
            raise MemoryError
        except MemoryError:
            raise ImportError("numpy could not be initialised") from None

    monkeypatch.setattr(importlib.import_module("redirty.collector.cli.check"), "run", fail)
    monkeypatch.delenv("REDIRTY_DEBUG", raising=False)
    assert cli.main(["check"]) == 1
    assert capsys.readouterr().err.startswith("redirty: out of memory: ")


def test_a_bug_is_one_line_unless_debugging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise ZeroDivisionError("by 0")

    monkeypatch.setattr(importlib.import_module("redirty.collector.cli.check"), "run", fail)
    monkeypatch.delenv("REDIRTY_DEBUG", raising=False)
    assert cli.main(["check"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("redirty: internal error: ZeroDivisionError: by 0")
    assert shown.count("\n") == 1
    monkeypatch.setenv("REDIRTY_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.main(["check"])


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["record", "--help"]], ids=" ".join)
def test_a_closed_pipe_is_not_an_error(words: list[str], unbuffered: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "redirty.collector.cli.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert program.stdout is not None and program.stderr is not None
    program.stdout.close()
    shown = program.stderr.read()
    program.stderr.close()
    assert (program.wait(), shown) == (0, b"")


def _redirected(how: str, unbuffered: str = "") -> subprocess.CompletedProcess[str]:
    """Run the program's help with a redirection of the shell."""
    program = [sys.executable, "-m", "redirty.collector.cli.main", "--help"]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {how}', "sh", *program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("how", "why"),
    [
        (">/dev/full", "No space left on device (ENOSPC)"),
        ("1</dev/null", "Bad file descriptor (EBADF)"),
    ],
)
def test_output_that_cannot_be_written(how: str, why: str, unbuffered: str) -> None:
    done = _redirected(how, unbuffered)
    assert (done.returncode, done.stderr) == (1, f"redirty: cannot write to stdout: {why}\n")


@pytest.mark.parametrize("how", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(how: str) -> None:
    done = _redirected(how)
    assert (done.returncode, done.stderr) == (0, "")


def test_missing_descriptors_are_opened_for_children_too() -> None:
    code = (
        "import os, sys\n"
        "from redirty.collector.cli import streams\n"
        "os.closerange(0, 3)\n"
        "sys.stdin = sys.stdout = sys.stderr = None\n"
        "streams.repair_streams()\n"
        "print('discarded')\n"
        "sys.exit(not all(os.path.samestat(os.fstat(n), os.stat(os.devnull)) and "
        "os.get_inheritable(n) for n in range(3)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_interruption_that_an_import_turned_into_another_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise ImportError("numpy could not be initialised")

    monkeypatch.setattr(importlib.import_module("redirty.collector.cli.check"), "run", fail)
    monkeypatch.setattr(interrupts, "received", [2])
    assert cli.main(["check"]) == 130
    assert capsys.readouterr().err == "redirty: interrupted\n"
