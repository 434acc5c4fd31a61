"""The downtime: whatever happens to redirty while the target is stopped, the target is resumed."""

from __future__ import annotations

import contextlib
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
from redirty.collector.ptrace import freezer_client
from redirty.collector.ptrace.freezer_client import FreezeError, Freezer, ThreadState

from tests.support.mirror_oracle import let_run, mirror_json
from tests.support.redirty_cli import PATIENT_GOALS, Done, finish, run_redirty, start_redirty
from tests.support.target_state import (
    Condition,
    assert_released,
    is_freezer,
    task_fields,
    tracer_of,
)
from tests.support.waiting import PATIENCE_S, wait_until
from tests.workloads.driver import Checksum, Crowd, Writer

PTRACE = str(Path(freezer_client.__file__).parent)

pytestmark = pytest.mark.usefixtures("tracing")


@pytest.fixture
def large() -> Iterator[Writer]:
    """Start a target with enough memory for the comparison of --verify=full to take a while."""
    with Writer(512) as target:
        target.start("cyclic", 200_000, 131_072)
        before = Condition.of(target.pid)
        yield target
        wait_until(lambda: tracer_of(target.pid) == 0, "the end of tracing")
        assert_released(target, before)
        target.signal(signal.SIGKILL)


def wait_stopped(target: Writer, sender: subprocess.Popen[str]) -> int:
    """Wait until the target is stopped for the last pass, and return the PID of the freezer."""
    freezer = 0

    def stopped() -> bool:
        nonlocal freezer
        assert sender.poll() is None, sender.communicate()
        tracer = tracer_of(target.pid)
        freezer = tracer if tracer and is_freezer(tracer) else 0
        return freezer != 0

    wait_until(stopped, "the target is stopped")
    return freezer


def start_mirror(target: Writer, to: Path) -> subprocess.Popen[str]:
    words = ["-p", target.pid, "--to", to, "--passes", "2", "--downtime", "1h", "--verify=full"]
    return start_redirty("mirror", *words)


def wait_runs(target: Writer) -> None:
    def runs() -> bool:
        states = task_fields(target.pid, "TracerPid", "State").values()
        return all(tracer == "0" and state[0] in "RS" for tracer, state in states)

    wait_until(runs, "the target runs")


def assert_consistent(done: Done, to: Path) -> None:
    assert "Traceback" not in done.err and "internal error" not in done.err, done
    assert (done.code == 0) == (to / "mirror.json").exists(), done


def test_the_target_runs_when_redirty_is_killed(large: Writer, tmp_path: Path) -> None:
    sender = start_mirror(large, tmp_path / "m")
    wait_stopped(large, sender)
    sender.kill()
    wait_runs(large)
    sender.communicate()
    assert not (tmp_path / "m" / "mirror.json").exists()


def test_a_killed_freezer_fails_the_attempt(large: Writer, tmp_path: Path) -> None:
    """Memory that was read after that is not of one moment: it must not become a mirror."""
    sender = start_mirror(large, tmp_path / "m")
    os.kill(wait_stopped(large, sender), signal.SIGKILL)
    done = finish(sender)
    assert "cannot stop the target" in done.err, done
    assert_consistent(done, tmp_path / "m")


def test_the_target_runs_when_redirty_hangs(tmp_path: Path) -> None:
    """The freezer releases the target when its time is over."""
    with Writer(24) as target:
        target.start("cyclic", 20_000, 6144)
        before = Condition.of(target.pid)
        # All memory is pending after the only pass, and takes a second and a half: long enough to be seen.
        words = ["-p", target.pid, "--to", tmp_path / "m", "--bandwidth", "16MiB", "--passes", "1"]
        sender = start_redirty("mirror", *words, "--downtime", "8s")
        freezer = wait_stopped(target, sender)
        os.kill(sender.pid, signal.SIGSTOP)
        assert tracer_of(target.pid) in (freezer, 0), "nobody else stops it"
        wait_runs(target)
        os.kill(sender.pid, signal.SIGCONT)
        assert_consistent(finish(sender), tmp_path / "m")
        wait_until(lambda: tracer_of(target.pid) == 0, "the end of tracing")
        assert_released(target, before)


def test_a_target_that_was_left_stopped_resumes(target: Checksum, tmp_path: Path) -> None:
    to = tmp_path / "m"
    done = run_redirty("mirror", "-p", target.pid, "--to", to, *PATIENT_GOALS, "--leave", "stopped")
    assert done.code == 0, done
    states = task_fields(target.pid, "TracerPid", "State")
    assert all(tracer == "0" and state[0] == "T" for tracer, state in states.values()), states
    let_run(target.pid)
    assert target.stop().errors == 0
    assert mirror_json(to)["left"] == "stopped"


def test_two_hundred_threads_are_stopped_and_released(tmp_path: Path) -> None:
    with Crowd("threads", 200) as crowd:
        before = Condition.of(crowd.pid)
        done = run_redirty(
            "mirror", "-p", crowd.pid, "--to", tmp_path / "m", *PATIENT_GOALS, "--verify=full"
        )
        assert done.code == 0, done
        assert mirror_json(tmp_path / "m")["threads"] == 201
        assert_released(crowd, before)


