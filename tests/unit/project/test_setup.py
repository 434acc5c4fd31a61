""".ci/setup: what it installs is pinned by hash, and what it does to the machine is undone however it ends."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
LOCKS = PROJECT / ".ci/lock"

# what an apt-get finds, and what becomes of the script that runs it
APT = """#!/bin/sh
"$POLICY" apache2 start; echo "$?" >>"$STUBS/answers"
kill -{signal} $PPID
exit 1
"""


class Setup:
    """A copy of .ci/setup with stubs for what would change the machine."""

    def __init__(self, directory: Path) -> None:
        self.stubs = directory / "stubs"
        self.policy = directory / "policy-rc.d"
        self.script = directory / "checkout" / ".ci" / "setup"
        shutil.copytree(PROJECT / ".ci", self.script.parent)
        text = self.script.read_text(encoding="utf-8")
        assert "policy=/usr/sbin/policy-rc.d\n" in text
        self.script.write_text(text.replace("/usr/sbin/policy-rc.d", str(self.policy)))
        self.stubs.mkdir()
        for name, body in (("dpkg-query", "exit 1"), ("apt-cache", "exit 1"), ("id", "echo 0")):
            self.stub(name, f"#!/bin/sh\n{body}\n")

    def stub(self, name: str, text: str) -> None:
        (self.stubs / name).write_text(text)
        (self.stubs / name).chmod(0o755)

    def run(self, level: str) -> int:
        """Run it; return its exit code, negative when a signal ended it."""
        path = f"{self.stubs}:/usr/bin:/bin"
        env = {"PATH": path, "POLICY": str(self.policy), "STUBS": str(self.stubs)}
        done = subprocess.run(["sh", self.script, level], env=env, capture_output=True, check=False)
        return done.returncode

    @property
    def answers(self) -> list[str]:
        """The exit codes of the policy when apt-get asked it."""
        return (self.stubs / "answers").read_text().split()


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


@pytest.mark.parametrize(("signal", "code"), [("HUP", 129), ("INT", 130), ("TERM", 143)])
def test_an_interrupted_setup_leaves_no_policy(signal: str, code: int, setup: Setup) -> None:
    setup.stub("apt-get", APT.format(signal=signal))
    assert setup.run("test") == code
    assert setup.answers == ["101"], "no service is to start"
    assert not setup.policy.exists()


def test_a_policy_of_somebody_else_stays(setup: Setup) -> None:
    text = "#!/bin/sh\n# of the administrator\nexit 104\n"
    for signal, code in (("TERM", 143), ("KILL", -9), ("0", 1)):
        setup.policy.write_text(text)
        setup.policy.chmod(0o755)
        setup.stub("apt-get", APT.format(signal=signal))
        assert setup.run("test") == code
        assert setup.policy.read_text() == text
    assert set(setup.answers) == {"104"}


@pytest.mark.parametrize("level", ["test", "run"])
def test_a_policy_of_a_killed_setup_is_removed_by_the_next(level: str, setup: Setup) -> None:
    setup.stub("apt-get", APT.format(signal="KILL"))
    assert setup.run("test") == -9
    assert setup.policy.exists()
    setup.stub("apt-get", "#!/bin/sh\nexit 1\n")
    assert setup.run(level) == 1
    assert not setup.policy.exists()


# ---- locks ----


def pins(level: str) -> dict[str, str]:
    """Return the versions that a lock pins, by name; assert that each has a hash."""
    text = (LOCKS / f"{level}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+( *;[^#]*?)?(\s+--hash=sha256:[0-9a-f]{64})+", line)
    return dict(line.split()[0].split("==") for line in lines)


def test_each_requirement_is_pinned_by_hash() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    extra = project["project"]["optional-dependencies"]
    asked = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    wanted = {
        "run": asked, "docs": [*asked, *extra["docs"]], "test": [*asked, *extra["docs"], *extra["dev"]],
    }  # fmt: skip
    for level, requirements in wanted.items():
        pinned = pins(level)
        for requirement in requirements:
            name, bounds = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()  # type: ignore[union-attr]
            assert name in pinned, f"{name} is not in the lock {level}: run .ci/lock.py"
            version = _numbers(pinned[name])
            for sign, bound in re.findall(r"(>=|<)([\d.]+)", bounds):
                assert (version >= _numbers(bound)) == (sign == ">="), requirement
    for name, pinned_version in (pins("run") | pins("docs")).items():
        assert pins("test")[name] == pinned_version, "one version for all levels"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version))
