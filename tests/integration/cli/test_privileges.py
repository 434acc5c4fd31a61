"""Missing privileges, and methods that this kernel lacks: the line says which and why."""

from __future__ import annotations

import json
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from redirty.collector.bpf import probe_support, syscalls
from redirty.collector.cli.main import main

from tests.support.error_assertions import COULD_NOT, assert_refused, assert_valid
from tests.support.redirty_cli import REDIRTY, Done, run_redirty
from tests.support.waiting import PATIENCE_S
from tests.tiers import require
from tests.workloads.driver import Hold

pytestmark = pytest.mark.usefixtures("root")


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
    # Root, as in a container that may not trace processes of other users.
    with Hold("sleep", wrapper=wrapper) as other:
        output = tmp_path / "recording"
        words = ["-p", other.pid, "100ms", "1", "-o", output]
        done = run_redirty("record", *words, wrapper=root_without("sys_ptrace"))
        assert_refused(done, COULD_NOT, "trace", str(other.pid), "needs CAP_SYS_PTRACE")
        assert not output.exists()
        assert len(other.write(0, 3).pages) == 3


def root_without(*capabilities: str) -> list[str]:
    """Return the prefix that runs a program as root without these capabilities, as in a container."""
    less = ",".join(f"-{name}" for name in capabilities)
    return ["setpriv", f"--bounding-set={less}", f"--inh-caps={less}", "--"]


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        (root_without("all"), "needs CAP_BPF and CAP_PERFMON"),
        (root_without("bpf", "perfmon", "sys_admin"), "needs CAP_BPF and CAP_PERFMON"),
        (root_without("bpf", "sys_admin"), "needs CAP_BPF,"),
        (["unshare", "-Ur", "--"], "user namespace"),
    ],
    ids=["nothing", "no BPF", "half of BPF", "user namespace"],
)
def test_root_without_the_right(
    sleeper: Hold, tmp_path: Path, wrapper: list[str], message: str
) -> None:
    """A missing capability is named by record and by check, which must not blame the kernel."""
    tried = subprocess.run([*wrapper, "true"], capture_output=True, text=True, check=False)
    require(tried.returncode == 0, f"needs {wrapper[0]} to work: {tried.stderr.strip()}")
    output = tmp_path / "recording"
    words = ["record", "-p", sleeper.pid, "100ms", "1", "-o", output]
    assert_refused(run_redirty(*words, wrapper=wrapper), COULD_NOT, message)
    assert not output.exists()
    done = run_redirty("check", wrapper=wrapper)
    assert (done.code, done.err) == (COULD_NOT, "")
    (line,) = (line for line in done.out.splitlines() if line.split()[1:2] == ["tracepoint"])
    assert line.split()[0] == "no"
    assert message in line
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
    """A method or probe that is requested by name works, or is refused with the reason that check gives."""
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
        monkeypatch.setattr(syscalls, "load_noop", refuse)
        monkeypatch.setattr(probe_support, "lockdown_mode", lambda mode=mode: mode)
        output = tmp_path / mode
        code = main(["record", "-p", str(sleeper.pid), "100ms", "1", "-o", str(output)])
        out, err = capfd.readouterr()
        assert_refused(Done(code, out, err), COULD_NOT, "cannot trace on this kernel", words)
        for probe in probe_support.PROBES:
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
            timeout=PATIENCE_S,
        )
        assert_refused(Done(done.returncode, done.stdout, done.stderr), COULD_NOT, "python3-bpfcc")
    assert not (tmp_path / "recording").exists()
