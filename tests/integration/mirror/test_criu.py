"""redirty export-criu: images that crit reads, with the contents of every page the process has for itself."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.support.mirror_oracle import CoreFile
from tests.support.redirty_cli import run_redirty
from tests.workloads.driver import Phases

pytestmark = [pytest.mark.usefixtures("tracing"), pytest.mark.timeout(120)]


def messages(data: bytes) -> list[dict[int, int]]:
    """Messages of whole numbers, each after its size: field -> value."""
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
            assert values[0] & 7 == 0, "a whole number"
            fields[values[0] >> 3] = values[1]
        found.append(fields)
    return found


def crit(path: Path) -> dict[str, object] | None:
    """What CRIU's own tool shows; None where there is none (no package of Ubuntu 24.04 has it)."""
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
        assert run_redirty("mirror", "-p", phases.pid, "--to", to).code == 0
        pid = phases.pid
    done = run_redirty("export-criu", to)
    assert done.code == 0, done
    images = to / "criu"
    inventory = (images / "inventory.img").read_bytes()
    assert struct.unpack_from("<I", inventory) == (0x58313116,)
    (told,) = messages(inventory[4:])
    assert told[1] == 2 and told[8] > 0
    listed = (images / f"pagemap-{pid}.img").read_bytes()
    assert struct.unpack_from("<II", listed) == (0x54564319, 0x56084025)
    head, *entries = messages(listed[8:])
    pages = (images / f"pages-{head[1]}.img").read_bytes()
    shown = crit(images / f"pagemap-{pid}.img")
    if shown is not None:
        assert shown["magic"] == "PAGEMAP"
        assert isinstance(shown["entries"], list)
        seen = [(int(str(e["vaddr"]), 0), e["nr_pages"]) for e in shown["entries"][1:]]
        assert seen == [(e[1], e[2]) for e in entries]
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
    # what the file shows is the file's
    area = phases.areas["file"].pages.tolist()
    assert not (set(area) - set(changed.tolist())) & found


def test_what_is_no_mirror_is_refused(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "none"):
        done = run_redirty("export-criu", directory, "-o", tmp_path / "x")
        assert done.code == 1 and "is no mirror" in done.err and len(done.lines) == 1, done


def test_a_mirror_that_was_cut_off_or_is_of_another_version_is_refused(tmp_path: Path) -> None:
    """Zeros instead of contents would pass for a parent; nothing stays that is in the way of the next try."""
    to = tmp_path / "m"
    with Phases({"anon": ("anon_private", 8)}) as phases:
        phases.write("anon", "stride:3")
        assert run_redirty("mirror", "-p", phases.pid, "--to", to).code == 0
    core = to / "memory.core"
    size = core.stat().st_size
    os.truncate(core, size - 4096)
    done = run_redirty("export-criu", to)
    assert done.code == 1 and "memory.core was cut off" in done.err, done
    assert not (to / "criu").exists()
    os.truncate(core, size)
    told = json.loads((to / "mirror.json").read_text())
    (to / "mirror.json").write_text(json.dumps(told | {"schema": 99}))
    done = run_redirty("export-criu", to)
    assert done.code == 1 and "another version of redirty" in done.err, done
    (to / "mirror.json").write_text(json.dumps(told))
    assert run_redirty("export-criu", to).code == 0


def test_a_disk_that_is_full_leaves_no_part_of_the_images(tmp_path: Path) -> None:
    to, small = tmp_path / "m", tmp_path / "small"
    with Phases({"anon": ("anon_private", 8)}) as phases:
        phases.write("anon", "stride:2")
        assert run_redirty("mirror", "-p", phases.pid, "--to", to).code == 0
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", small], check=True)
    try:
        done = run_redirty("export-criu", to, "-o", small / "criu")
        assert done.code == 1 and "No space left" in done.err, done
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", small], check=True)
