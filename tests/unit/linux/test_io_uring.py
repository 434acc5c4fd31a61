"""Registered buffers in the fdinfo of an io_uring (tests/traps has real rings)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from redirty.collector.linux.io_uring import buffers_bytes, registered_kib
from redirty.collector.linux.maps import Mapping, Mappings

HEAD = b"pos:\t0\nSQEs:\t1\n    0: 0x10/5\nUserFiles:\t1\n    0: /tmp/x/4096\n"
TAIL = b"PollList:\n  op=6, task_works=0\nCqOverflowList:\n"


@pytest.mark.parametrize(
    ("listed", "total"),
    [
        (b"UserBufs:\t0\n", 0),
        (b"UserBufs:\t1\n    0: 0x7f6642a14000/262144\n", 262144),
        (b"UserBufs:\t3\n    0: 0x7f66/4096\n    1: <none>\n   12: 0x1000/100\n", 4196),
        (b"", 0),
    ],
)
def test_buffers(listed: bytes, total: int) -> None:
    assert buffers_bytes(HEAD + listed + TAIL) == total
    assert buffers_bytes(HEAD + listed) == total, "older kernels write no list after it"


def test_without_rings_no_descriptor_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "iterdir", lambda _: pytest.fail("descriptors were read"))
    mappings = Mappings.of((Mapping(4096, 8192, "rw-p", ""),))
    assert registered_kib(os.getpid(), mappings) == 0


def test_a_process_that_is_gone() -> None:
    mappings = Mappings.of((Mapping(4096, 8192, "rw-s", "anon_inode:[io_uring]"),))
    assert registered_kib(2**22 - 1, mappings) == 0
