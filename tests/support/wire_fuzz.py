"""Random input for readers of the mirror's wire and journal: mostly right, wrong in one place or several."""

from __future__ import annotations

import contextlib
import json
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from redirty.collector.mirror.image.journal import boot_id

from tests.tiers import require

_HEAD = struct.Struct("<4sBBxxIQII")
_RUN = struct.Struct("<QI")
_TYPES = (*range(12), *range(30, 38), 255)
_NUMBERS = (0, 1, 2, 3, 7, 0xFF, 0xFFFF, 1 << 16, 1 << 18, 1 << 31, (1 << 32) - 1, 1 << 51, 1 << 52, 1 << 63,
            (1 << 64) - 1)  # fmt: skip
_TEXTS = (
    "",
    "rw-p",
    "r--p",
    "x" * 5000,
    "\x1b[31m",
    "\ud800",
    "[heap]",
    "../..",
    "\0",
    "committed",
)


def number(rng: random.Random, bits: int) -> int:
    """Return a number of so many bits; limits and small ones are frequent."""
    return (rng.choice(_NUMBERS) if rng.random() < 0.7 else rng.getrandbits(64)) & ((1 << bits) - 1)


def value(rng: random.Random, depth: int = 0) -> Any:
    """Return anything that JSON can express, and numbers and floats that it should not."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return number(rng, 64) - rng.choice((0, 1 << 63))
    if kind == 2:
        return rng.choice((0.0, 1e308, float("inf"), float("nan"), -1.5, 10**400))
    if kind < 6:
        return rng.choice(_TEXTS)
    size = rng.randrange(7)
    if kind == 6:
        return {
            rng.choice(("pid", "source", "zero", "mappings", "x")): value(rng, depth + 1)
            for _ in range(size)
        }
    return [value(rng, depth + 1) for _ in range(size)]


def mutated(rng: random.Random, found: Any) -> Any:
    """Return JSON with something replaced, left out or repeated, at any depth."""
    if rng.random() < 0.15 or not isinstance(found, dict | list) or not found:
        return value(rng)
    if isinstance(found, dict):
        copy = dict(found)
        key = rng.choice(list(copy))
        if rng.random() < 0.1:
            del copy[key]
        else:
            copy[key] = mutated(rng, copy[key])
        return copy
    items = list(found)
    at = rng.randrange(len(items))
    if rng.random() < 0.15:
        items[at : at + 1] = items[at : at + 1] * rng.choice((0, 2, 50))
    else:
        items[at] = mutated(rng, items[at])
    return items


def text(rng: random.Random, found: Any) -> bytes:
    """Return the bytes of JSON, sometimes damaged or nested beyond all measure."""
    data = json.dumps(found).encode()
    if rng.random() < 0.05:
        return rng.choice(
            (b"[" * 100_000, b'{"a":' * 30_000, b"1" * 5000, b'"\\ud800"', b"\xff\xfe", b"{}")
        )
    return damaged(rng, data) if rng.random() < 0.1 else data


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Return bytes with a piece overwritten, cut out, repeated, or cut off."""
    if not data:
        return data
    at = rng.randrange(len(data))
    end = min(len(data), at + rng.choice((1, 1, 2, 8, 40)))
    how = rng.randrange(4)
    if how == 0:
        return data[:at] + rng.randbytes(end - at) + data[end:]
    if how == 1:
        return data[:at] + data[end:]
    if how == 2:
        return data[:at] + data[at:end] * 3 + data[end:]
    return data[:at]


def frame(
    kind: int, body: bytes = b"", *, flags: int = 0, source: int = 0, seq: int = 0, runs: int = 0
) -> bytes:
    """Return a frame; the runs are the first bytes of the body."""
    size = max(0, len(body) - runs * _RUN.size)
    return _HEAD.pack(b"RDM1", kind, flags, source, seq, runs, size) + body


def _odd_head(rng: random.Random, data: bytes) -> bytes:
    """Return a frame with a field of its head replaced, if it still has a whole one."""
    if len(data) < _HEAD.size:
        return data
    fields = list(_HEAD.unpack(data[: _HEAD.size]))
    at = rng.choice((1, 1, 2, 3, 4, 5, 6))
    fields[at] = (
        rng.choice(_TYPES) if at == 1 else number(rng, {2: 8, 3: 32, 4: 64, 5: 32, 6: 32}[at])
    )
    return _HEAD.pack(*fields) + data[_HEAD.size :]


