"""redirty export-criu: images that crit reads, with the contents of every page the process has for itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.host.mirrored import CoreFile
from tests.host.running import run_redirty
from tests.tiers import require_program
from tests.workloads.driver import Phases

pytestmark = [pytest.mark.usefixtures("tracing"), pytest.mark.timeout(120)]


def crit(path: Path) -> dict[str, object]:
    program = require_program("crit", "criu")
    shown = subprocess.run([program, "show", path], capture_output=True, check=True).stdout
    found: dict[str, object] = json.loads(shown)
    return found


def test_crit_reads_what_the_mirror_has(tmp_path: Path) -> None:
    to = tmp_path / "m"
    with Phases({"anon": ("anon_private", 8), "file": ("file_private", 4)}) as phases:
        written = phases.write("anon", "stride:3").pages
        changed = phases.write("file", "stride:5").pages
        assert run_redirty("mirror", "-p", phases.pid, "--to", to).code == 0
        pid = phases.pid
    done = run_redirty("export-criu", to)
    assert done.code == 0, done
    images = to / "criu"
    inventory = crit(images / "inventory.img")
    assert inventory["magic"] == "INVENTORY"
    maps = crit(images / f"pagemap-{pid}.img")
    assert maps["magic"] == "PAGEMAP"
    listed = maps["entries"]
    assert isinstance(listed, list)
    head, entries = listed[0], listed[1:]
    pages = (images / f"pages-{head['pages_id']}.img").read_bytes()
    core = CoreFile(to / "memory.core")
    at, found = 0, set()
    for entry in entries:
        start, count = int(str(entry["vaddr"]), 0), entry["nr_pages"]
        assert "PE_PRESENT" in str(entry["flags"])
        size = count * 4096
        assert pages[at : at + size] == core.read(start, size), hex(start)
        at += size
        found |= set(range(start // 4096, start // 4096 + count))
    core.close()
    assert at == len(pages)
    assert set(written.tolist()) | set(changed.tolist()) <= found
    # what the file shows is the file's
    area = phases.areas["file"].pages.tolist()
    assert not (set(area) - set(changed.tolist())) & found


def test_what_is_no_mirror_is_refused(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "none"):
        done = run_redirty("export-criu", directory, "-o", tmp_path / "x")
        assert done.code == 1 and "is no mirror" in done.err and len(done.lines) == 1, done
