"""The target screen's line on page tables, and how often they are sampled."""

from __future__ import annotations

import itertools
import os
import time

import numpy as np
import pytest
from redirty.collector.errors import RedirtyError
from redirty.collector.linux import numa as host_nodes
from redirty.collector.linux.numa import NumaNodes
from redirty.tui.readers import page_table_watch
from redirty.tui.readers.page_table_watch import PageTableSampler, PageTableWatch
from redirty.tui.snapshots.page_tables import PageTables

from tests.support.waiting import wait_until

_NONE = np.empty(0, np.uint64)
ONE, TWO = (
    NumaNodes(numbers, numbers, dict.fromkeys(numbers, 0), _NONE, _NONE, _NONE.astype(np.int64))
    for numbers in ((0,), (0, 1))
)


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        (PageTables(3149, {}, {}), "page tables 12.3 MiB"),
        (PageTables(3, {0: 2}, {}), "page tables 12.0 KiB: node 0 100%"),
        (PageTables(4, {1: 1, 0: 3}, {1: 0.5}), "page tables 16.0 KiB: node 0 75%, node 1 25%; ran on node 1"),
        (
            PageTables(4, {0: 4}, {2: 1.0, 0: 3.0}),
            "page tables 16.0 KiB: node 0 100%; ran on node 0 75%, node 2 25%",
        ),
    ],
)  # fmt: skip
def test_line(tables: PageTables, line: str) -> None:
    assert tables.text() == line


def test_one_node_needs_no_walk() -> None:
    """On one node only the kernel's count is read, and no BPF program is loaded."""
    sampler = PageTableSampler(ONE)
    found = sampler.take([os.getpid()])
    sampler.close()
    assert found.pages > 10
    assert (found.by_node, found.ran_s) == ({}, {})
    assert sampler.take([1 << 30]).pages == 0  # a process that ended


def test_nothing_is_sampled_where_the_walk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(highest: int) -> None:
        raise RedirtyError("not here")

    monkeypatch.setattr(page_table_watch, "Walker", refused)
    monkeypatch.setattr(host_nodes, "read_nodes", lambda: TWO)
    watch = PageTableWatch(lambda: [os.getpid()])
    watch.start()
    wait_until(lambda: not watch._thread.is_alive(), "the thread's end")
    watch.close()
    assert watch.latest is None


def test_samples_use_no_more_than_their_share_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    samples: list[float] = []

    def take(self: PageTableSampler, pids: list[int]) -> PageTables:
        samples.append(time.monotonic())
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        return PageTables(len(samples), {}, {})

    monkeypatch.setattr(page_table_watch, "_EVERY_S", 0.01)
    monkeypatch.setattr(host_nodes, "read_nodes", lambda: ONE)
    monkeypatch.setattr(PageTableSampler, "take", take)
    watch = PageTableWatch(lambda: [os.getpid()])
    watch.start()
    wait_until(lambda: len(samples) == 3, "three samples")
    watch.close()
    assert all(after - before >= 0.02 / 0.01 for before, after in itertools.pairwise(samples))
