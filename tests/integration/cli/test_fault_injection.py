"""Faults of the machine around every command: limits, missing file systems, streams, locales, odd names and numbers.

Each gives a documented exit code and at most one line, and the target goes on unharmed. Without
REDIRTY_MACHINE_FAULTS=1 only the faults are tried that each stand for a kind.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.paths import TESTS
from tests.support.redirty_cli import REDIRTY
from tests.support.target_state import Condition, assert_released
from tests.tiers import require
from tests.workloads.driver import Checksum

pytestmark = pytest.mark.usefixtures("tracing")

ALL = os.environ.get("REDIRTY_MACHINE_FAULTS") == "1"
REDIS = TESTS / "data" / "redis"
DOCUMENTED = {0, 1, 2, 3, 130}
NO_ERRORS = ("redirty: listening on ", "redirty: code ")
RECORD = ("record", "-p", "PID", "100ms", "3", "-q", "-o", "OUT")
MIRROR = ("mirror", "-p", "PID", "-q", "--passes", "3", "--to", "OUT")
REPORT = ("report", "REDIS")
RECEIVE = ("receive", "--to", "OUT", "--wait", "1s", "--listen")
PREDICT = ("predict", "REDIS", "--bandwidth")
TOO_LONG = "x" * 300


@dataclass(frozen=True)
class Fault:
    """A fault, and a command that meets it.

    Attributes:
        words: the command; PID, OUT, HERE and REDIS stand for the target, a path that is free, its folder, a recording.
        setup: shell commands before it. The shell's directory is HERE.
        redirection: of the shell, after the command.
        codes: exit codes of which it is one.
        says: what is in its line.
        kind: it stands for a kind, and is always tried.
        mounts: it changes mounts, in a namespace of its own.
    """

    words: tuple[str, ...]
    setup: str = ""
    redirection: str = ""
    codes: frozenset[int] = frozenset({0, 1})
    says: str = ""
    kind: bool = False
    mounts: bool = False

    @property
    def name(self) -> str:
        """A name for the test."""
        words = " ".join(word if len(word) < 40 else f"{word[:8]}..." for word in self.words)
        return " ".join(filter(None, (self.setup, words, self.redirection)))


def limited(option: str, values: dict[int, bool], *commands: tuple[str, ...]) -> list[Fault]:
    """Return faults of a limit of the shell, by value, and whether that stands for a kind."""
    return [
        Fault(words, f"ulimit {option} {value}", kind=kind)
        for words in commands
        for value, kind in values.items()
    ]


def refused(*words: str, says: str = "", kind: bool = False, code: int = 2) -> Fault:
    """Return a command line that is refused."""
    return Fault(words, codes=frozenset({code}), says=says, kind=kind)


def ended(*words: str, kind: bool = False) -> Fault:
    """Return a command that is interrupted after a few seconds, unless it has ended by itself."""
    return Fault(words, codes=frozenset(DOCUMENTED), kind=kind)


NO = "mount -t tmpfs none"
FEW = {
    8: False,
    10: True,
    12: False,
    15: False,
    20: True,
    25: False,
    30: False,
    40: False,
    60: False,
    64: True,
}
LITTLE = {200_000: True, 400_000: False, 600_000: True, 800_000: False, 1_500_000: False}
FAULTS = [
    *limited("-n", FEW, RECORD),
    *limited("-n", {12: False, 20: False, 30: False, 40: False, 60: False, 64: True}, MIRROR),
    *limited("-n", {10: False, 12: True, 20: False}, REPORT, (*PREDICT, "1Gbit")),
    *limited("-n", {12: False, 64: False}, ("check",), (*RECEIVE, "127.0.0.1:0")),
    *limited("-v", LITTLE, RECORD),
    *limited("-v", {200_000: False, 300_000: False, 600_000: False}, MIRROR),
    *limited("-v", {100_000: False, 200_000: True, 300_000: False, 400_000: False}, REPORT),
    *limited("-f", {0: True, 1: False, 64: False}, (*RECORD, "--events", "--stacks")),
    *limited("-f", {0: False, 64: True}, MIRROR),
    *limited("-u", {1: True}, RECORD),
    *limited("-l", {0: False}, RECORD),
    *limited("-s", {128: False}, RECORD, REPORT),
    # ---- streams ----
    Fault(REPORT, redirection=">/dev/full", codes=frozenset({1}), says="cannot write to stdout"),
    Fault((*REPORT, "--json"), redirection=">/dev/full", codes=frozenset({1}), kind=True),
    Fault(("report", "/nonexistent"), redirection="2>/dev/full", codes=frozenset({1})),
    Fault(REPORT, redirection="| head -n 1", codes=frozenset({0})),
    Fault(REPORT, redirection="<&- >&- 2>&-", codes=frozenset({0}), kind=True),
    Fault(RECORD, redirection="<&- >&- 2>&-", codes=frozenset({0})),
    Fault((*MIRROR, "--json-lines"), redirection="| true", codes=frozenset({0})),
    # ---- environment ----
    Fault(RECORD, "unset HOME PATH", codes=frozenset({0})),
    Fault(RECORD, "export HOME=/proc", codes=frozenset({0})),
    Fault(RECORD, "export TMPDIR=/nonexistent", codes=frozenset({0})),
    Fault(
        ("predict", "-p", "PID", "-d", "1s", "--bandwidth", "1Gbit", "-q"),
        f"{NO} -o ro /tmp; {NO} -o ro /var/tmp; {NO} -o ro HERE; cd HERE; export TMPDIR=/proc",
        codes=frozenset({1}),
        says="No usable temporary directory",
        kind=True,
        mounts=True,
    ),
    Fault(REPORT, "mkdir gone; cd gone; rmdir ../gone", codes=frozenset({0}), kind=True),
    Fault(RECORD, "mkdir gone; cd gone; rmdir ../gone", kind=True),
    Fault(("export-criu", "."), "mkdir gone; cd gone; rmdir ../gone", codes=frozenset({1})),
    *(
        Fault(words, f"export LC_ALL={name} LANG={name}", codes=frozenset({0}), kind=kind)
        for words in (REPORT, (*RECORD, "--json"))
        for name, kind in (("C", False), ("POSIX", False), ("tr_TR.UTF-8", False), ("xx_YY", False))
    ),
    Fault(REPORT, "export PYTHONIOENCODING=ascii", codes=frozenset({0}), kind=True),
    Fault((*PREDICT, "1Gbit"), "export PYTHONIOENCODING=latin1", codes=frozenset({0})),
    Fault(REPORT, "export PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 LC_ALL=C", codes=frozenset({0})),
    *(Fault(RECORD, f"export TZ='{zone}'", codes=frozenset({0})) for zone in ("XX/No", ":bad", "")),
    # ---- file systems ----
    Fault(RECORD, f"{NO} /proc", codes=frozenset({1}), kind=True, mounts=True),
    Fault(REPORT, f"{NO} /proc", codes=frozenset({0}), kind=True, mounts=True),
    Fault(RECORD, f"{NO} /sys", codes=frozenset({1}), kind=True, mounts=True),
    Fault(MIRROR, f"{NO} /sys", codes=frozenset({1}), mounts=True),
    Fault(RECORD, "mount -o remount,ro,bind /sys", mounts=True),
    Fault(RECORD, f"{NO} /dev", mounts=True),
    Fault(RECORD, "mount -o remount,hidepid=2 /proc", mounts=True),
    Fault(("check",), f"{NO} /proc", mounts=True),
    Fault(("check",), f"{NO} /sys", codes=frozenset({1}), mounts=True),
    Fault((*RECEIVE, "127.0.0.1:0"), f"{NO} /proc", codes=frozenset({1}), mounts=True),
    Fault((*RECEIVE, "127.0.0.1:0", "--code-file", "code"), f"{NO} /proc", mounts=True),
    # ---- names ----
    Fault(("record", "-p", "PID", "100ms", "2", "-q", "-o", "o\udcff\x1b[31m"), codes=frozenset({0}), kind=True),
    Fault(("report", "o\udcff\x1b[31m"), codes=frozenset({1})),
    Fault(("mirror", "-p", "PID", "-q", "--passes", "3", "--to", "m\udcff\x1b[31m"), codes=frozenset({0})),
    refused(*RECEIVE, "", says="--listen"),
    refused(*RECEIVE, "..:0", code=2, kind=True),
    refused(*RECEIVE, f"{TOO_LONG}:0", code=2, kind=True),
    refused(*RECEIVE, "a\udcff:0", code=2, kind=True),
    refused(*RECEIVE, "[::1%lo]:0", code=2),
    refused("mirror", "-p", "PID", "--to", "..:7", code=2, kind=True),
    refused("mirror", "-p", "PID", "--to", f"{TOO_LONG}:7", code=2),
    refused("mirror", "-p", "PID", "--to", "[fe80::1%x]:7", code=2),
    refused("mirror", "-p", "PID", "--to", "a\udcff:7", code=2),
    refused("mirror", "-p", "PID", "--to", "127.0.0.1:" + "9" * 5000, code=1),
    refused("mirror", "-p", "PID", "--to", "OUT", "--passes", "9" * 5000),
    refused("pagetables", "-p", "PID", "--to-node", "9" * 5000),
    refused(*PREDICT[:2], "--to", f"{TOO_LONG}", code=1, kind=True),
    refused(*PREDICT[:2], "--to", "..", code=1),
    refused(*PREDICT[:2], "--to", "a\udcff", code=1),
    refused(*PREDICT[:2], "--link", "\udcff" * 20, code=1),
    refused("mirror", "-p", "PID", "--to", "127.0.0.1:7", "--code-file", "/tmp", code=1),
    refused("mirror", "-p", "PID", "--to", "127.0.0.1:7", "--code-file", "-", code=1),
    refused(*RECEIVE, "127.0.0.1:0", "--code-file", "/nonexistent/x", code=1),
    refused("record", "--cgroup", "../../../..", "-d", "1", "-o", "OUT", code=1),
    refused("record", "--cgroup", "\udcff" * 5000, "-d", "1", "-o", "OUT", code=1, kind=True),
    refused("report", "x" * 5000, code=1, kind=True),
    refused("export-criu", "x" * 5000, code=1),
    refused("top", "--replay", "x" * 5000, code=1),
    # ---- numbers ----
    refused(*RECEIVE, "127.0.0.1:99999", code=2),
    refused("record", "-p", "9" * 20, "-o", "OUT", code=1, kind=True),
    refused("record", "-p", "9" * 5000, "-o", "OUT"),
    refused("record", "-p=-1", "-o", "OUT"),
    refused("record", "-p", "PID", "-d", "nan", "-o", "OUT"),
    refused("record", "-p", "PID", "-d", "1e400", "-o", "OUT"),
    refused("record", "-p", "PID", "9" * 30, "-o", "OUT"),
    ended("record", "-p", "PID", "1000000000", "-q", "-o", "OUT"),
    ended("record", "-p", "PID", "100ms", "9" * 30, "-q", "-o", "OUT"),
    ended("mirror", "-p", "PID", "--to", "OUT", "--bandwidth", "1B", "-q"),
    Fault(("mirror", "-p", "PID", "--to", "OUT", "--downtime", "0.000001us", "-q"), codes=frozenset(DOCUMENTED)),
    refused("mirror", "-p", "PID", "--to", "127.0.0.1:7", "--patience", "9" * 300),
    refused(*RECEIVE, "127.0.0.1:0", "--wait", "nan"),
    refused(*RECEIVE, "127.0.0.1:0", "--wait", "9" * 300),
    refused(*PREDICT, "9" * 300 + "B", says="is too large", kind=True),
    refused(*PREDICT, "0." + "0" * 300 + "1B", says="is too small"),
    refused(*PREDICT, "0B"),
    refused(*PREDICT, "1Gbit", "--downtime", "9" * 300, says="is too long"),
    refused(*PREDICT, "1Gbit", "--downtime", "0." + "0" * 300 + "1", says="is too short"),
    refused(*PREDICT, "1Gbit", "--memory", "9" * 300 + "B", says="is too large"),
    refused(*PREDICT, "1Gbit", "--policy", "criu:1000000000"),
    refused(*PREDICT, "1Gbit", "--policy", "passes:" + "9" * 5000, kind=True),
    refused(*PREDICT, "1Gbit", "--policy", "passes:-1"),
    refused("top", "--replay", "REDIS", "--serve", "70000", code=1),
    refused("top", "--replay", "REDIS", "--serve=-1", code=1),
    refused("record", "--dance", says="'redirty record --help' shows the usage", kind=True),
]  # fmt: skip


@pytest.fixture(scope="module")
def target(tracing: None) -> Iterator[Checksum]:
    """Start a program that notices any harm."""
    with Checksum(threads=2, mib=4) as program:
        yield program
        assert program.stop().errors == 0


def has_unshare() -> bool:
    """Return whether a mount namespace can be made."""
    return (
        subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.parametrize("fault", [f for f in FAULTS if ALL or f.kind], ids=lambda f: ascii(f.name))
def test_a_fault(fault: Fault, target: Checksum, tmp_path: Path) -> None:
    require(REDIRTY.exists(), f"{REDIRTY} is not installed: run make setup")
    require(not fault.mounts or has_unshare(), "needs a mount namespace")
    here = tmp_path / "here"
    here.mkdir()
    values = {
        "PID": str(target.pid),
        "OUT": str(here / "out"),
        "HERE": str(here),
        "REDIS": str(REDIS),
    }
    words = [values.get(word, word) for word in fault.words]
    # what the shell itself says in between is none of redirty's lines
    script = f'{{ cd {here}; {fault.setup.replace("HERE", str(here)) or ":"}; }} 2>/dev/null; "$@" {fault.redirection}'
    before = Condition.of(target.pid)
    wrapper = ["unshare", "-m", "--propagation", "private"] if fault.mounts else []
    limit = ["timeout", "-s", "INT", "-k", "100", "10"] if fault.codes == DOCUMENTED else []
    done = subprocess.run(
        [*limit, *wrapper, "bash", "-c", script, "bash", str(REDIRTY), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=500,
    )
    shown = done.stderr
    assert "Traceback" not in shown + done.stdout and "internal error" not in shown + done.stdout, (
        done
    )
    allowed = fault.codes | {124} if fault.codes == DOCUMENTED else fault.codes
    assert done.returncode in allowed, done
    lines = [line for line in shown.splitlines() if not line.startswith(NO_ERRORS)]
    assert len(lines) <= 1, done
    # below a minimum the libraries' own C code ends the program, with its own line
    assert fault.setup.startswith("ulimit -v") or all(
        line.startswith("redirty: ") for line in lines
    ), done
    assert fault.says in shown, done
    assert_released(target, before)
    assert target.status().errors == 0


def test_every_kind_is_tried() -> None:
    """The faults that are always tried have each command that touches a target, limits, mounts, streams, names."""
    always = [fault for fault in FAULTS if fault.kind]
    assert {fault.words[0] for fault in always} >= {
        "record",
        "mirror",
        "report",
        "predict",
        "receive",
    }
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
