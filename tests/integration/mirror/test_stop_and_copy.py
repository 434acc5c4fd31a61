"""The moment in which the target stands still: whatever becomes of redirty then, the target runs on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirty.collector.mirror.sources.spaces import SpaceSource
from redirty.collector.ptrace import freezer_client as arm_holding
from redirty.collector.ptrace.freezer_client import FreezeError, Freezer

from tests.support.mirror_oracle import let_run, mirror_json
from tests.support.redirty_cli import Done, finish, run_redirty, start_redirty
from tests.support.target_state import Condition, assert_released, task_fields, tracer_of
from tests.support.waiting import wait_until
from tests.workloads.driver import Checksum, Crowd, Writer

PTRACE = str(Path(arm_holding.__file__).parent)

pytestmark = [pytest.mark.usefixtures("tracing"), pytest.mark.timeout(180)]


@pytest.fixture
def large() -> Iterator[Writer]:
    """So much memory that the comparison of --verify takes a while."""
    with Writer(512) as target:
        target.start("cyclic", 200_000, 131_072, 600)
        time.sleep(1)
        before = Condition.of(target.pid)
        yield target
        wait_until(lambda: tracer_of(target.pid) == 0, "nobody traces it", timeout_s=5)
        assert_released(target, before)
        target.signal(signal.SIGKILL)


def held(target: Writer, sender: subprocess.Popen[str]) -> int:
    """Waits until the target stands still for the last pass; who holds it."""
    since = 0.0

    def stands() -> bool:
        nonlocal since
        assert sender.poll() is None, sender.communicate()
        holder = tracer_of(target.pid)
        since = (since or time.monotonic()) if holder else 0.0
        return bool(holder) and time.monotonic() - since > 0.03  # arming takes a millisecond

    deadline = time.monotonic() + 60
    while not stands():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return tracer_of(target.pid)


def begin(target: Writer, to: Path) -> subprocess.Popen[str]:
    return start_redirty("mirror", "-p", target.pid, "--to", to, "--downtime", "2s", "--verify")


def assert_runs_within(target: Writer, seconds: float) -> None:
    def runs() -> bool:
        states = task_fields(target.pid, "TracerPid", "State").values()
        return all(tracer == "0" and state[0] in "RS" for tracer, state in states)

    wait_until(runs, "the target runs", timeout_s=seconds)


def assert_sound(done: Done, to: Path) -> None:
    assert "Traceback" not in done.err and "internal error" not in done.err, done
    assert (done.code == 0) == (to / "mirror.json").exists(), done


def test_redirty_killed(large: Writer, tmp_path: Path) -> None:
    sender = begin(large, tmp_path / "m")
    held(large, sender)
    sender.kill()
    assert_runs_within(large, 1)
    sender.communicate()
    assert not (tmp_path / "m" / "mirror.json").exists()


def test_the_holder_killed(large: Writer, tmp_path: Path) -> None:
    """What was read after that is not of one moment: it must not become a mirror."""
    sender = begin(large, tmp_path / "m")
    os.kill(held(large, sender), signal.SIGKILL)
    done = finish(sender)
    assert "could not be held still" in done.err, done
    assert_sound(done, tmp_path / "m")


def test_redirty_stopped(large: Writer, tmp_path: Path) -> None:
    """A collector that hangs: the holder lets go when the time is over."""
    words = ["-p", large.pid, "--to", tmp_path / "m", "--downtime", "300ms", "--bandwidth", "1GiB"]
    sender = start_redirty("mirror", *words, "--passes", "2", "--downtime", "2s")
    holder = tracer_of(large.pid)
    deadline = time.monotonic() + 60
    while True:
        assert sender.poll() is None and time.monotonic() < deadline
        holder = tracer_of(large.pid)
        if holder:
            os.kill(sender.pid, signal.SIGSTOP)
            time.sleep(0.02)
            if tracer_of(large.pid) == holder:
                break
            os.kill(sender.pid, signal.SIGCONT)  # it was being armed
        time.sleep(0.0005)
    assert_runs_within(large, 6)
    os.kill(sender.pid, signal.SIGCONT)
    assert_sound(finish(sender), tmp_path / "m")


def test_left_stopped_and_going_on(target: Checksum, tmp_path: Path) -> None:
    to = tmp_path / "m"
    done = run_redirty("mirror", "-p", target.pid, "--to", to, "--leave", "stopped")
    assert done.code == 0, done
    states = task_fields(target.pid, "TracerPid", "State")
    assert all(tracer == "0" and state[0] == "T" for tracer, state in states.values()), states
    let_run(target.pid)
    assert target.stop().errors == 0
    assert mirror_json(to)["left"] == "stopped"


def test_two_hundred_threads(tmp_path: Path) -> None:
    with Crowd("threads", 200) as crowd:
        before = Condition.of(crowd.pid)
        done = run_redirty("mirror", "-p", crowd.pid, "--to", tmp_path / "m", "--verify")
        assert done.code == 0, done
        assert mirror_json(tmp_path / "m")["threads"] == 201
        assert_released(crowd, before)


def test_a_hold_ends_with_its_time() -> None:
    with Writer(4) as writer:
        holding = Freezer()
        count = holding.stop([writer.pid], 0.2, 1)
        holding.request_states()
        states = holding.states().by_process()[writer.pid]
        assert [s.pid for s in states] == [writer.pid] * count and states[0].registers
        assert states[0].stat.startswith(f"{writer.pid} (".encode())
        assert tracer_of(writer.pid)
        wait_until(lambda: not tracer_of(writer.pid), "the end of the hold", timeout_s=2)
        with pytest.raises(FreezeError, match="time limit exceeded"):
            holding.release()
        holding.stop([writer.pid], 5, 1)
        holding.request_states()  # and not waited for
        holding.extend(5)
        assert holding.release() > 0
        assert not tracer_of(writer.pid)
        with pytest.raises(FreezeError):
            holding.stop_machine("/nonexistent", 1, 1)
        holding.close()


def test_a_hold_ends_with_its_time_though_nobody_reads_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer is larger than the socket takes, as of thousands of threads."""
    monkeypatch.setattr(arm_holding, "_SEND_BUFFER_BYTES", 4096)
    with Crowd("threads", 100) as crowd:
        holding = Freezer()
        holding.stop([crowd.pid], 0.5, 5)
        holding.request_states()
        wait_until(lambda: not tracer_of(crowd.pid), "the end of the hold", timeout_s=20)
        with pytest.raises(FreezeError, match="ended; the target keeps running"):
            holding.states()