def _mixed(rng: random.Random, frames: list[bytes]) -> bytes:
    """Return frames of which some are odd, missing, repeated or in another order, some bytes damaged."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        at = rng.randrange(len(frames))
        how = rng.randrange(5)
        if how == 0:
            frames[at] = _odd_head(rng, frames[at])
        elif how == 1:
            frames[at : at + 1] = frames[at : at + 1] * rng.choice((0, 2))
        elif how == 2:
            frames.insert(
                at, _odd_head(rng, frame(rng.choice(_TYPES), rng.randbytes(rng.randrange(60))))
            )
        elif how == 3:
            frames[at] = damaged(rng, frames[at])
        else:
            rng.shuffle(frames)
        if not frames:
            break
    data = b"".join(frames)
    return data[: rng.randrange(len(data) + 1)] if rng.random() < 0.1 else data


def _pages(rng: random.Random, seq: int, compress: Callable[[memoryview], memoryview]) -> bytes:
    """Return a frame of pages or of zero pages, in and out of range."""
    count = rng.randrange(4)
    odd = rng.random() < 0.2
    runs = [
        (number(rng, 64), number(rng, 32)) if odd else (rng.randrange(1 << 20), rng.randrange(1, 4))
        for _ in range(count)
    ]
    body = b"".join(_RUN.pack(*run) for run in runs)
    source = rng.choice((1, 1, 1, 2, 9))
    if rng.random() < 0.3:
        return frame(4, body, source=source, seq=seq, runs=count)
    pages = min(sum(n for _, n in runs), 9) + rng.choice((0, 0, 0, 1, -1))
    data = bytes([rng.randrange(256)]) * (4096 * max(pages, 0))
    packed = rng.random() < 0.3
    if packed:
        data = bytes(compress(memoryview(data))) if data else b""
        data = damaged(rng, data) if rng.random() < 0.3 else data
    return frame(3, body + data, flags=int(packed), source=source, seq=seq, runs=count)


def to_receiver(
    rng: random.Random, session: str, compress: Callable[[memoryview], memoryview]
) -> bytes:
    """Return what a receiver might read: a small mirror from the greeting to the commit, or nearly so."""
    hello: Any = {"version": 1, "session": session}
    frames = [frame(1, text(rng, mutated(rng, hello) if rng.random() < 0.1 else hello))]
    frames += [frame(2, source=1, seq=1), frame(2, flags=1, source=2, seq=2)]
    for _ in range(rng.randrange(4)):
        frames.append(_pages(rng, len(frames), compress))
    frames += [frame(kind) for kind in (5, 6) if rng.random() < 0.3]
    processes = [
        {
            "pid": pid,
            "source": 1,
            "zero": [[rng.randrange(100), 2]],
            "mappings": [
                [16, 20, "rw-p", "", None, 0],
                [30, 40, "r--p", "/x", 2, rng.randrange(9)],
            ],
        }
        for pid in range(7, 7 + rng.choice((1, 1, 2)))
    ]
    layout: Any = {"machine": 62, "processes": processes}
    if rng.random() < 0.6:
        layout = mutated(rng, layout)
    frames.append(frame(7, text(rng, layout)))
    frames += [frame(7, rng.randbytes(rng.randrange(9)), seq=1 + i) for i in range(len(processes))]
    end: Any = {"information": {"schema": 1, "x": value(rng)}}
    frames.append(frame(8, text(rng, mutated(rng, end) if rng.random() < 0.2 else end)))
    return _mixed(rng, frames)


def welcome(rng: random.Random) -> tuple[bytes, bool]:
    """Return what a sender might read after its greeting, and whether more may follow."""
    found: Any = {"done": rng.choice((0, 0, 0, 0, 1, 3, number(rng, 64)))}
    frames = [frame(32, text(rng, mutated(rng, found) if rng.random() < 0.3 else found))]
    return (frames[0], True) if rng.random() < 0.5 else (_mixed(rng, frames), False)


def to_sender(rng: random.Random) -> tuple[bytes, bool]:
    """Return what a sender of three frames might read later, and whether it is all that it waits for."""
    frames = [frame(33, seq=n) for n in range(1, 4)]
    frames += [frame(34, b"0" * 32), frame(34, b"committed")]
    if rng.random() < 0.2:
        return b"".join(frames), True
    for _ in range(rng.randrange(3)):
        body = rng.choice((b"committed", b"0" * 32, b"", b"\xff" * 40, b"\x1b]0;x\x07" * 9))
        frames[rng.randrange(len(frames))] = frame(rng.choice((34, 34, 34, 35)), body)
    if rng.random() < 0.3:
        frames.append(frame(33, seq=number(rng, 64)))
    return _mixed(rng, frames), False


def signpost(rng: random.Random) -> bytes:
    """Return what a sender might read at the port of a receiver on this machine."""
    name = b"redirty/receive/" + rng.randbytes(16).hex().encode()
    frames = [
        frame(35, b"it is newer"),
        frame(36, damaged(rng, name) if rng.random() < 0.4 else name),
    ]
    return _mixed(rng, frames)


def journal(rng: random.Random) -> bytes:
    """Return what a journal might be: records with true checksums, most of them sensible."""
    head: Any = {"journal": 1, "session": "0123456789abcdef", "boot": boot_id()}
    data = text(rng, mutated(rng, head) if rng.random() < 0.2 else head).ljust(4096)
    windows: dict[int, int] = {}
    for _ in range(rng.randrange(12)):
        kind = rng.choice(
            (
                b"SRC ",
                b"SRC ",
                b"WIN ",
                b"WIN ",
                b"WIN ",
                b"DONE",
                b"DONE",
                b"END ",
                rng.randbytes(4),
            )
        )
        source, one, two = rng.randrange(3), number(rng, 64), number(rng, 64)
        if kind == b"SRC " and rng.random() < 0.8:
            one = rng.randrange(2)
        if kind == b"WIN " and rng.random() < 0.8:
            one, two = rng.randrange(1 << 20), windows.get(source, 0)
            windows[source] = two + 1
        body = struct.pack("<4sIQQ", kind, source, one, two)
        data += body + struct.pack("<I", zlib.crc32(body))
    return damaged(rng, data) if rng.random() < 0.3 else data


@contextlib.contextmanager
def memory_bounded(limit_bytes: int) -> Iterator[None]:
    """Assert that this process never needs so much more memory than at the start of the block."""
    reset = Path("/proc/self/clear_refs")
    require(reset.exists(), "needs a kernel with CONFIG_PROC_PAGE_MONITOR")
    reset.write_text("5", encoding="ascii")  # the peak starts anew
    before = _status("VmRSS")
    yield
    grown = _status("VmHWM") - before
    assert grown < limit_bytes, f"{grown >> 20} MiB more memory were in use"


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10
