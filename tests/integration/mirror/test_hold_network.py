"""redirty mirror --hold-network: while the target is stopped its network namespace sends nothing.

Whatever happens to redirty then, traffic resumes soon. Uses real packets between the test's own network namespaces.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redirty.collector.errors import RedirtyError
from redirty.collector.mirror.network_hold import NetworkHold

from tests.support.mirror_oracle import mirror_json
from tests.support.netns import another_network, own_network, veth
from tests.support.paths import TESTS
from tests.support.processes import idle_process
from tests.support.redirty_cli import finish, run_redirty, start_redirty
from tests.support.target_state import is_freezer, tracer_of
from tests.support.waiting import wait_until

KILLS = int(os.environ.get("REDIRTY_KILLS", "1"))
MIB = 24
# The last pass copies all memory, and takes a second and a half.
SLOW = ("--passes", "1", "--downtime", "1h", "--bandwidth", "16MiB")
ANSWER_S = 0.2

pytestmark = pytest.mark.usefixtures("tracing")


@dataclass
class Talker:
    """A program in a network namespace, and a process that keeps the namespace open.

    Attributes:
        pid: of the program.
        keeper: PID of the other process.
        port: where the program listens.
    """

    pid: int
    keeper: int
    port: int

    @property
    def words(self) -> tuple[object, ...]:
        """The target options for all processes in the namespace."""
        return "-p", self.pid, "-p", self.keeper

    def connect(self) -> socket.socket:
        """Connect: the kernel accepts a connection even if the program is stopped."""
        return socket.create_connection(("10.9.0.2", self.port), ANSWER_S)

    def answers(self) -> bool:
        try:
            self.connect().close()
        except TimeoutError:
            return False
        return True


@pytest.fixture
def talker() -> Iterator[Talker]:
    with own_network(), another_network() as keeper:
        veth(keeper)
        script = TESTS / "workloads" / "talker.py"
        words = ["nsenter", "-t", str(keeper), "-n", sys.executable, str(script), str(MIB)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            found = Talker(process.pid, keeper, int(process.stdout.readline()))
            assert found.answers()
            yield found
            assert process.poll() is None
            wait_until(found.answers, "its network traffic")
            process.kill()


def wait_held(talker: Talker, sender: subprocess.Popen[str]) -> int:
    """Wait until the namespace sends nothing any more, and return the PID of the program's tracer."""
    tracer = 0

    def held() -> bool:
        nonlocal tracer
        assert sender.poll() is None, sender.communicate()
        tracer = tracer_of(talker.pid)
        return tracer != 0 and is_freezer(tracer) and not talker.answers()

    wait_until(held, "the target is stopped, and its network held")
    return tracer


def start_mirror(talker: Talker, to: Path, *more: object) -> subprocess.Popen[str]:
    return start_redirty("mirror", *talker.words, "--to", to, *SLOW, "--hold-network", *more)


class Reader:
    """Reads the numbers that the program sends. times: when each arrived, CLOCK_MONOTONIC."""

    def __init__(self, connection: socket.socket) -> None:
        self.numbers: list[int] = []
        self.times: list[float] = []
        self._connection = connection
        connection.settimeout(None)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with self._connection.makefile("rb") as file:
            while len(data := file.read(8)) == 8:
                self.times.append(time.monotonic())
                self.numbers.append(int.from_bytes(data, "little"))


def test_nothing_is_sent_while_the_target_is_stopped_and_nothing_is_lost(
    talker: Talker, tmp_path: Path
) -> None:
    reader = Reader(talker.connect())
    sender = start_mirror(talker, tmp_path / "m")
    wait_held(talker, sender)
    done = finish(sender)
    assert done.code == 0, done
    information = mirror_json(tmp_path / "m")
    assert information["network_held"] is True and information["downtime_s"] > 0
    wait_until(talker.answers, "its network traffic")
    received = len(reader.numbers)
    wait_until(lambda: len(reader.numbers) > received + 10, "more numbers")
    assert reader.numbers == list(range(len(reader.numbers)))


def test_without_the_option_the_kernel_answers(talker: Talker, tmp_path: Path) -> None:
    """The other tests see the effect of the hold, not of the stop."""
    sender = start_redirty("mirror", *talker.words, "--to", tmp_path / "m", *SLOW)
    stopped = 0
    while sender.poll() is None:
        before = tracer_of(talker.pid)
        assert talker.answers()
        stopped += bool(before) and tracer_of(talker.pid) == before
        time.sleep(0.01)
    assert finish(sender).code == 0 and stopped


@pytest.mark.parametrize("victim", ["redirty", "freezer"])
def test_traffic_resumes_when_redirty_or_the_freezer_is_killed(
    talker: Talker, tmp_path: Path, victim: str
) -> None:
    for number in range(KILLS):
        sender = start_mirror(talker, tmp_path / f"m{number}")
        freezer = wait_held(talker, sender)
        os.kill(sender.pid if victim == "redirty" else freezer, signal.SIGKILL)
        # Long before the hold would end by itself.
        wait_until(lambda: tracer_of(talker.pid) == 0, "the resumed target")
        wait_until(talker.answers, "its network traffic")
        if victim == "redirty":
            sender.communicate()
            assert not (tmp_path / f"m{number}" / "mirror.json").exists()
        else:
            # it tries again, as what was read is not of one moment
            sender.terminate()
            finish(sender)
        wait_until(talker.answers, "its network traffic")


def test_traffic_resumes_when_redirty_hangs(talker: Talker, tmp_path: Path) -> None:
    """The hold ends with its time limit."""
    sender = start_mirror(talker, tmp_path / "m", "--downtime", "8s")
    wait_held(talker, sender)
    os.kill(sender.pid, signal.SIGSTOP)
    assert not talker.answers()
    wait_until(talker.answers, "its network traffic")
    assert tracer_of(talker.pid) == 0
    os.kill(sender.pid, signal.SIGCONT)
    sender.terminate()
    done = finish(sender)
    assert "Traceback" not in done.err, done


def test_a_namespace_that_others_use_is_refused(talker: Talker, tmp_path: Path) -> None:
    to = tmp_path / "m"
    done = run_redirty("mirror", "-p", talker.pid, "--to", to, "--hold-network")
    assert done.code == 1 and not to.exists(), done
    assert f"process {talker.keeper} (cat), which is not in the target" in done.err, done
    assert "--hold-network=shared" in done.err
    done = run_redirty("mirror", "-p", talker.pid, "--to", to, *SLOW, "--hold-network=shared")
    assert done.code == 0 and mirror_json(to)["network_held"] is True, done


def test_the_machines_own_network_is_refused(tmp_path: Path) -> None:
    with idle_process() as process:
        words = ["mirror", "-p", process.pid, "--to", tmp_path / "m", "--hold-network"]
        done = run_redirty(*words)
    assert done.code == 1 and "not in the target" in done.err, done
    done = run_redirty("mirror", "--vm", os.getpid(), "--to", tmp_path / "m", "--hold-network")
    assert done.code == 2 and "a stopped guest sends nothing" in done.err, done


def test_redirty_does_not_cut_itself_off() -> None:
    with pytest.raises(RedirtyError, match="would cut itself off"):
        NetworkHold(shared=True, remote=True).require_own({os.getpid()})
    NetworkHold(shared=True, remote=False).require_own({os.getpid()})
