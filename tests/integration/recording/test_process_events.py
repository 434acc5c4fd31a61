"""Process events of the kernel, also when more of them come than are read."""

from __future__ import annotations

import subprocess

import pytest
from redirty.collector.net.procevents import ProcessEvents

from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("tracing")


def test_events_lost_in_a_storm_of_processes_are_no_error() -> None:
    """The kernel drops events when the socket's buffer is full: the listener goes on with those after it."""
    events = ProcessEvents()
    subprocess.run(
        ["sh", "-c", "i=0; while [ $i -lt 8000 ]; do /bin/true; i=$((i+1)); done"], check=True
    )
    events.take()
    started: set[int] = set()

    def event_of_a_new_process() -> bool:
        child = subprocess.Popen(["true"])
        child.wait()
        started.add(child.pid)
        return any(event.pid in started for event in events.take())

    wait_until(event_of_a_new_process, "an event of a process started after the storm")
    events.close()