@pytest.mark.parametrize("when", ["not asked", "not read", "read"])
def test_a_guest_goes_on_when_redirty_is_killed(when: str, tmp_path: Path) -> None:
    """With the states of its threads asked for and not read yet, too."""
    told: list[str] = []
    with Crowd("threads", 3) as crowd, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "qmp"))
        listener.listen()
        thread = threading.Thread(target=_as_qemu, args=(listener, told))
        thread.start()
        child = os.fork()
        if child == 0:
            holding = Freezer()
            holding.stop_machine(str(tmp_path / "qmp"), 30, 5)
            holding.stop([crowd.pid], 30, 5)
            if when != "not asked":
                holding.request_states()
            if when == "read":
                holding.states()
            else:
                time.sleep(0.3)  # for the answer
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        thread.join(30)
        assert not thread.is_alive()
        assert told[-1] == "cont", told
        wait_until(lambda: not tracer_of(crowd.pid), "its threads run", timeout_s=20)


def _as_qemu(listener: socket.socket, told: list[str]) -> None:
    """Says yes to everything, of one connection."""
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as lines:
        connection.sendall(b'{"QMP": {}}\n')
        for line in lines:
            command = json.loads(line)["execute"]
            told.append(command)
            answer = {"running": True} if command == "query-status" else {}
            connection.sendall(json.dumps({"return": answer}).encode() + b"\n")


def test_memory_of_one_that_is_killed_while_it_is_held_is_not_there() -> None:
    """It stays a zombie until it is let go of, and reading it gives nothing."""
    with Crowd("threads", 3) as crowd:
        source = SpaceSource(1, crowd.pid, scan=True)
        holding = Freezer()
        holding.stop([crowd.pid], 30, 5)
        assert source.there()
        os.kill(crowd.pid, signal.SIGKILL)
        wait_until(lambda: not source.there(), "the end of its memory", timeout_s=20)
        assert Path(f"/proc/{crowd.pid}").exists()
        holding.close()
        source.close()


_FLOATING = """
import sys
sys.path.insert(0, sys.argv[1])
from helpers import arch, freezer, tracee
thread = tracee.Tracee(int(sys.argv[2]), arch.architecture(), 0)
thread.interrupt(2)
sys.stdout.buffer.write(freezer.register_set(thread.tid, freezer.NT_PRFPREG))
thread.release()
"""


def test_floating_point_registers_are_as_the_kernel_tells_them() -> None:
    """They are taken from the extended ones, which begin with them."""
    with Crowd("threads", 3) as crowd:  # which sleeps
        holding = Freezer()
        holding.stop([crowd.pid], 5, 1)
        holding.request_states()
        threads = holding.states().by_process()[crowd.pid]
        holding.release()
        holding.close()
        for thread in threads:
            words = [sys.executable, "-I", "-c", _FLOATING, PTRACE, str(thread.tid)]
            told = subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout
            assert len(told) > 0
            assert thread.floating == told


def test_one_that_is_debugged_is_left_alone(tmp_path: Path) -> None:
    with Writer(4) as writer:
        first, second = Freezer(), Freezer()
        first.stop([writer.pid], 20, 1)
        with pytest.raises(FreezeError, match="debugging"):
            second.stop([writer.pid], 1, 1)
        assert tracer_of(writer.pid)
        first.close()
        second.close()
        wait_until(lambda: not tracer_of(writer.pid), "the end of the hold", timeout_s=2)
