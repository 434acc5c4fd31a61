"""Targets of unusual shape, recorded by the real program.

Containers, changing cgroups, thousands of threads, tens of thousands of mappings, terabytes of reserved
memory. The dirty pages must equal the truth: each page that was written, each time, and no other page.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest

from tests.integration.recording.test_edges import page_tables_kib
from tests.support.recorded_run import Recorded, counts
from tests.support.target_state import child_of
from tests.support.waiting import wait_idle, wait_until
from tests.tiers import require, require_program
from tests.workloads.driver import Crowd, Phases
from tests.workloads.pages import Area, Pages

pytestmark = pytest.mark.usefixtures("tracing")

AREAS = {"a": ("anon_private", 2), "m": ("memfd", 2), "f": ("file_shared", 2)}


def assert_counts(recorded: Recorded, pid: int, area: Area, *written: Pages) -> None:
    """Check that each page of an area is dirty in as many rounds as commands wrote it, and no other.

    A page that is written while the next round is being armed is dirty in both: up to twice as often,
    never less.
    """
    found, truth = recorded.times_dirty(pid, area), counts(*written)
    wrong = {
        hex(page): (found.get(page, 0), truth.get(page, 0))
        for page in found.keys() | truth.keys()
        if not truth.get(page, 0) <= found.get(page, 0) <= 2 * truth.get(page, 0)
    }
    some = dict(list(wrong.items())[:5])
    assert not wrong, f"{area.name}: {len(wrong)} pages of {len(truth)} (found, true): {some}"


def test_container(tmp_path: Path) -> None:
    """A process with user, PID, mount, network, IPC and UTS namespaces of its own is traced."""
    require_program("unshare", "util-linux")
    wrapper = ("unshare", "-Urpfmniu", "--mount-proc")
    refused = subprocess.run([*wrapper, "true"], capture_output=True, text=True, check=False)
    require(refused.returncode == 0, f"needs user namespaces: {refused.stderr.strip()}")
    with Phases(AREAS, wrapper=wrapper) as phases:
        pid = child_of(phases.pid)
        assert phases.greeting["pid"] == 1 != pid
        written: dict[str, list[Pages]] = {name: [] for name in AREAS}
        with Recorded(tmp_path, "--tree", phases.pid, "--physical") as recorded:
            for seed in (1, 2, 3):
                for name, pages in written.items():
                    pages.append(phases.write(name, "random", seed=seed, count=90).pages)
                recorded.pass_rounds()
            child = phases.fork()
            theirs = phases.child_write("a", "range:5", count=50).pages
            recorded.pass_rounds()
        for name, pages in written.items():
            assert_counts(recorded, pid, phases.areas[name], *pages)
        (outside,) = set(recorded.pids()) - {pid, phases.pid}
        assert outside != child, "its PID here, not that in its namespace"
        assert_counts(recorded, outside, phases.areas["a"], theirs)


def test_cgroup_that_gains_and_loses_processes(tmp_path: Path, cgroup: Path) -> None:
    """Processes that start in a cgroup, join, fork, end or leave are traced while they are in it."""

    def move(pid: int, into: Path) -> None:
        (into / "cgroup.procs").write_text(str(pid))

    with contextlib.ExitStack() as stack:
        first, ends, moves, late = (
            stack.enter_context(Phases({"a": ("anon_private", 2)})) for _ in range(4)
        )
        written: dict[int, list[Pages]] = {p.pid: [] for p in (first, ends, moves, late)}
        for program in (first, ends):
            move(program.pid, cgroup)
        with Recorded(tmp_path, "--cgroup", cgroup) as recorded:

            def write(seed: int, *programs: Phases) -> None:
                for program in programs:
                    touched = program.write("a", "random", seed=seed, count=80)
                    written[program.pid].append(touched.pages)
                recorded.pass_rounds()

            write(1, first, ends)
            late.write("a", "random", seed=9, count=99)  # before it joins
            move(moves.pid, cgroup)
            recorded.wait_for(moves.pid)
            write(2, first, ends, moves)
            ends.close()
            move(late.pid, cgroup)
            recorded.wait_for(late.pid)
            child = late.fork()
            theirs = late.child_write("a", "range:3", count=44).pages
            write(3, first, moves, late)
            move(moves.pid, cgroup.parent)
            recorded.pass_rounds()
            moves.write("a", "random", seed=7, count=99)  # after it left
            write(4, first, late)
        for program in (first, ends, moves, late):
            assert_counts(recorded, program.pid, program.areas["a"], *written[program.pid])
        assert_counts(recorded, child, late.areas["a"], theirs)
        assert set(recorded.pids()) == {*written, child}
        assert moves.alive and len(moves.write("a", "all").pages) == 512
        late.child_exit()
        for program in (first, moves, late):
            program.close()
        wait_until(lambda: not (cgroup / "cgroup.procs").read_text().strip(), "an empty cgroup")


def test_two_thousand_threads(tmp_path: Path) -> None:
    """Pages of 2000 threads that write a page each are recorded exactly."""
    with Crowd("threads", 2000) as crowd:
        written = []
        with Recorded(tmp_path, "-p", crowd.pid, "--physical") as recorded:
            for seed in (1, 2, 3):
                written.append(crowd.write("threads", seed, 900).pages)
                wait_idle(crowd.pid)
                recorded.pass_rounds()
        assert_counts(recorded, crowd.pid, crowd.areas["threads"], *written)


def test_sixty_thousand_mappings(tmp_path: Path) -> None:
    """Half of 60,000 mappings are shared, and some are merged and split during the recording."""
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    require(most >= 65530, f"needs vm.max_map_count of 65530, which is the default; it is {most}")
    with Crowd("mappings", 60_000) as crowd:
        written: dict[str, list[Pages]] = {"private": [], "shared": []}
        before = page_tables_kib(crowd.pid)
        with Recorded(tmp_path, "-p", crowd.pid, "--physical", interval="1s") as recorded:
            # 240 MiB of address space take half a MiB
            assert page_tables_kib(crowd.pid) - before < 1024
            for seed in (1, 2, 3):
                for name, pages in written.items():
                    pages.append(crowd.write(name, seed, 400).pages)
                    (crowd.join if seed % 2 else crowd.cut)(name, 1001)
                recorded.pass_rounds()
        for name, pages in written.items():
            assert_counts(recorded, crowd.pid, crowd.areas[name], *pages)
        assert recorded.meta()["stopped_s"] > 0


def test_four_tebibytes_of_reserved_memory(tmp_path: Path) -> None:
    """Scattered pages are recorded, and memory that is only reserved gets no page tables."""
    with Crowd("sparse", 4096) as crowd:
        area = crowd.areas["sparse"]
        assert area.end - area.start == 4 << 40
        crowd.write("sparse", 99, 200)
        before = page_tables_kib(crowd.pid)
        written = []
        with Recorded(tmp_path, "-p", crowd.pid, "--physical") as recorded:
            recorded.pass_rounds(3)
            assert page_tables_kib(crowd.pid) - before < 256
            for seed in (1, 2, 1):
                written.append(crowd.write("sparse", seed, 500).pages)
                recorded.pass_rounds()
            tables = page_tables_kib(crowd.pid) - before
        assert_counts(recorded, crowd.pid, area, *written)
        # Each page written for the first time may take two tables of 4 KiB on its way.
        assert tables < 2 * 4 * len(counts(*written)) + 256
