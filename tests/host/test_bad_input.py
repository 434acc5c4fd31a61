"""Bad input and awkward targets: one clear line, the right exit code, the target unharmed."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from redirty.collector.attach import kernel, trial
from redirty.collector.cli.main import main
from redirty.collector.errors import one_line
from redirty.collector.host.targets import cgroup_mounts

from tests.host.condition import Condition, assert_released, tracer_of
from tests.host.programs import (
    REDIRTY,
    Done,
    finish,
    run_redirty,
    start_redirty,
    wait_until,
)
from tests.tiers import require, require_program, require_root
from tests.workloads.driver import Checksum, Hold

COULD_NOT, WRONG_USAGE, TARGET_ENDED = 1, 2, 3


def assert_refused(done: Done, code: int, *words: str) -> None:
    """One line for a person with these words in it; wrong usage also shows the usage."""
    assert done.code == code, done
    assert done.out == "", done
    lines = done.lines
    if code == WRONG_USAGE and lines and lines[0].startswith("usage: "):
        lines = lines[1:]
    assert len(lines) == 1, done
    assert lines[0].startswith(("redirty: ", "redirty record: ", "redirty demo: ")), done
    for word in ("Traceback", "internal error"):
        assert word not in done.err, done
    for word in words:
        assert word in lines[0], done


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()


@pytest.fixture
def sleeper() -> Iterator[Hold]:
    """A target with nothing special, which must still answer at the end."""
    with Hold("sleep") as target:
        before = Condition.of(target.pid)
        yield target
        assert_released(target, before)
        assert len(target.write(0, 10).pages) == 10


# ---- the command line ----


@pytest.mark.parametrize(
    ("pid", "code", "words"),
    [
        ("0", WRONG_USAGE, "above 0"),
        ("-1", WRONG_USAGE, "above 0"),
        ("one", WRONG_USAGE, "one"),
        ("4194305", COULD_NOT, "no process 4194305"),  # above what any kernel gives out
        ("3000000000", COULD_NOT, "no process 3000000000"),
        ("99999999999999999999", COULD_NOT, "no process 99999999999999999999"),
        ("2", COULD_NOT, "kernel thread"),
    ],
)
@pytest.mark.parametrize("option", ["-p", "--tree"])
def test_process_numbers(tmp_path: Path, option: str, pid: str, code: int, words: str) -> None:
    output = tmp_path / "recording"
    if pid == "2":
        require(_is_kernel_thread(2), "needs kthreadd to be process 2 (not in a pid namespace)")
    assert_refused(run_redirty("record", option, pid, "-o", output), code, words)
    assert not output.exists()


def _is_kernel_thread(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return (
            int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6]) >> 21 & 1 > 0
        )
    return False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["0"], "interval of 0"),
        (["0s"], "interval of 0s"),
        (["0.1ms"], "too short"),
        (["-1"], "-1"),
        (["soon"], "soon"),
        (["5parsecs"], "5parsecs"),
        (["nan"], "nan"),
        (["1s", "0"], "count"),
        (["1s", "-3"], "-3"),
        (["1s", "some"], "some"),
        (["-d", "0"], "duration"),
        (["-d", "1x"], "1x"),
        (["--probe", "magic"], "magic"),
        (["--arm", "magic"], "magic"),
        (["1s", "2", "3"], "3"),
        (["--bogus"], "--bogus"),
    ],
)
def test_words(sleeper: Hold, tmp_path: Path, words: list[str], said: str) -> None:
    output = tmp_path / "recording"
    done = run_redirty("record", "-p", sleeper.pid, "-o", output, *words)
    assert_refused(done, WRONG_USAGE, said)
    assert not output.exists()


def test_targets_that_are_not_one(sleeper: Hold, tmp_path: Path) -> None:
    output = tmp_path / "recording"
    for words in (
        [],
        ["-p", sleeper.pid, "--tree", sleeper.pid],
        ["-p", sleeper.pid, "--", "true"],
        ["--"],
    ):
        assert_refused(run_redirty("record", "-o", output, *words), WRONG_USAGE, "one target")
    assert_refused(run_redirty("record", "-p", sleeper.pid), WRONG_USAGE, "--output")
    assert not output.exists()


@pytest.mark.parametrize("rate", ["200", "1.5", "10G", "fast", "0MiB", "-3MiB"])
def test_rate_needs_a_unit(rate: str) -> None:
    assert_refused(run_redirty("demo", f"--rate={rate}"), WRONG_USAGE, rate)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no-such-program-anywhere", "ENOENT"),
        ("/no/such/program", "ENOENT"),
        ("/etc/passwd", "EACCES"),
        ("/", "EACCES"),
    ],
)
def test_command_that_cannot_run(tmp_path: Path, command: str, reason: str) -> None:
    output = tmp_path / "recording"
    assert_refused(run_redirty("record", "-o", output, "--", command), COULD_NOT, command, reason)
    assert not output.exists()


# ---- where the recording goes ----


def test_output_that_cannot_be(sleeper: Hold, tmp_path: Path) -> None:
    there, file = tmp_path / "there", tmp_path / "file"
    there.mkdir()
    file.write_text("kept")
    for output, words in (
        (there, "exists already"),
        (file, "exists already"),
        (tmp_path / "no" / "recording", "does not exist"),
        (file / "recording", "ENOTDIR"),
        (tmp_path / ("x" * 300), "ENAMETOOLONG"),
        ("/proc/recording", "cannot make /proc/recording"),
    ):
        done = run_redirty("record", "-p", sleeper.pid, "100ms", "1", "-o", output)
        assert_refused(done, COULD_NOT, words)
    assert list(there.iterdir()) == []
    assert file.read_text() == "kept"


@contextlib.contextmanager
def mounted(directory: Path, options: str) -> Iterator[None]:
    """A small file system in memory."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    require(done.returncode == 0, f"needs the right to mount: {done.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_read_only_output(sleeper: Hold, tmp_path: Path) -> None:
    with mounted(tmp_path, "ro,size=64k"):
        output = tmp_path / "recording"
        done = run_redirty("record", "-p", sleeper.pid, "100ms", "1", "-o", output)
        assert_refused(done, COULD_NOT, str(output), "EROFS")


@pytest.mark.parametrize(
    ("size", "count", "events", "kept"),
    [
        ("size=4k", 200, False, "none"),
        ("size=8k", 200, False, "none"),
        ("nr_inodes=1", 200, False, "none"),
        ("size=24k", 300, False, "some"),
        ("size=24k", 300, True, "some"),
        # the rounds fit, the sums at the end, which are longer, do not
        ("size=112k", 50, False, "all"),
        ("size=112k", 50, True, "all"),
        ("nr_inodes=6", 50, True, "all"),
    ],
)
def test_full_disk(tmp_path: Path, size: str, count: int, events: bool, kept: str) -> None:
    with Checksum(threads=2, mib=8) as target, mounted(tmp_path, size):
        before = Condition.of(target.pid)
        output = tmp_path / "recording"
        more = ["--events"] if events else []
        done = run_redirty("record", "-p", target.pid, "20ms", count, *more, "-o", output)
        assert_refused(done, COULD_NOT, str(output), "No space left")
        assert_released(target, before)
        rounds = 0
        if (output / "meta.json").exists():
            assert json.loads((output / "meta.json").read_text())["complete"] is False
            rounds = assert_valid(output)
        expected = {"none": rounds == 0, "some": 0 < rounds < count, "all": rounds == count}
        assert expected[kept], f"{rounds} rounds of {count}"
        if kept == "none":
            assert not output.exists()
        if size == "size=112k":
            # Longer than the others, and written before them: it must not keep them away.
            assert not (output / "pages.csv").exists()
            assert len(pd.read_csv(output / "curve.csv")) > 0
        assert not list(output.glob(".*")), "half a file, or parts of which there are none"
        assert target.stop().errors == 0


def assert_valid(directory: Path) -> int:
    """Every file that is there is whole; how many rounds are in it."""
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


# ---- targets that end, or that are no processes ----


def test_thread_instead_of_process(tmp_path: Path) -> None:
    with Checksum(threads=2, mib=1) as target:
        tid = max(int(entry.name) for entry in os.scandir(f"/proc/{target.pid}/task"))
        for option in ("-p", "--tree"):
            done = run_redirty("record", option, tid, "-o", tmp_path / "recording")
            assert_refused(done, COULD_NOT, f"{tid} is a thread", f"-p {target.pid}")
        assert target.stop().errors == 0


def test_process_that_has_gone(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        done = run_redirty("record", "-p", process.pid, "-o", tmp_path / "recording")
        assert_refused(done, TARGET_ENDED, str(process.pid), "ended already")
    done = run_redirty("record", "-p", process.pid, "-o", tmp_path / "recording")
    assert_refused(done, COULD_NOT, f"no process {process.pid}")
    assert not (tmp_path / "recording").exists()


def test_process_that_ends_while_redirty_starts(tmp_path: Path) -> None:
    """At whatever moment of the start: the same few answers, and never a traceback."""
    for attempt in range(10):
        life_s = 0.15 * attempt
        output = tmp_path / f"recording{attempt}"
        # init reaps it: its parent, the shell, ends at once
        started = subprocess.run(
            ["sh", "-c", f"sleep {life_s} >/dev/null & echo $!"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        done = run_redirty("record", "-p", int(started.stdout), "10s", "-o", output)
        assert done.code in (COULD_NOT, TARGET_ENDED)
        assert_refused(done, done.code, started.stdout.strip())


def test_process_that_ends_in_a_round(tmp_path: Path) -> None:
    output = tmp_path / "recording"
    rounds = output / "rounds.csv"

    def wait_rounds(number: int) -> None:
        wait_until(
            lambda: rounds.exists() and rounds.read_bytes().count(b"\n") > number, 30, "rounds"
        )

    with Hold("sleep") as target:
        process = start_redirty("record", "-p", target.pid, "50ms", "-o", output)
        wait_rounds(1)
        written = set(target.write(5, 9).pages.tolist())
        wait_rounds(rounds.read_bytes().count(b"\n") + 1)
        target.signal(signal.SIGKILL)
        done = finish(process)
    assert_refused(done, TARGET_ENDED, "ended", "kept")
    assert assert_valid(output) >= 3
    meta = json.loads((output / "meta.json").read_text())
    assert meta["complete"] is False
    assert meta["rounds"] == len(pd.read_csv(rounds))
    recorded = pd.read_csv(output / "pages.csv")["address"]
    assert written <= {int(address, 16) >> 12 for address in recorded}


def test_cgroup(tmp_path: Path) -> None:
    output = tmp_path / "recording"
    done = run_redirty("record", "--cgroup", "/no/such", "-o", output)
    assert_refused(done, COULD_NOT, "no cgroup /no/such")
    # Nothing named is not the root of all cgroups.
    done = run_redirty("record", "--cgroup", "", "-o", output)
    assert_refused(done, COULD_NOT, "no cgroup ''")
    mounts = [mount for mount in cgroup_mounts() if os.access(mount, os.W_OK)]
    require(mounts, "needs a cgroup mount")
    empty = mounts[0] / f"redirty-test-{os.getpid()}"
    try:
        empty.mkdir()
    except OSError as e:
        require(False, f"needs the right to make a cgroup: {e}")
    try:
        done = run_redirty("record", "--cgroup", empty, "-o", output)
        assert_refused(done, TARGET_ENDED, "no process in it")
    finally:
        empty.rmdir()
    assert not output.exists()


@pytest.mark.parametrize(
    "name", ["a b", "a\\040b", "a\u2028b", "a\x0bb", "a\nb c", "a\x85 b"], ids=ascii
)
def test_cgroup_mounted_at_a_place_with_an_odd_name(tmp_path: Path, name: str) -> None:
    """In a mount namespace of its own: nobody else is to stumble over it."""
    place = tmp_path / name
    place.mkdir()
    mount = 'mount -t cgroup2 none "$0" && exec "$@"'
    wrapper = ["unshare", "-m", "--propagation", "private", "sh", "-c", mount, str(place)]
    tried = subprocess.run([*wrapper, "true"], capture_output=True, text=True, check=False)
    require(tried.returncode == 0, f"needs cgroups of version 2: {tried.stderr.strip()}")
    words = ["--cgroup", "/no/such", "-o", tmp_path / "recording"]
    done = run_redirty("record", *words, wrapper=wrapper)
    assert_refused(done, COULD_NOT, "no cgroup /no/such", one_line(str(place)))


# ---- targets that are taken ----


def test_under_a_debugger(sleeper: Hold, tmp_path: Path) -> None:
    gdb = require_program("gdb", "gdb")
    with subprocess.Popen(
        [gdb, "-q", "-nx", "-p", str(sleeper.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as debugger:
        try:
            wait_until(lambda: tracer_of(sleeper.pid), 60, "the debugger holds the target")
            done = run_redirty("record", "-p", sleeper.pid, "100ms", "1", "-o", tmp_path / "r")
            assert tracer_of(sleeper.pid) == debugger.pid
        finally:
            debugger.communicate("detach\nquit\n", timeout=60)
    assert_refused(done, COULD_NOT, "being debugged", str(debugger.pid))
    assert not (tmp_path / "r").exists()


def test_two_at_once(sleeper: Hold, tmp_path: Path) -> None:
    first = start_redirty("record", "-p", sleeper.pid, "50ms", "-o", tmp_path / "first")
    rounds = tmp_path / "first" / "rounds.csv"
    wait_until(lambda: rounds.exists() and rounds.read_bytes().count(b"\n") > 1, 30, "a round")
    second = run_redirty("record", "-p", sleeper.pid, "50ms", "2", "-o", tmp_path / "second")
    first.send_signal(signal.SIGINT)
    assert finish(first).code == 130
    assert_refused(second, COULD_NOT, "another")
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("mode", ["uffd-missing", "uffd-wp", "uffd-async"])
def test_target_with_a_userfaultfd(tmp_path: Path, mode: str) -> None:
    """Where soft-dirty works it is another way; else one line. Its own faults are still served."""
    output = tmp_path / "recording"
    with Hold(mode) as target:
        before = Condition.of(target.pid)
        done = run_redirty("record", "-p", target.pid, "--arm", "uffd", "100ms", "1", "-o", output)
        assert_refused(done, COULD_NOT, "userfaultfd", str(target.pid))
        assert not output.exists()
        assert_released(target, before)
        served = target.handled()
        assert len(target.write(0, 10).pages) == 10
        assert target.handled() - served == (0 if mode == "uffd-async" else 10)


@pytest.mark.parametrize("mode", ["seccomp", "seccomp-errno"])
def test_target_under_seccomp(tmp_path: Path, mode: str) -> None:
    """Its filter kills it for userfaultfd(2), and must not see ours. It is traced all the same."""
    output = tmp_path / "recording"
    with Hold(mode) as target:
        before = Condition.of(target.pid)
        process = start_redirty("record", "-p", target.pid, "100ms", "-o", output)
        rounds = output / "rounds.csv"
        wait_until(lambda: rounds.exists() and rounds.read_bytes().count(b"\n") > 2, 30, "rounds")
        written = target.write(3, 20).pages
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        done = finish(process)
        assert done.code == 130, done
        assert_released(target, before)
        assert len(target.write(0, 5).pages) == 5
    pages = pd.read_csv(output / "pages.csv")
    recorded = {int(address, 16) >> 12 for address in pages["address"]}
    assert set(written.tolist()) <= recorded


# ---- rights, and kernels ----


def _as_nobody() -> list[str]:
    nobody = pwd.getpwnam("nobody")
    ids = [f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    wrapper = ["setpriv", *ids, "--"]
    readable = subprocess.run(
        [*wrapper, str(REDIRTY), "--version"], capture_output=True, check=False
    )
    require(readable.returncode == 0, "needs a checkout that other users may read")
    return wrapper


def test_without_the_right(sleeper: Hold, tmp_path: Path) -> None:
    wrapper = _as_nobody()
    for target in (sleeper.pid, 1):
        done = run_redirty("record", "-p", target, "-o", "/tmp/redirty-never", wrapper=wrapper)
        assert_refused(done, COULD_NOT, "root")
    assert not Path("/tmp/redirty-never").exists()
    # root, as in a container that may not trace other users' processes
    with Hold("sleep", wrapper=wrapper) as other:
        output = tmp_path / "recording"
        words = ["-p", other.pid, "100ms", "1", "-o", output]
        done = run_redirty("record", *words, wrapper=root_without("sys_ptrace"))
        assert_refused(done, COULD_NOT, "trace", str(other.pid), "needs CAP_SYS_PTRACE")
        assert not output.exists()
        assert len(other.write(0, 3).pages) == 3


def root_without(*capabilities: str) -> list[str]:
    """What runs a program as root that lacks these, as in a container."""
    less = ",".join(f"-{name}" for name in capabilities)
    return ["setpriv", f"--bounding-set={less}", f"--inh-caps={less}", "--"]


@pytest.mark.parametrize(
    ("wrapper", "said"),
    [
        (root_without("all"), "needs CAP_BPF and CAP_PERFMON"),
        (root_without("bpf", "perfmon", "sys_admin"), "needs CAP_BPF and CAP_PERFMON"),
        (root_without("bpf", "sys_admin"), "needs CAP_BPF,"),
        (["unshare", "-Ur", "--"], "user namespace"),
    ],
    ids=["nothing", "no BPF", "half of BPF", "user namespace"],
)
def test_root_without_the_right(
    sleeper: Hold, tmp_path: Path, wrapper: list[str], said: str
) -> None:
    """Named in record's line and in check's, which must not blame the kernel."""
    tried = subprocess.run([*wrapper, "true"], capture_output=True, text=True, check=False)
    require(tried.returncode == 0, f"needs {wrapper[0]} to work: {tried.stderr.strip()}")
    output = tmp_path / "recording"
    words = ["record", "-p", sleeper.pid, "100ms", "1", "-o", output]
    assert_refused(run_redirty(*words, wrapper=wrapper), COULD_NOT, said)
    assert not output.exists()
    done = run_redirty("check", wrapper=wrapper)
    assert (done.code, done.err) == (COULD_NOT, "")
    (line,) = (line for line in done.out.splitlines() if line.split()[1:2] == ["tracepoint"])
    assert line.split()[0] == "no"
    assert said in line
    assert "hardened" not in done.out


@pytest.mark.parametrize(
    ("section", "option", "name"),
    [
        ("probes", "--probe", "fentry"),
        ("probes", "--probe", "kprobe"),
        ("probes", "--probe", "tracepoint"),
        ("arming", "--arm", "uffd"),
        ("arming", "--arm", "soft-dirty"),
    ],
)
def test_ways_that_this_kernel_has_or_not(
    sleeper: Hold, tmp_path: Path, section: str, option: str, name: str
) -> None:
    """A way that is asked for by name works, or is refused with the reason that check gives."""
    answers = json.loads(run_redirty("check", "--json").out)
    answer = answers[section][name]
    output = tmp_path / "recording"
    done = run_redirty("record", "-p", sleeper.pid, option, name, "100ms", "2", "-o", output)
    if answer["ok"]:
        assert done.code == 0, done
        assert assert_valid(output) == 2
    else:
        assert_refused(done, COULD_NOT, name, answer["reason"])
        assert not output.exists()


def test_kernel_without_any_probe(
    sleeper: Hold,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    for mode, words in (("none", "hardened"), ("confidentiality", "locked down")):
        monkeypatch.setattr(kernel, "load_nothing", refuse)
        monkeypatch.setattr(trial, "lockdown_mode", lambda mode=mode: mode)
        output = tmp_path / mode
        code = main(["record", "-p", str(sleeper.pid), "100ms", "1", "-o", str(output)])
        out, err = capfd.readouterr()
        assert_refused(Done(code, out, err), COULD_NOT, "cannot trace on this kernel", words)
        for probe in trial.PROBES:
            assert f"{probe}: " in err
        assert not output.exists()


def test_without_bcc(sleeper: Hold, tmp_path: Path) -> None:
    words = ["record", "-p", str(sleeper.pid), "100ms", "1", "-o", str(tmp_path / "recording")]
    for hide in ("sys.modules['bcc'] = None", "sys.modules['bcc'] = type(sys)('bcc')"):
        program = f"import sys; {hide}\nfrom redirty.collector.cli.main import main\n"
        done = subprocess.run(
            [sys.executable, "-I", "-c", f"{program}sys.exit(main({words!r}))"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert_refused(Done(done.returncode, done.stdout, done.stderr), COULD_NOT, "python3-bpfcc")
    assert not (tmp_path / "recording").exists()
