"""Faults of a mirror over a network: the target is unharmed, and there is either a correct mirror or none.

REDIRTY_FAULTS sets how often each fault is tried at a random moment (default 1), REDIRTY_SEED repeats a run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mirror_oracle import assert_same_memory, let_run, mirror_json
from tests.support.receiver import Receive, Wire, receive
from tests.support.redirty_cli import Done, finish, run_redirty, start_redirty
from tests.support.target_state import Condition, assert_released
from tests.support.waiting import PATIENCE_S, wait_until
from tests.tiers import require
from tests.workloads.driver import Hold, Phases, Writer

TIMES = int(os.environ.get("REDIRTY_FAULTS", "1"))
SEED = int(os.environ.get("REDIRTY_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
SLOW = ("--bandwidth", "60MiB")  # so that a pass over the writer's 64 MiB takes a second or so
PATIENT = ("--downtime", "1h", "--patience", "1h")

pytestmark = pytest.mark.usefixtures("tracing")


@pytest.fixture
def writer() -> Iterator[Writer]:
    """Start a target that writes all the time, and check at the end that it is unharmed."""
    with Writer(64) as target:
        target.start("uniform", 2000, 16_384)
        before = Condition.of(target.pid)
        yield target
        assert_released(target, before)
        target.signal(signal.SIGKILL)


def start_mirror(target: Writer, port: int, *more: object) -> subprocess.Popen[str]:
    """Start a mirror of three passes, in as much time as they and whoever reconnects may need."""
    # Of a target that is left stopped the test compares all memory itself.
    verify = "--verify" if "--leave" in more else "--verify=full"
    words = ["-p", target.pid, "--to", f"127.0.0.1:{port}", verify]
    return start_redirty("mirror", *words, *PATIENT, "--passes", "3", *more)


def connected(
    to: Path, log: Path, start: Callable[[int], subprocess.Popen[str]]
) -> tuple[Receive, subprocess.Popen[str]]:
    """Start a receiver that soon gives up when its sender is gone, and a sender, given the port.

    It waits as long for the first connection: on a busy machine it is started again, to wait for longer.
    """
    for wait_s in (2, 16, 128, 1024):
        other = Receive(to, log, "--wait", f"{wait_s}s")
        sender = start(other.port)

        def settled(other: Receive = other, sender: subprocess.Popen[str] = sender) -> bool:
            return to.exists() or sender.poll() is not None or not other.alive

        wait_until(settled, "the connection")
        if "no sender connected" not in other.text():
            return other, sender
        finish(sender)
    raise AssertionError("no sender connected")


def assert_clean(done: Done) -> None:
    assert "Traceback" not in done.err and "internal error" not in done.err, done.err


def assert_no_mirror(to: Path) -> None:
    """Check that the directory is not a mirror."""
    assert not (to / "mirror.json").exists()


def moments(max_s: float) -> Iterator[tuple[int, float]]:
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    for i in range(TIMES):
        yield i, rng.uniform(0.3, max_s)


def test_mirrors_over_loopback_with_tls_and_compressed_are_equal(
    writer: Writer, tmp_path: Path
) -> None:
    code = tmp_path / "code"
    for name, more in (("plain", ()), ("tls", ("--code-file", code)), ("zstd", ("--compress",))):
        to = tmp_path / name
        kept = [w for w in more if w != "--compress"]
        with receive(to, tmp_path / "log", *kept) as other:
            done = finish(start_mirror(writer, other.port, "--leave", "stopped", *more))
            try:
                assert done.code == 0, done
                assert other.wait() == 0, other.text()
                assert_same_memory(to)
            finally:
                let_run(writer.pid)
        assert mirror_json(to)["verified"] is True
    assert not code.exists(), "a code is good for one mirror"


def test_a_killed_sender_leaves_a_verified_mirror_or_none(writer: Writer, tmp_path: Path) -> None:
    for i, moment in moments(2.5):
        to = tmp_path / f"m{i}"
        other, sender = connected(
            to, tmp_path / "log", lambda port: start_mirror(writer, port, *SLOW)
        )
        with other:
            time.sleep(moment)
            sender.kill()
            sender.communicate()
            code = other.wait()
        assert code in (0, 1)
        if code == 1:
            assert not to.exists()
        else:
            assert mirror_json(to)["verified"]
        wait_until(lambda: Path(f"/proc/{writer.pid}").exists(), "the target")


def test_a_receiver_killed_and_started_again_resumes(writer: Writer, tmp_path: Path) -> None:
    for i, moment in moments(1.5):
        to = tmp_path / f"m{i}"
        first = Receive(to, tmp_path / "log")
        sender = start_mirror(writer, first.port, *SLOW, "--leave", "stopped")
        wait_until(to.exists, "the connection")  # before that there is no session to resume
        time.sleep(moment)
        first.kill()
        time.sleep(0.3)
        with receive(to, tmp_path / "log2", port=first.port) as restarted:
            done = finish(sender)
            assert_clean(done)
            if done.code == 0:
                try:
                    restarted.wait()
                    assert_same_memory(to)
                finally:
                    let_run(writer.pid)
            else:
                assert_no_mirror(to)
                raise AssertionError(done)


def test_a_receiver_that_does_not_come_back_ends_the_mirror(writer: Writer, tmp_path: Path) -> None:
    to = tmp_path / "m"
    other = Receive(to, tmp_path / "log")
    sender = start_mirror(writer, other.port, *SLOW, "--patience", "1s")
    wait_until(to.exists, "the connection")
    other.kill()
    done = finish(sender)
    assert done.code == 1 and "the target keeps running" in done.err, done
    assert_clean(done)
    assert_no_mirror(to)


def test_a_cut_connection_is_resumed(writer: Writer, tmp_path: Path) -> None:
    """Wherever it is cut but in the commit, which only the receiver can tell the end of."""
    resumed = 0
    for i, moment in moments(1.5):
        to = tmp_path / f"m{i}"
        code = ("--code-file", tmp_path / f"code{i}")
        with receive(to, tmp_path / "log", *code) as other:
            wire = Wire(other.port)
            sender = start_mirror(writer, wire.port, *SLOW, "--leave", "stopped", *code)
            wait_until(lambda w=wire: w.passed > 1 << 20, "some pages")  # type: ignore[misc]
            time.sleep(moment)
            wire.cut()
            time.sleep(moment / 3)
            wire.cut()
            done = finish(sender)
            wire.close()
            try:
                if "connection lost during the commit" in done.err:
                    assert done.code == 1, done
                    continue
                assert done.code == 0, done
                assert_clean(done)
                assert other.wait() == 0, other.text()
                assert_same_memory(to)
                resumed += 1
            finally:
                let_run(writer.pid)
    assert resumed > 0


def test_a_link_may_be_down_for_five_seconds(writer: Writer, tmp_path: Path) -> None:
    to, code = tmp_path / "m", ("--code-file", tmp_path / "code")
    with receive(to, tmp_path / "log", *code) as other:
        wire = Wire(other.port)
        sender = start_mirror(writer, wire.port, *SLOW, "--leave", "stopped", *code)
        wait_until(lambda: wire.passed > 10 << 20, "some pages")
        wire.hold(5)
        done = finish(sender)
        assert done.code == 0, done
        assert other.wait() == 0
        try:
            assert_same_memory(to)
        finally:
            let_run(writer.pid)
        wire.close()


def test_a_full_disk_leaves_nothing(writer: Writer, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", small], check=False)
    require(mounted.returncode == 0, "needs to mount a tmpfs")
    try:
        with receive(small / "m", tmp_path / "log") as other:
            done = finish(start_mirror(writer, other.port))
            assert done.code == 1 and "No space left" in done.err, done
            assert_clean(done)
            assert other.wait() == 1
        assert not (small / "m").exists()
        done = run_redirty("mirror", "-p", writer.pid, "--to", small / "n")
        assert done.code == 1 and "No space left" in done.err, done
        assert not (small / "n").exists()
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("how", ["exit", "exec"])
def test_a_target_that_ends_is_reported(how: str, tmp_path: Path) -> None:
    for i, moment in moments(1.0):
        to = tmp_path / f"m{i}"
        with Hold("sleep") as target:
            target.write(0, 200)

            def start(port: int, target: Hold = target) -> subprocess.Popen[str]:
                words = ["-p", target.pid, "--to", f"127.0.0.1:{port}", "--bandwidth", "2MiB"]
                return start_redirty("mirror", *words)

            other, sender = connected(to, tmp_path / "log", start)
            time.sleep(moment)
            if how == "exit":
                target.signal(signal.SIGKILL)
            else:
                target.exec()
            done = finish(sender)
            assert_clean(done)
            if how == "exit":
                assert done.code in (1, 3), done
            with other:
                if done.code:
                    other.wait()
                    assert_no_mirror(to)


def test_a_target_that_maps_and_unmaps_gigabytes_is_mirrored(tmp_path: Path) -> None:
    to = tmp_path / "m"
    with Phases({"anon": ("anon_private", 8)}) as phases:
        phases.write("anon")
        with receive(to, tmp_path / "log") as other:
            words = ["-p", phases.pid, "--to", f"127.0.0.1:{other.port}", *PATIENT]
            sender = start_redirty("mirror", *words, "--verify=full", "--leave", "stopped", *SLOW)
            for i in range(6):
                if sender.poll() is not None or _stopped(phases.pid):
                    break
                with contextlib.suppress(Exception):
                    phases.mapnew(f"big{i}", "anon_private", 1024)
                    phases.write(f"big{i}", "stride:64")
                    phases.unmap(f"big{i}")
            done = finish(sender)
            assert done.code == 0, done
            assert other.wait() == 0
            try:
                assert_same_memory(to)
            finally:
                let_run(phases.pid)


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_a_wrong_code_and_a_missing_certificate_are_refused(writer: Writer, tmp_path: Path) -> None:
    to, code, wrong = tmp_path / "m", tmp_path / "code", tmp_path / "wrong"
    wrong.write_text("aaaaaaa-aaaaaaa-aaaaaaa-aaaaa\n")
    wrong.chmod(0o600)
    with receive(to, tmp_path / "log", "--code-file", code) as other:
        done = finish(start_mirror(writer, other.port, "--code-file", wrong))
        assert done.code == 1 and "does not know the code" in done.err, done
        assert_clean(done)
        # without TLS, as an unknown process of this machine would
        with socket.create_connection(("127.0.0.1", other.port)) as stranger:
            stranger.sendall(b"RDM1" + bytes(100))
            stranger.settimeout(PATIENCE_S)
            with contextlib.suppress(OSError):
                while stranger.recv(100):
                    pass
        # TLS without a certificate of its own
        import ssl

        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", other.port)) as plain,
            contextlib.suppress(OSError),
            context.wrap_socket(plain) as nobody,
        ):
            nobody.sendall(bytes(100))
            assert nobody.recv(100) == b""
        assert not to.exists()
        done = finish(start_mirror(writer, other.port, "--code-file", code))
        assert done.code == 0, (done, other.text())
        assert other.wait() == 0
    assert mirror_json(to)["verified"]


def test_an_address_beyond_loopback_needs_a_code(writer: Writer) -> None:
    addresses = json.loads(
        subprocess.run(["ip", "-j", "-4", "addr"], capture_output=True, check=True).stdout
    )
    own = [i["local"] for link in addresses for i in link["addr_info"] if link["ifname"] != "lo"]
    require(own, "needs an address other than loopback")
    with socket.create_server((own[0], 0)) as listener:
        port = listener.getsockname()[1]
        words = ["-p", writer.pid, "--to", f"{own[0]}:{port}"]
        done = run_redirty("mirror", *words)
    assert done.code == 2 and "--code-file" in done.err, done
