"""Attacks of another user on every command that writes: none succeeds, and none makes a command hang.

The attacker owns the folder that the output is created in, or shares it as one shares /tmp. What is tried is in
attacker.py; the mechanism itself (collector/folders.py) has its own tests, with the swaps made at the worst moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import ManagedProcess
from tests.support.receiver import receive
from tests.support.redirty_cli import (
    PATIENT_GOALS,
    REDIRTY,
    Done,
    finish,
    run_redirty,
    start_redirty,
)
from tests.support.tmux import Terminal
from tests.support.waiting import wait_until
from tests.tiers import require

pytestmark = pytest.mark.usefixtures("tracing")

NOBODY = 65534
SECRET = "TOP-SECRET-OF-ROOT"
ATTACKER = Path(__file__).with_name("attacker.py")
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
RECORDING = Path(__file__).parents[2] / "data" / "redis"
LIMIT_S = 300.0  # for a command that is not to hang, on a busy machine


@dataclass(frozen=True)
class Scene:
    """The place that a command is attacked in.

    Attributes:
        root: holds all else.
        theirs: a directory that the attacker owns.
        shared: a directory like /tmp.
        precious: what must not change: a directory of root's.
        target: a process of root's with the secret in its memory.
        mirror: a mirror of it, made in safety.
        attacker: the attacker's program.
    """

    root: Path
    theirs: Path
    shared: Path
    precious: Path
    target: int
    mirror: Path
    attacker: Path

    def attack(self, *words: object) -> str:
        """Run the attacker's program to its end; return what it printed."""
        done = subprocess.run(self._command(*words), check=True, capture_output=True, text=True)
        return done.stdout

    def _command(self, *words: object) -> list[str]:
        return [*AS_NOBODY, "/usr/bin/python3", "-I", "-S", str(self.attacker), *map(str, words)]

    @contextlib.contextmanager
    def attacking(self, *words: object) -> Iterator[subprocess.Popen[str]]:
        """Run the attacker's program during the block."""
        process = subprocess.Popen(self._command(*words), stdout=subprocess.PIPE, text=True)
        with ManagedProcess(process):
            yield process

    def assert_nothing_won(self, done: Done, *, single_file: bool) -> None:
        """Assert that nothing precious changed, and that no secret can be read."""
        assert {p.name: p.read_text() for p in self.precious.iterdir()} == {"victim": "precious"}
        assert stat.S_IMODE((self.precious / "victim").stat().st_mode) == 0o600
        found = self.attack("read", self.root, SECRET)
        assert found == "", f"the attacker reads the secret in {found}"
        for path in self.root.rglob("*"):
            status = path.lstat()
            if (
                status.st_uid != 0
                or not stat.S_ISREG(status.st_mode)
                or self.mirror in path.parents
            ):
                continue
            if path in (self.attacker, self.precious / "victim"):
                continue
            assert not status.st_mode & 0o077, path
            parent = path.parent.stat()
            assert single_file or (parent.st_uid == 0 and not parent.st_mode & 0o022), path
        for word in ("Traceback", "internal error"):
            assert word not in done.err, done


def record(scene: Scene, to: Path) -> Done:
    words = ["--events", "--stacks", "--zeros", "-q", "-o", to]
    return run_redirty("record", "-p", scene.target, "100ms", "3", *words, timeout_s=LIMIT_S)


def mirror(scene: Scene, to: Path) -> Done:
    words = ["--to", to, "-q", *PATIENT_GOALS]
    return run_redirty("mirror", "-p", scene.target, *words, timeout_s=LIMIT_S)


def received(scene: Scene, to: Path, code: Path, wait: str) -> Done:
    """Receive a mirror; a receiver that refuses is the answer."""
    words = ["--listen", "127.0.0.1:0", "--to", to, "--code-file", code, "--wait", wait]
    receiver = start_redirty("receive", *words)
    assert receiver.stderr is not None
    line = receiver.stderr.readline()
    if "listening on" in line:
        port = line.rpartition(":")[2].strip()
        words = ["--to", f"127.0.0.1:{port}", "--code-file", code, "--patience", "1s", "-q"]
        run_redirty("mirror", "-p", scene.target, *words, timeout_s=LIMIT_S)
    done = finish(receiver, LIMIT_S)
    return Done(done.code, done.out, line + done.err)


def receive_to(scene: Scene, to: Path) -> Done:
    code = scene.precious.with_name("code")
    code.unlink(missing_ok=True)
    return received(scene, to, code, "60s")


def receive_code(scene: Scene, to: Path) -> Done:
    directory = scene.precious.with_name("received")
    shutil.rmtree(directory, ignore_errors=True)
    return received(scene, directory, to, "2s")


def export_criu(scene: Scene, to: Path) -> Done:
    return run_redirty("export-criu", scene.mirror, "-o", to, timeout_s=LIMIT_S)


def export_guest(scene: Scene, to: Path) -> Done:
    return run_redirty("export-guest", scene.mirror, "-o", to, timeout_s=LIMIT_S)