def states_in_time(freezer: Freezer, pid: int) -> tuple[list[ThreadState], int]:
    """Stop a process for a short time, in which its states are read; return them, and the number of threads."""
    for limit_s in (0.2, 2, 20, 200):
        count = freezer.stop([pid], limit_s, PATIENCE_S)
        freezer.request_states()
        try:
            return freezer.states().by_process()[pid], count
        except FreezeError:  # over before, on a busy machine
            with contextlib.suppress(FreezeError):
                freezer.release()
    raise AssertionError("no time is enough")


def test_a_freeze_ends_with_its_time() -> None:
    with Writer(4) as writer:
        freezer = Freezer()
        states, count = states_in_time(freezer, writer.pid)
        assert [s.pid for s in states] == [writer.pid] * count and states[0].registers
        assert states[0].stat.startswith(f"{writer.pid} (".encode())
        wait_until(lambda: not tracer_of(writer.pid), "the end of the freeze")
        with pytest.raises(FreezeError, match="time limit exceeded"):
            freezer.release()
        freezer.stop([writer.pid], PATIENCE_S, PATIENCE_S)
        freezer.request_states()  # without waiting for the answer
        freezer.extend(PATIENCE_S)
        assert freezer.release() > 0
        assert not tracer_of(writer.pid)
        with pytest.raises(FreezeError):
            freezer.stop_machine("/nonexistent", 1, 1)
        freezer.close()


def test_a_hold_ends_with_its_time_though_its_answer_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer exceeds the socket buffer, as with thousands of threads."""
    monkeypatch.setattr(freezer_client, "_SEND_BUFFER_BYTES", 4096)
    with Crowd("threads", 100) as crowd:
        freezer = Freezer()
        freezer.stop([crowd.pid], 0.5, PATIENCE_S)
        freezer.request_states()
        wait_until(lambda: not tracer_of(crowd.pid), "the end of the freeze")
        with pytest.raises(FreezeError, match="ended; the target keeps running"):
            freezer.states()


@pytest.mark.parametrize("states", ["not requested", "not read", "read"])
def test_a_guest_continues_when_redirty_is_killed(states: str, tmp_path: Path) -> None:
    """The states of its threads may have been requested and not read yet."""
    commands: list[str] = []
    with Crowd("threads", 3) as crowd, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "qmp"))
        listener.listen()
        thread = threading.Thread(target=_as_qemu, args=(listener, commands))
        thread.start()
        child = os.fork()
        if child == 0:
            freezer = Freezer()
            freezer.stop_machine(str(tmp_path / "qmp"), PATIENCE_S, PATIENCE_S)
            freezer.stop([crowd.pid], PATIENCE_S, PATIENCE_S)
            if states != "not requested":
                freezer.request_states()
            if states == "read":
                freezer.states()
            else:
                time.sleep(0.3)  # for the answer
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert commands[-1] == "cont", commands
        wait_until(lambda: not tracer_of(crowd.pid), "its threads run")


def _as_qemu(listener: socket.socket, commands: list[str]) -> None:
    """Accept one QMP connection, and confirm every command."""
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as lines:
        connection.sendall(b'{"QMP": {}}\n')
        for line in lines:
            command = json.loads(line)["execute"]
            commands.append(command)
            answer = {"running": True} if command == "query-status" else {}
            connection.sendall(json.dumps({"return": answer}).encode() + b"\n")


def test_memory_of_a_process_killed_while_it_is_stopped_is_gone() -> None:
    """The process remains a zombie until it is released, and reading its memory gives nothing."""
    with Crowd("threads", 3) as crowd:
        source = SpaceSource(1, crowd.pid, scan=True)
        freezer = Freezer()
        freezer.stop([crowd.pid], PATIENCE_S, PATIENCE_S)
        assert source.alive()
        os.kill(crowd.pid, signal.SIGKILL)
        wait_until(lambda: not source.alive(), "the end of its memory")
        assert Path(f"/proc/{crowd.pid}").exists()
        freezer.close()
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


def test_floating_point_registers_are_those_of_the_kernel() -> None:
    """The freezer takes them from the extended ones, which start with them."""
    with Crowd("threads", 3) as crowd:  # its threads sleep
        freezer = Freezer()
        freezer.stop([crowd.pid], PATIENCE_S, PATIENCE_S)
        freezer.request_states()
        threads = freezer.states().by_process()[crowd.pid]
        freezer.release()
        freezer.close()
        for thread in threads:
            words = [sys.executable, "-I", "-c", _FLOATING, PTRACE, str(thread.tid)]
            registers = subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout
            assert len(registers) > 0
            assert thread.floating == registers


def test_a_process_that_is_traced_already_is_not_stopped(tmp_path: Path) -> None:
    with Writer(4) as writer:
        first, second = Freezer(), Freezer()
        first.stop([writer.pid], PATIENCE_S, PATIENCE_S)
        with pytest.raises(FreezeError, match="debugging"):
            second.stop([writer.pid], PATIENCE_S, PATIENCE_S)
        assert tracer_of(writer.pid)
        first.close()
        second.close()
        wait_until(lambda: not tracer_of(writer.pid), "the end of the freeze")
