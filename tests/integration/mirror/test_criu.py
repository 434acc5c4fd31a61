"""redirty export-criu: images that crit reads, with the contents of every page that the process owns."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.support.mirror_oracle import CoreFile
from tests.support.redirty_cli import PATIENT_GOALS, run_redirty
from tests.workloads.driver import Phases

pytestmark = pytest.mark.usefixtures("tracing")


def messages(data: bytes) -> list[dict[int, int]]:
    """Decode messages of varint fields, each preceded by its size, to values by field number."""
    found, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        at, end, fields = at + 4, at + 4 + size, {}
        while at < end:
            values = []
            for _ in range(2):
                value = shift = 0
                while True:
                    value |= (data[at] & 0x7F) << shift
                    shift, at = shift + 7, at + 1
                    if not data[at - 1] & 0x80:
                        break
                values.append(value)
            assert values[0] & 7 == 0, "a varint"
            fields[values[0] >> 3] = values[1]
        found.append(fields)
    return found


def crit(path: Path) -> dict[str, object] | None:
    """Return what CRIU's own tool shows; None if it is not installed (no package of Ubuntu 24.04 has it)."""
    program = shutil.which("crit")
    if program is None:
        return None
    shown = subprocess.run([program, "show", path], capture_output=True, check=True).stdout
    found: dict[str, object] = json.loads(shown)
    return found


def test_crit_reads_what_the_mirror_has(tmp_path: Path) -> None:
    to = tmp_path / "m"
    with Phases({"anon": ("anon_private", 8), "file": ("file_private", 4)}) as phases:
        written = phases.write("anon", "stride:3").pages
        changed = phases.write("file", "stride:5").pages
        assert run_redirty("mirror", "-p", phases.pid, "--to", to, *PATIENT_GOALS).code == 0
        pid = phases.pid
    done = run_redirty("export-criu", to)
    assert done.code == 0, done
    images = to / "criu"
    inventory = (images / "inventory.img").read_bytes()
    assert struct.unpack_from("<I", inventory) == (0x58313116,)
    (header,) = messages(inventory[4:])
    assert header[1] == 2 and header[8] > 0
    listed = (images / f"pagemap-{pid}.img").read_bytes()
    assert struct.unpack_from("<II", listed) == (0x54564319, 0x56084025)
    head, *entries = messages(listed[8:])
    pages = (images / f"pages-{head[1]}.img").read_bytes()
    shown = crit(images / f"pagemap-{pid}.img")
    if shown is not None:
        assert shown["magic"] == "PAGEMAP"
        assert isinstance(shown["entries"], list)
        ranges = [(int(str(e["vaddr"]), 0), e["nr_pages"]) for e in shown["entries"][1:]]
        assert ranges == [(e[1], e[2]) for e in entries]
        assert crit(images / "inventory.img") is not None
    core = CoreFile(to / "memory.core")
    at, found = 0, set()
    for entry in entries:
        start, count = entry[1], entry[2]
        assert entry[4] == 4, "PE_PRESENT"
        size = count * 4096
        assert pages[at : at + size] == core.read(start, size), hex(start)
        at += size
        found |= set(range(start // 4096, start // 4096 + count))
    core.close()
    assert at == len(pages)
    assert set(written.tolist()) | set(changed.tolist()) <= found
    # pages that only the file has are not exported
    area = phases.areas["file"].pages.tolist()
    assert not (set(area) - set(changed.tolist())) & found


def test_a_directory_that_is_not_a_mirror_is_refused(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "none"):
        done = run_redirty("export-criu", directory, "-o", tmp_path / "x")
        assert done.code == 1 and "is not a mirror" in done.err and len(done.lines) == 1, done


def test_a_truncated_mirror_and_one_of_another_version_are_refused(tmp_path: Path) -> None:
    """Zeros instead of contents could be taken for a parent; nothing is left that blocks the next attempt."""
    to = tmp_path / "m"
    with Phases({"anon": ("anon_private", 8)}) as phases:
        phases.write("anon", "stride:3")
        assert run_redirty("mirror", "-p", phases.pid, "--to", to, *PATIENT_GOALS).code == 0
    core = to / "memory.core"
    size = core.stat().st_size
    os.truncate(core, size - 4096)
    done = run_redirty("export-criu", to)
    assert done.code == 1 and "memory.core is truncated" in done.err, done
    assert not (to / "criu").exists()
    os.truncate(core, size)
    manifest = json.loads((to / "mirror.json").read_text())
    (to / "mirror.json").write_text(json.dumps(manifest | {"schema": 99}))
    done = run_redirty("export-criu", to)
    assert done.code == 1 and "another version of redirty" in done.err, done
    (to / "mirror.json").write_text(json.dumps(manifest))
    assert run_redirty("export-criu", to).code == 0


def test_a_full_disk_leaves_no_partial_images(tmp_path: Path) -> None:
    to, small = tmp_path / "m", tmp_path / "small"
    with Phases({"anon": ("anon_private", 8)}) as phases:
        phases.write("anon", "stride:2")
        assert run_redirty("mirror", "-p", phases.pid, "--to", to, *PATIENT_GOALS).code == 0
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", small], check=True)
    try:
        done = run_redirty("export-criu", to, "-o", small / "criu")
        assert done.code == 1 and "No space left" in done.err, done
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", small], check=True)