def demo(scene: Scene, to: Path) -> Done:
    words = ["-d", "1s", "--rate", "1MiB", "-o", to]
    return run_redirty("demo", *words, timeout_s=LIMIT_S)


@dataclass(frozen=True)
class Command:
    """A command that writes. single_file: its output is a file, not a directory; slow: it loads BPF programs."""

    run: Callable[[Scene, Path], Done]
    single_file: bool = False
    slow: bool = False


COMMANDS = {
    "record": Command(record, slow=True),
    "mirror": Command(mirror, slow=True),
    "receive": Command(receive_to, slow=True),
    "receive --code-file": Command(receive_code, single_file=True, slow=True),
    "export-criu": Command(export_criu),
    "export-guest": Command(export_guest, single_file=True),
    "demo": Command(demo, slow=True),
}
PLACED = (
    "link", "link_to_directory", "dangling", "fifo", "directory", "directory_of_links", "directory_of_fifos", "way",
)  # fmt: skip
SWAPS = ("link_to_directory", "fifo", "directory", "directory_of_links", "directory_of_fifos")
PROTECTIONS = ("symlinks", "regular", "fifos")


@pytest.fixture(scope="module", params=[0, 1], ids=["unprotected", "protected"])
def protection(request: pytest.FixtureRequest) -> Iterator[int]:
    """Set fs.protected_symlinks and its siblings, which change what links and FIFOs in shared directories can do."""
    paths = [Path(f"/proc/sys/fs/protected_{name}") for name in PROTECTIONS]
    before = {path: path.read_text() for path in paths if path.exists()}
    require(before and all(os.access(p, os.W_OK) for p in before), "needs a writable /proc/sys/fs")
    try:
        for path in before:
            try:
                path.write_text(f"{request.param}\n")
            except OSError as e:
                require(False, f"{path} cannot be set here: {e}")
        yield request.param
    finally:
        for path, text in before.items():
            with contextlib.suppress(OSError):
                path.write_text(text)


@pytest.fixture(scope="module")
def target(tracing: None) -> Iterator[int]:
    """Start a process of root's with a secret in its memory; return its PID."""
    code = f"import sys, time; s = bytearray(b'{SECRET}-' * 5000); print(1, flush=True); time.sleep(1e6)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with ManagedProcess(process):
        assert process.stdout is not None and process.stdout.readline() == b"1\n"
        yield process.pid


@pytest.fixture(scope="module")
def safe_mirror(target: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mirror the target, and let it look like a QEMU, for export-guest."""
    directory = tmp_path_factory.mktemp("safe") / "mirror"
    done = run_redirty("mirror", "-p", target, "--to", directory, "-q", *PATIENT_GOALS)
    assert done.code == 0, done
    manifest = directory / "mirror.json"
    information = json.loads(manifest.read_text())
    heap = next(
        line.split()[0].split("-")
        for line in Path(f"/proc/{target}/maps").read_text().splitlines()
        if "[heap]" in line
    )
    block = {"start": f"0x{heap[0]}", "end": f"0x{heap[1]}", "pid": target}
    manifest.write_text(json.dumps({**information, "guest_ram": [block]}))
    return directory


@pytest.fixture
def scene(target: int, safe_mirror: Path) -> Iterator[Scene]:
    """Set the scene, in a place that the attacker reaches: pytest's own are private."""
    with tempfile.TemporaryDirectory(prefix="redirty-attack-") as name:
        root = Path(name)
        root.chmod(0o755)
        places = {"theirs": 0o755, "shared": 0o1777, "precious": 0o755}
        for place, mode in places.items():
            (root / place).mkdir()
            (root / place).chmod(mode)
        os.chown(root / "theirs", NOBODY, NOBODY)
        victim = root / "precious" / "victim"
        victim.write_text("precious")
        victim.chmod(0o600)
        attacker = root / "attacker.py"
        shutil.copy(ATTACKER, attacker)
        attacker.chmod(0o644)
        paths = {place: root / place for place in places}
        yield Scene(root, **paths, target=target, mirror=safe_mirror, attacker=attacker)


# fs.protected_* is about links and FIFOs: for directories one setting is enough.
@pytest.mark.parametrize(
    ("protection", "name", "kind"),
    [
        (protection, name, kind)
        for protection in (0, 1)
        for name in COMMANDS
        for kind in PLACED
        if not protection or not kind.startswith("directory")
    ],
    indirect=["protection"],
)
def test_what_was_placed_before(name: str, kind: str, protection: int, scene: Scene) -> None:
    command = COMMANDS[name]
    to = scene.shared / ("way/out" if kind == "way" else "out")
    scene.attack("place", kind, to, scene.precious)
    done = command.run(scene, to)
    assert done.code in (1, 2), done
    scene.assert_nothing_won(done, single_file=command.single_file)


# Renames in a directory of one's own are not subject to fs.protected_*: one setting is enough.
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name, c in COMMANDS.items()
        for i, kind in enumerate(SWAPS)
        if i in (3, 4) or not c.slow
    ],
)
def test_what_is_swapped_meanwhile(name: str, kind: str, scene: Scene) -> None:
    command = COMMANDS[name]
    to = scene.theirs / "out"
    with scene.attacking("swap", kind, to, scene.precious) as attacker:
        done = command.run(scene, to)
        swapped = attacker.poll() is None and to.with_name("out.real").exists()
    assert swapped, f"the attacker did nothing: {done}"
    scene.assert_nothing_won(done, single_file=command.single_file)
    if not command.single_file:
        assert done.code != 0, "what has the name is the attacker's"


