"""Process events of the kernel, also when more of them come than are read, and what a recording makes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirty.collector.net.procevents import ProcessEvent, ProcessEvents
from redirty.collector.recording.process_names import ProcessNames

from tests.support.redirty_cli import run_redirty
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("tracing")


@pytest.fixture
def events() -> Iterator[ProcessEvents]:
    """Yield a listener."""
    listener = ProcessEvents()
    yield listener
    listener.close()
    listener.close()  # harmless


def test_only_forks_and_execs_of_processes_come(events: ProcessEvents) -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    found: list[ProcessEvent] = []

    def both_came() -> bool:
        found.extend(e for e in events.take() if child.pid in (e.pid, e.parent))
        return len(found) >= 2

    wait_until(both_came, "a fork and an exec")
    assert [(e.kind, e.pid) for e in found] == [("fork", child.pid), ("exec", child.pid)]
    assert found[0].parent == os.getpid()
    assert all(e.kind != "fork" or e.parent != e.pid for e in events.take()), "a thread"


STORM = """
import os, sys, time
count, pause_s, left = int(sys.argv[1]), float(sys.argv[2]), 0
for _ in range(count):
    if os.fork() == 0:
        os._exit(0)
    left += 1
    if left == 20:
        while left:
            os.wait()
            left -= 1
        time.sleep(pause_s)
"""


def test_a_storm_of_processes_loses_nothing_that_is_read_late(events: ProcessEvents) -> None:
    """The listener's thread empties the socket while nobody asks for events."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", STORM, "5000", "0"]) as storm:
        storm.wait()
    seen: set[int] = set()

    def all_came() -> bool:
        seen.update(e.pid for e in events.take() if e.parent == storm.pid)
        return len(seen) >= 4900 or events.take_lost()  # process IDs may come again

    wait_until(all_came, "the events of all forks, or word of their loss")


def test_after_a_loss_the_tree_is_read_again() -> None:
    names = ProcessNames()
    names.note(os.getpid())
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as child:
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        wait_until(lambda: children.read_text().split(), "a grandchild")
        grandchild = int(children.read_text())

        class Lossy:
            def take(self) -> list[object]:
                return []

            def take_lost(self) -> bool:
                return True

        names._events = Lossy()  # type: ignore[assignment]
        assert {child.pid, grandchild} <= set(names.poll())
        assert names.processes[grandchild]["parent"] == child.pid
        assert names.poll() == [] and grandchild in names.processes
        child.communicate(b"\n")


def test_a_tree_is_recorded_in_a_storm_of_other_processes(tmp_path: Path) -> None:
    """Others fork all the time, and so does the tree."""
    storm = [sys.executable, "-I", "-S", "-c", STORM, "100000000", "0.05"]
    with subprocess.Popen(storm) as other, subprocess.Popen(storm) as own:
        try:
            done = run_redirty("record", "--tree", own.pid, "200ms", "5", "-o", tmp_path / "r")
        finally:
            for process in (other, own):
                process.kill()
    assert done.code == 0, done
    assert "internal error" not in done.err
    meta = json.loads((tmp_path / "r" / "meta.json").read_text())
    processes = {p["pid"]: p for p in meta["target"]["processes"]}
    assert own.pid in processes and other.pid not in processes
    children = [p for p in processes.values() if p.get("parent") == own.pid]
    assert children and all("comm" in p for p in children)
