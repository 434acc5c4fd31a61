"""Mirrors of a QEMU whose guest writes: guest memory equals QEMU's own pmemsave of the stopped guest.

The memory of the QEMU process itself is left out.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from redirty.collector.linux.smaps import starts_with_flag

from tests.bench.migration.qmp import Qmp
from tests.support.mirror_oracle import CoreFile, mirror_json
from tests.support.redirty_cli import run_redirty
from tests.support.servers import Server, guest, scratch
from tests.tiers import require, require_root
from tests.vm.kernels import KernelError, fetch
from tests.workloads.driver import guest_parameters, make_initramfs

MEMORY_MIB, AREA_MIB, RATE = 128, 48, 2000
HOLE, AFTER_HOLE = 0xA0000, 0x100000  # a PC has video memory and firmware in between


def ram_of(pid: int) -> int:
    """Return the address of guest RAM in QEMU, which marks it with MADV_DONTFORK (VmFlags: dc)."""
    start = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if bounds:
            first, last = (int(x, 16) for x in bounds.groups())
        elif line.startswith("VmFlags:") and " dc" in line and last - first >= MEMORY_MIB << 20:
            start = first
    assert start, "no guest memory"
    return start


@contextlib.contextmanager
def running_guest(
    parameters: str, memory_mib: int, *more: str
) -> Iterator[tuple[Server, Path, Path]]:
    """Boot a guest that writes; yield its process, its QMP socket and a scratch directory."""
    require_root()
    try:
        kernel = fetch("6.1")
    except KernelError as e:
        require(False, f"needs a guest kernel: {e}")
        raise
    with scratch("qemu") as work:
        archive = make_initramfs(work / "initramfs")
        socket = work / "qmp"
        options = ["-qmp", f"unix:{socket},server=on,wait=off", *more]
        server = guest(work, kernel.image, archive, parameters, memory_mib, options)
        try:
            server.wait_ready(lambda: server.text().count('"progress"') >= 2)
            yield server, socket, work
        finally:
            server.close()


def test_guest_memory_equals_pmemsave(tmp_path: Path) -> None:
    to = tmp_path / "m"
    with running_guest(guest_parameters(RATE, AREA_MIB), MEMORY_MIB) as (server, socket, work):
        ram = ram_of(server.pid)
        goal = ["--downtime", "1h", "--passes", "3", "--verify=full", "--leave", "stopped"]
        words = ["mirror", "--vm", server.pid, "--to", to, "--qmp", socket, *goal]
        done = run_redirty(*words)
        assert done.code == 0, done
        monitor = Qmp(socket, lambda: server.alive)
        assert monitor.ask("query-status")["running"] is False
        core = CoreFile(to / "memory.core")
        # no memory of the QEMU process itself
        blocks = starts_with_flag(server.pid, b"dc")
        assert ram in blocks and {s.start for s in core.segments} == blocks
        assert run_redirty("export-guest", to, "-o", work / "raw").code == 0
        raw = (work / "raw").read_bytes()
        assert len(raw) == MEMORY_MIB << 20
        for start, end in ((0, HOLE), (AFTER_HOLE, MEMORY_MIB << 20)):
            saved = work / f"saved{start:x}"
            where = {"val": start, "size": end - start, "filename": str(saved)}
            monitor.ask("pmemsave", where)
            truth = saved.read_bytes()
            assert truth == core.read(ram + start, end - start), hex(start)
            assert truth == raw[start:end], hex(start)
        core.close()
        # the guest continues
        monitor.ask("cont")
        monitor.close()
        before = server.text().count('"progress"')
        server.wait_ready(lambda: server.text().count('"progress"') > before)
    assert mirror_json(to)["verified"]


# Memory of two nodes, and a third piece that starts above the hole below 4 GiB: QEMU maps them in an order of its own.
PIECES_MIB, THIRD_MIB = 64, 128  # the smallest size that can be plugged in
# fmt: off
NODES = [
    "-m", f"{2 * PIECES_MIB}M,slots=2,maxmem=1G",
    "-object", f"memory-backend-ram,id=one,size={PIECES_MIB}M",
    "-object", f"memory-backend-ram,id=two,size={PIECES_MIB}M",
    "-numa", "node,memdev=one", "-numa", "node,memdev=two",
    "-object", f"memory-backend-ram,id=three,size={THIRD_MIB}M",
    "-device", "pc-dimm,memdev=three",
]
# fmt: on


def test_guest_memory_in_several_pieces_is_at_its_guest_physical_addresses(tmp_path: Path) -> None:
    to = tmp_path / "m"
    with running_guest(
        f"memhp_default_state=online {guest_parameters(RATE, AREA_MIB // 2)}",
        2 * PIECES_MIB,
        *NODES,
    ) as (server, socket, work):
        goal = ["--downtime", "1h", "--passes", "3", "--leave", "stopped"]
        words = ["mirror", "--vm", server.pid, "--to", to, "--qmp", socket, *goal]
        done = run_redirty(*words)
        assert done.code == 0, done
        done = run_redirty("export-guest", to, "-o", work / "raw")
        assert done.code == 0 and len(done.lines) == 1, done
        known = mirror_json(to)["guest_memory"]
        bounds = [(int(p["guest_address"], 16), int(p["size"], 16)) for p in known]
        assert sum(size for _, size in bounds) == 2 * PIECES_MIB + THIRD_MIB << 20
        assert max(start for start, _ in bounds) >= 4 << 30
        assert len({int(p["address"], 16) >> 26 for p in known}) >= 3, known
        monitor = Qmp(socket, lambda: server.alive)
        with (work / "raw").open("rb") as raw:
            for start, size in bounds:
                saved = work / f"saved{start:x}"
                where = {"val": start, "size": size, "filename": str(saved)}
                monitor.ask("pmemsave", where)
                raw.seek(start)
                truth = saved.read_bytes()
                assert any(truth), hex(start)
                assert truth == raw.read(size), hex(start)
            assert raw.read() == b""
        monitor.close()
