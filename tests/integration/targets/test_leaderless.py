"""A process whose first thread has ended: it lives, and everything about it is read through another thread."""

from __future__ import annotations

import csv
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.linux import kcmp, procfs, smaps
from redirty.collector.linux import pagemap as pm
from redirty.collector.linux.maps import MapsFile
from redirty.collector.linux.process import Process, descendants, has_memory
from redirty.collector.linux.process_memory import ProcessMemory
from redirty.collector.linux.shared_mappings import identified, shared_mappings
from redirty.collector.target.process_table import ProcessTable
from redirty.collector.target.targets import Tree

from tests.support.leaderless import FULL, PAGE, PAGES, Leaderless
from tests.support.mirror_oracle import CoreFile, mirror_json
from tests.support.redirty_cli import run_redirty, start_redirty

pytestmark = pytest.mark.usefixtures("tracing")


def test_every_reader_finds_it() -> None:
    with Leaderless() as program:
        pid = program.pid
        assert has_memory(pid) and pid in descendants(os.getpid())
        assert pid in Tree(os.getpid()).members()
        table = ProcessTable()
        table.poll()
        assert table.processes[pid].rss_bytes > FULL * PAGE
        assert table.processes[pid].name == procfs.read_comm(pid)
        assert "/dev/zero (deleted)" in {
            o.path for o in identified(pid, shared_mappings(pid)).values()
        }
        assert procfs.status_kib(pid, "VmRSS") * 1024 > FULL * PAGE
        assert any(m.start <= program.address < m.end for m in smaps.detailed(pid))
        assert kcmp.sharing_memory(pid) == []
        process, pagemap = Process(pid), pm.Pagemap(pid)
        try:
            assert process.alive() and process.cmdline
            entries = pagemap.entries(program.address // PAGE, PAGES)
            assert int((entries & pm.ENTRY_PRESENT != 0).sum()) == FULL
        finally:
            process.close()
            pagemap.close()


def test_the_thread_that_was_used_ends_too() -> None:
    """Readers that are open change to another thread."""
    with Leaderless() as program:
        maps, memory = MapsFile(program.pid), ProcessMemory(program.pid)
        try:
            before = maps.read()
            program.end_a_thread()
            assert maps.there()
            now = maps.read()
            assert before is not None and now is not None and before.paths <= now.paths
            pages = np.arange(program.address // PAGE, program.address // PAGE + 2, dtype=np.uint64)
            buffer = memoryview(bytearray(2 * PAGE))
            assert memory.read(pages, buffer).all() and bytes(buffer) == b"f" * 2 * PAGE
            program.close()
            assert not maps.there() and maps.read() is None
        finally:
            maps.close()
            memory.close()


def dirty_pages(directory: Path) -> int:
    with (directory / "rounds.csv").open() as rows:
        return sum(int(row["dirty_pages"]) for row in csv.DictReader(rows))


@pytest.mark.parametrize("option", ["-p", "--tree"])
def test_it_is_recorded(option: str, tmp_path: Path) -> None:
    with Leaderless() as program:
        with start_redirty("record", option, program.pid, "200ms", "5", "-o", tmp_path / "r") as r:
            value = 0
            while r.poll() is None:
                value = value % 200 + 1
                program.write(10, 40, value)
            _, err = r.communicate()
        assert r.returncode == 0, err
        assert dirty_pages(tmp_path / "r") >= 40


def test_it_is_mirrored(tmp_path: Path) -> None:
    with Leaderless() as program:
        program.write(3, 1, 7)
        done = run_redirty(
            "mirror",
            "-p",
            program.pid,
            "--to",
            tmp_path / "m",
            "--downtime",
            "1h",
            "--passes",
            "2",
            "--verify=full",
        )
        assert done.code == 0, done
        assert mirror_json(tmp_path / "m")["verified"]
        core = CoreFile(tmp_path / "m" / "memory.core")
        try:
            copy = core.read(program.address, PAGES * PAGE)
        finally:
            core.close()
        full = b"f" * 3 * PAGE + b"\7" * PAGE + b"f" * (FULL - 4) * PAGE
        assert copy == full + bytes((PAGES - FULL) * PAGE)


def test_its_page_tables_are_shown() -> None:
    with Leaderless() as program:
        done = run_redirty("pagetables", "-p", program.pid)
        assert done.code == 0, done


def test_a_process_that_ended_as_a_whole_is_refused(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert not has_memory(ended.pid)
        done = run_redirty("record", "-p", ended.pid, "-o", tmp_path / "r")
        assert done.code == 3 and "has ended already" in done.err, done
