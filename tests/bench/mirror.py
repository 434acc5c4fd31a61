"""The copier's speed next to bare loops, the downtime of a target, and the memory a mirror takes."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from redirty.collector.linux.process_memory import ProcessMemory
from redirty.collector.mirror.pipeline import Pipeline
from redirty.collector.mirror.sources.spaces import SpaceSource
from redirty.collector.mirror.transport.local_sink import LocalSink
from redirty.collector.pageset import PAGE_SIZE, U64, PageSet, from_pages

from tests.bench.figures import Interval, interval, of_pairs
from tests.bench.results import Row, not_run
from tests.bench.results import of_pairs as row_of_pairs
from tests.bench.target import available_mib
from tests.support.redirty_cli import REDIRTY
from tests.workloads.driver import Crowd, Sweep

_PIECE = 1 << 20
_SHM = "/dev/shm"


def rows(quick: bool) -> Iterator[Row]:
    """Measure the first pass, scattered pages, downtime, and memory."""
    yield from _first_pass(512 if quick else 1024, 3 if quick else 9)
    yield from _scattered(512, 5 if quick else 15)
    yield from _still(3 if quick else 11)
    yield from _memory(1024 if quick else 8192)


# ---- bare loops ----


def _bare_read(pid: int, first: int, pages: int) -> float:
    """Return the bytes per second of process_vm_readv in pieces of 1 MiB into one buffer."""
    reader, buffer = ProcessMemory(pid), memoryview(bytearray(_PIECE))
    step = _PIECE // PAGE_SIZE
    started = time.perf_counter()
    for at in range(first, first + pages, step):
        reader.read(np.arange(at, at + step, dtype=np.uint64), buffer)
    took = time.perf_counter() - started
    reader.close()
    return pages * PAGE_SIZE / took


_SINK = """
import socket, sys
s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1], flush=True)
c, _ = s.accept(); b = bytearray(1 << 20)
while c.recv_into(b): pass
c.sendall(b"x")
"""


def _bare_tcp(size: int) -> float:
    """Return the bytes per second from one process to another over loopback."""
    with subprocess.Popen(
        [sys.executable, "-c", _SINK], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        connection = socket.create_connection(("127.0.0.1", int(other.stdout.readline())))
        data = memoryview(bytearray(_PIECE))
        started = time.perf_counter()
        for _ in range(size // _PIECE):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        took = time.perf_counter() - started
        connection.close()
    return size / took


# ---- a mirror ----


@contextlib.contextmanager
def _receiver(to: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with subprocess.Popen(
        [REDIRTY, "receive", "--listen", "127.0.0.1:0", "--to", to],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr
        match = re.search(r":(\d+)$", process.stderr.readline().strip())
        assert match
        try:
            yield process, int(match[1])
        finally:
            if process.poll() is None:
                process.terminate()


def _mirror(pid: int, to_receiver: bool, *more: str) -> dict[str, Any]:
    """Return mirror.json, with peak_kib of the sender and the receiver."""
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=_SHM) as name, contextlib.ExitStack() as stack:
        to, where = Path(name, "m"), ""
        watched = {}
        if to_receiver:
            other, port = stack.enter_context(_receiver(to))
            where, watched["receiver"] = f"127.0.0.1:{port}", other.pid
        words = ["mirror", "-p", str(pid), "--to", where or str(to), "--json", "--downtime", "5s"]
        sender = subprocess.Popen([REDIRTY, *words, *more], stdout=subprocess.PIPE, text=True)
        watched["sender"] = sender.pid
        done = threading.Event()
        thread = threading.Thread(target=_watch, args=(watched, peaks, to, done))
        thread.start()
        out, _ = sender.communicate()
        done.set()
        thread.join()
        assert sender.returncode == 0
    information: dict[str, Any] = json.loads(out)
    return {**information, "peak_kib": peaks}


def _watch(pids: dict[str, int], peaks: dict[str, int], to: Path, done: threading.Event) -> None:
    """Sample from the first page at the other end on: before that, the sender compiles its BPF programs."""
    copying = False
    while not done.wait(0.02):
        if not copying:
            with contextlib.suppress(OSError):
                copying = any(p.stat().st_blocks > 64 for p in to.iterdir())
            if not copying:
                continue
            for pid in pids.values():
                with contextlib.suppress(OSError):
                    Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM counts from here
        for name, pid in pids.items():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/status").read_text()
                match = re.search(r"VmHWM:\s+(\d+)", text)
                if match:
                    peaks[name] = max(peaks.get(name, 0), int(match[1]))


def _first_pass(mib: int, count: int) -> Iterator[Row]:
    with Sweep(mib, "anon") as sweep:
        sweep.sweep()
        measured, floors, notes = [], [], []
        for _ in range(count):
            area = sweep.area
            floor = min(
                _bare_read(sweep.pid, area.first_page, area.page_count), _bare_tcp(mib << 20)
            )
            _warm(mib << 20)
            first = _mirror(sweep.pid, True)["passes"][0]
            measured.append(first["bytes"] / first["duration_s"] / 1e9)
            floors.append(floor / 1e9)
            _warm(mib << 20)
            notes.append(_receiver_floor(mib << 20) / 1e9)
    yield row_of_pairs(
        "mirror: first pass to a receiver of this machine in tmpfs, of the slower bare loop",
        of_pairs(measured, floors),
        "GB/s",
        note=f"goal: at least 0.8; writing a new file of tmpfs alone: {np.median(notes):.2f} GB/s",
    )


def _warm(size: int) -> None:
    """Touch as much memory.

    In a virtual machine unused memory may belong to the host: the first to write to it waits for the host. Here that
    is none of the measured programs.
    """
    with mmap.mmap(-1, size + (256 << 20)) as memory:
        for at in range(0, len(memory), PAGE_SIZE):
            memory[at] = 1


def _receiver_floor(size: int) -> float:
    """Return the bytes per second of writing a new file where the receiver writes: no receiver exceeds it."""
    data = bytes(_PIECE)
    with tempfile.TemporaryFile(dir=_SHM, buffering=0) as file:
        started = time.perf_counter()
        for at in range(0, size, _PIECE):
            os.pwrite(file.fileno(), data, at)
        return size / (time.perf_counter() - started)


class _Nowhere(LocalSink):
    """Takes pages and drops them: what is left is reading, scanning and comparing."""

    def __init__(self) -> None:
        self.sent_bytes = 0

    def write(self, number: int, firsts: U64, lengths: U64, data: memoryview, raw: int) -> None:
        self.sent_bytes += len(data)


def _scattered(mib: int, count: int) -> Iterator[Row]:
    with Sweep(mib, "anon") as sweep:
        sweep.sweep()
        rng = np.random.default_rng(1)
        area = sweep.area
        chosen = np.sort(rng.choice(area.page_count, area.page_count // 8, replace=False))
        pages = chosen.astype(np.uint64) + np.uint64(area.first_page)
        source, engine = SpaceSource(1, sweep.pid, scan=True), Pipeline(_Nowhere())
        reader, buffer = ProcessMemory(sweep.pid), memoryview(bytearray(256 * PAGE_SIZE))
        wanted: PageSet = from_pages(pages)
        measured, floors = [], []
        for n in range(count + 1):
            sweep.sweep()  # new contents in every page
            started = time.perf_counter()
            counts = engine.copy([(source, wanted)])
            took = time.perf_counter() - started
            assert counts.sent_pages == len(pages), counts
            started = time.perf_counter()
            for at in range(0, len(pages), 256):
                reader.read(pages[at : at + 256], buffer)
            bare = time.perf_counter() - started
            if n:
                measured.append(len(pages) * PAGE_SIZE / took / 1e9)
                floors.append(len(pages) * PAGE_SIZE / bare / 1e9)
        engine.close()
        source.close()
        reader.close()
    yield row_of_pairs(
        "mirror: scattered pages, read, compared and dropped, of a bare scattered read",
        of_pairs(measured, floors),
        "GB/s",
        note="goal: at least 0.7",
    )


def _still(count: int) -> Iterator[Row]:
    for threads, goal in ((1, 3.0), (200, 20.0)):
        with Crowd("threads", threads) as crowd:
            found = [_mirror(crowd.pid, False) for _ in range(count)]
            parts = [
                f"{name} {np.median([f[f'{name}_s'] for f in found]) * 1e3:.1f}"
                for name in ("stop", "boundary", "copy")
            ]
            yield Row(
                f"mirror: downtime with nothing left, {found[0]['threads']} threads",
                figure=interval([f["downtime_s"] * 1e3 for f in found]),
                unit="ms",
                goal=goal,
                note="ms: " + ", ".join(parts),
            )


def _memory(mib: int) -> Iterator[Row]:
    if available_mib() < 2 * mib + 2048:
        yield not_run(f"mirror: memory for {mib} MiB", f"needs {2 * mib + 2048} MiB of free memory")
        return
    with Sweep(mib, "anon") as sweep:
        sweep.sweep()
        peaks = _mirror(sweep.pid, True)["peak_kib"]
    for name in ("sender", "receiver"):
        value = peaks[name] / 1024
        yield Row(
            f"mirror: resident memory of the {name}, target of {mib} MiB",
            figure=Interval(value, value, value, 1),
            unit="MiB",
            goal=150,
            note="while it copies; compiling its BPF programs takes some 190 MiB for a second"
            if name == "sender"
            else "",
        )
