"""redirty top for scripts: rounds as lines of JSON, one look as text; no terminal is needed."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.error_assertions import COULD_NOT, TARGET_ENDED, WRONG_USAGE, assert_refused
from tests.support.redirty_cli import REDIRTY, run_redirty
from tests.workloads.driver import Checksum, Writer

pytestmark = pytest.mark.usefixtures("tracing")

PAGES, RATE = 2000, 8000


@pytest.fixture
def writer() -> Iterator[Writer]:
    with Writer(mib=32) as running:
        running.start("cyclic", RATE, PAGES)
        yield running


def test_a_line_for_each_round_until_it_is_interrupted(writer: Writer) -> None:
    words = [REDIRTY, "top", "-p", writer.pid, "200ms", "--json-lines", "--bandwidth", "1Gbit"]
    with subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        rounds = [json.loads(process.stdout.readline()) for _ in range(4)]
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate()
        assert process.returncode == 130
        assert errors == "redirty: interrupted\n"
    rounds += [json.loads(line) for line in rest.splitlines()]
    numbers = [r["round"] for r in rounds]
    assert numbers == list(range(len(rounds))), "none is left out or printed twice"
    for one in rounds:
        assert one["schema"] >= 1 and one["event"] == "round"
        assert isinstance(one["dirty_pages"], int) and one["duration_s"] > 0
        assert one["verdict"]["bandwidth_bytes_per_s"] == 125e6
        assert one["verdict"]["verdict"] in ("converges", "does not converge", "uncertain")
    assert max(r["dirty_pages"] for r in rounds[1:]) > 0
    area = f"{writer.area.start:#x}"
    assert any(m["start"] == area for r in rounds for m in r["mappings"])


def test_one_look_as_text_and_as_json() -> None:
    with Checksum(mib=8) as target:
        done = run_redirty("top", "-p", target.pid, "300ms", "--once")
        assert done.code == 0 and not done.err, done
        lines = done.out.splitlines()
        assert f"process {target.pid}" in lines[0] and "re-dirtied" in lines[1]
        assert all(len(line) <= 100 for line in lines)
        assert any("converge" in line or "uncertain" in line for line in lines)
        done = run_redirty("top", "-p", target.pid, "300ms", "--once", "--json-lines")
        assert done.code == 0 and len(done.out.splitlines()) == 1
        assert json.loads(done.out)["round"] == 0
        assert target.stop().ok


def test_all_processes_without_a_target(writer: Writer) -> None:
    done = run_redirty("top", "--once", "--json-lines")
    assert done.code == 0 and not done.err, done
    found = json.loads(done.out)
    assert found["event"] == "processes" and found["seconds"] > 0
    assert all(p["write_faults_per_s"] > 0 for p in found["processes"])
    text = run_redirty("top", "--once")
    assert text.code == 0 and "write faults/s" in text.out.splitlines()[1]


def test_a_target_that_is_not_there_or_ends() -> None:
    done = run_redirty("top", "-p", 2**22 - 1, "--once")
    assert_refused(done, COULD_NOT, "no process 4194303")
    done = run_redirty("top", "100ms", "--json-lines", "--", "sh", "-c", "sleep 1")
    assert done.code == 0 and len(done.out.splitlines()) >= 1, "a command that has ended is done"
    done = run_redirty("top", "--once", "--replay", "/nonexistent")
    assert_refused(done, WRONG_USAGE, "--once is for what runs now")
    done = run_redirty("top", "--json-lines", "--serve")
    assert_refused(done, WRONG_USAGE, "--json-lines prints what --serve shows")


def test_a_target_that_ends_meanwhile_is_reported(writer: Writer) -> None:
    words = [REDIRTY, "top", "-p", writer.pid, "100ms", "--json-lines"]
    with subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        process.stdout.readline()
        writer.signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == TARGET_ENDED, errors
        assert errors.startswith("redirty: ") and "ended" in errors and errors.count("\n") == 1