def test_exports_of_the_screens(protection: int, scene: Scene, tmp_path: Path) -> None:
    scene.attack("names", 900, scene.shared, scene.precious)
    words = ["env", "-C", scene.shared, REDIRTY, "top", "--replay", RECORDING]
    with Terminal(words, tmp_path, columns=120, lines=40) as terminal:
        terminal.wait("redis")
        terminal.keys("e")
        terminal.wait("exported")
        terminal.keys("E")
        wait_until(lambda: len(_exports(scene.shared)) == 2, "the second export")
        terminal.keys("q")
        assert terminal.exit_code() == 0
    scene.assert_nothing_won(Done(0, "", ""), single_file=True)


def _exports(directory: Path) -> list[Path]:
    """Return the exports of root's."""
    return [
        p for p in directory.glob("redirty-summary-*")
        if stat.S_ISREG(p.lstat().st_mode) and p.lstat().st_uid == 0 and p.lstat().st_size
    ]  # fmt: skip


# ---- codes ----


def test_codes_that_others_know_are_refused(scene: Scene) -> None:
    code = scene.shared / "code"
    for owner, mode, reason in (
        (NOBODY, 0o600, "belongs to another user (uid 65534)"),
        (0, 0o644, "is open to other users (mode 0644)"),
        (0, 0o640, "is open to other users (mode 0640)"),
        (0, 0o602, "is open to other users (mode 0602)"),
    ):
        code.unlink(missing_ok=True)
        code.write_text("aaaaaaa-aaaaaaa-aaaaaaa-aaaaa\n")
        os.chown(code, owner, owner)
        code.chmod(mode)
        for words in (
            ["receive", "--listen", "0.0.0.0:0", "--to", scene.precious / "new"],
            ["mirror", "-p", scene.target, "--to", "127.0.0.1:1"],
        ):
            done = run_redirty(*words, "--code-file", code)
            assert (done.code, len(done.lines)) == (1, 1) and reason in done.err, done
    assert {p.name for p in scene.precious.iterdir()} == {"victim"}


def test_a_code_is_good_for_one_mirror(target: int, tmp_path: Path) -> None:
    code, kept = tmp_path / "code", tmp_path / "kept"
    with receive(tmp_path / "m", tmp_path / "log", "--code-file", code) as receiver:
        assert stat.S_IMODE(code.stat().st_mode) == 0o600
        shutil.copy(code, kept)
        words = ["--to", f"127.0.0.1:{receiver.port}", "--code-file", kept, "-q", *PATIENT_GOALS]
        assert run_redirty("mirror", "-p", target, *words, timeout_s=LIMIT_S).code == 0
        assert receiver.wait() == 0
        assert f"{code} is removed: a code is good for one mirror" in receiver.text()
    assert not code.exists()
    with receive(tmp_path / "n", tmp_path / "log", "--code-file", code) as receiver:
        assert code.read_text() != kept.read_text()
        words = ["--to", f"127.0.0.1:{receiver.port}", "--code-file", kept, "-q"]
        done = run_redirty("mirror", "-p", target, *words, timeout_s=LIMIT_S)
        assert done.code == 1 and "does not know the code" in done.err, done
    assert code.exists(), "no mirror was made with it"
    assert not (tmp_path / "n").exists()


# ---- the working directory ----


def test_the_working_directory_is_no_source(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers for the compiler, and modules for Python, in a directory of somebody else's."""
    programs = Path(__file__).parents[3] / "bpfprogs"
    poison = "#error of somebody else\n"
    for header in (*programs.glob("*.h"), *(programs / "kheaders" / "include").rglob("*.h")):
        name = (
            header.name
            if header.parent == programs
            else str(header.relative_to(programs / "kheaders/include"))
        )
        for place in (name, f"bcc/{name}", f"include/{name}"):
            path = scene.theirs / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(poison)
    for module in ("argparse", "json", "numpy", "redirty", "os", "bcc", "tempfile"):
        (scene.theirs / f"{module}.py").write_text("raise SystemExit('of somebody else')\n")
    monkeypatch.chdir(scene.theirs)
    done = run_redirty(
        "record", "-p", scene.target, "100ms", "2", "-q", "-o", scene.precious.with_name("rec")
    )
    assert done.code == 0, done
    from redirty.tui.snapshots.mirror import MirrorCommand

    command = MirrorCommand(
        "x", ("-p", str(scene.target)), (scene.target,), str(scene.root / "m"), 10.0
    )
    ran = subprocess.run(command.argv(), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran
