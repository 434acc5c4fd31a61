"""Install the program below a prefix, complete command lines in real shells, and remove it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirty.collector import VERSION
from redirty.collector.cli.main import VERBS

from tests.support.paths import TESTS
from tests.tiers import require_program

ROOT = TESTS.parent
SHELLS = {
    "bash": ("bash", "share/bash-completion/completions/redirty"),
    "zsh": ("zsh", "share/zsh/site-functions/_redirty"),
    "fish": ("fish", "share/fish/vendor_completions.d/redirty.fish"),
}


def install(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / ".ci" / "install", *words],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Install below a prefix; it is removed at the end, and nothing else stays."""
    prefix = tmp_path_factory.mktemp("install") / "usr"
    done = install(PREFIX=str(prefix))
    assert done.returncode == 0, done
    yield prefix
    done = install("uninstall", PREFIX=str(prefix))
    assert done.returncode == 0, done
    assert not [p for p in prefix.rglob("*") if not p.is_dir()]


def test_the_program_runs_from_anywhere(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "argparse.py").write_text("raise SystemExit('taken from the working directory')")
    for words in (["--version"], ["record", "--help"]):
        done = subprocess.run(
            [prefix / "bin" / "redirty", *words],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert VERSION in done.stdout or "usage: redirty record" in done.stdout
        assert not done.stderr


def test_the_manual_is_found(prefix: Path) -> None:
    man = prefix / "share" / "man" / "man1" / "redirty.1.gz"
    text = subprocess.run(["gzip", "-dc", man], capture_output=True, text=True, check=True).stdout
    assert text == (ROOT / "docs" / "redirty.1").read_text()


def test_a_staged_installation_is_for_its_final_place(tmp_path: Path) -> None:
    """Packages are built below DESTDIR, and run without it."""
    done = install(DESTDIR=str(tmp_path), PREFIX="/opt/redirty")
    assert done.returncode == 0, done
    first = (tmp_path / "opt/redirty/bin/redirty").read_text().splitlines()[0]
    assert first == "#!/opt/redirty/lib/redirty/bin/python -I"


def test_a_prefix_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for bad, says in (("relative", "absolute path"), (str(tmp_path / "file"), "cannot write")):
        done = install(PREFIX=bad)
        assert done.returncode in (1, 2) and says in done.stderr
        assert done.stderr.count("\n") == 1 and not done.stdout


def completions(shell: str, prefix: Path, line: str) -> set[str]:
    """Return what a real shell offers for a command line."""
    program = require_program(shell, shell)
    script = prefix / SHELLS[shell][1]
    words = line.split(" ")
    if shell == "bash":
        code = (
            f"source {script}; COMP_WORDS=({line}{' ' + chr(39) * 2 if not words[-1] else ''}); "
            f"COMP_CWORD={len(words) - 1}; _redirty 2>/dev/null; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        argv = [program, "--norc", "-c", code]
    else:
        argv = [program, "--no-config", "-c", f"source {script}; complete -C '{line}'"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return {text.split("\t")[0] for text in done.stdout.splitlines() if text}


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_completes(shell: str, prefix: Path) -> None:
    assert completions(shell, prefix, "redirty rec") == {"record", "receive"}
    assert completions(shell, prefix, "redirty record --du") == {"--duration"}
    assert completions(shell, prefix, "redirty record --arm ") >= {"auto", "uffd", "soft-dirty"}
    assert "lo" in completions(shell, prefix, "redirty predict rec --link ")
    assert str(os.getpid()) in completions(shell, prefix, f"redirty top -p {os.getpid()}")
    assert set(VERBS) <= completions(shell, prefix, "redirty ")


def test_the_script_of_zsh_is_one(prefix: Path) -> None:
    zsh = require_program("zsh", "zsh")
    script = prefix / SHELLS["zsh"][1]
    code = f"autoload -U compinit && compinit -D -u; source {script}; whence -w _redirty; print $_comps[redirty]"
    done = subprocess.run([zsh, "-f", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["_redirty:", "function", "_redirty"], done
