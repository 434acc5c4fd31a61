"""Page frames of dirty pages, compared with the kernel's own tables of frames, read by the test."""

from __future__ import annotations

import contextlib
import json
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from redirty.collector.analyze import load, summary
from redirty.collector.metrics.frame_tracking import FrameTracker, PhysicalRound
from redirty.collector.pageset import page_numbers

from tests.integration.cli.test_privileges import root_without
from tests.support.error_assertions import COULD_NOT, assert_refused
from tests.support.pagemap_oracle import frames_of_pages as frames
from tests.support.recorded_run import Recorded
from tests.support.redirty_cli import run_redirty
from tests.support.stepped_rounds import LiveRounds, assert_same
from tests.support.waiting import wait_idle
from tests.tiers import require
from tests.workloads.driver import Hold, Phases
from tests.workloads.pages import Area, Pages, union

pytestmark = pytest.mark.usefixtures("tracing")

# bits of /proc/kpageflags (include/uapi/linux/kernel-page-flags.h)
ANON, SWAPBACKED, HUGE, THP = 12, 14, 17, 22


def kernel_table(name: str, chosen: Pages) -> Pages:
    """Return a number for each frame: how often it is mapped (kpagecount), or its bits (kpageflags)."""
    path = Path("/proc", name)
    require(path.exists(), f"needs CONFIG_PROC_PAGE_MONITOR (/proc/{name})")
    with path.open("rb", buffering=0) as table:
        raw = [table.seek(int(frame) * 8) and table.read(8) for frame in chosen]
    return np.frombuffer(b"".join(r for r in raw if r), np.uint64)


def real(found: Pages) -> Pages:
    """Return the distinct frames, without "none"."""
    return np.unique(found[found != 0])


def times_mapped(areas: list[tuple[int, Area]], chosen: Pages) -> Pages:
    """Count how often each frame is mapped by some areas of some processes."""
    every = np.concatenate([frames(pid, area.pages) for pid, area in areas])
    found, counts = np.unique(every, return_counts=True)
    return counts[np.searchsorted(found, chosen)].astype(np.uint64)


class Live:
    """Rounds that the test ends, with their frames."""

    def __init__(self, live: LiveRounds) -> None:
        self.live = live
        self.physical = FrameTracker()

    def end(self) -> PhysicalRound:
        result = self.live.end_round()
        return self.physical.locate(result, self.live.recorder.spaces)


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as opened:
        yield opened


def begin(stack: contextlib.ExitStack, *pids: int) -> Live:
    found = Live(stack.enter_context(LiveRounds(*pids)).begin())
    stack.callback(found.physical.close)
    return found


def only(found: PhysicalRound, pid: int, area: Area) -> tuple[Pages, Pages]:
    """Return (pages, frames) of the changes in an area."""
    pages, at = [], []
    for moved in found.moved:
        inside = (moved.pages >= area.first_page) & (moved.pages < area.end // 4096)
        if moved.pid == pid:
            pages.append(moved.pages[inside])
            at.append(moved.frames[inside])
    return np.concatenate([[], *pages]).astype(np.uint64), np.concatenate([[], *at]).astype(
        np.uint64
    )


KINDS = {
    "anon": ("anon_private", 4),
    "shared": ("anon_shared", 4),
    "memfd": ("memfd", 4),
    "private_file": ("file_private", 4),
    "shared_file": ("file_shared", 4),
    "thp": ("thp", 4),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind(stack: contextlib.ExitStack, name: str) -> None:
    phases = stack.enter_context(Phases({name: KINDS[name]}))
    area = phases.areas[name]
    live = begin(stack, phases.pid)
    truth = phases.write(name, "random", seed=5, count=300).pages
    wait_idle(phases.pid)
    found = live.end()
    pages, at = only(found, phases.pid, area)
    if name == "thp":  # a huge page is dirty as a whole
        assert np.isin(truth, pages).all()
    else:
        assert_same(pages, truth, "pages with a frame")
    here = frames(phases.pid, pages)
    assert (at == here).all() and (here != 0).all()
    assert np.isin(real(here), page_numbers(found.frames)).all()
    flags, counts = kernel_table("kpageflags", here), kernel_table("kpagecount", here)
    anonymous = name in ("anon", "private_file", "thp")
    assert ((flags >> ANON & 1) == anonymous).all()
    assert ((flags >> SWAPBACKED & 1) == (name != "shared_file")).all()
    assert (counts == 1).all(), "mapped here and nowhere else"
    again = phases.write(name, "random", seed=5, count=200).pages
    wait_idle(phases.pid)
    found = live.end()
    assert len(only(found, phases.pid, area)[0]) == 0, "no news: they lie where they lay"
    assert np.isin(real(frames(phases.pid, again)), page_numbers(found.frames)).all()


def test_one_page_mapped_twice_and_by_two_processes(stack: contextlib.ExitStack) -> None:
    """A page written through two addresses, or by two processes, is one frame."""
    phases = stack.enter_context(Phases({"m": ("memfd", 2), "s": ("anon_shared", 2)}))
    second = phases.alias("second", "m")
    child = phases.fork()
    live = begin(stack, phases.pid, child)
    m, s = phases.areas["m"], phases.areas["s"]
    written: list[tuple[int, Pages]] = [
        (phases.pid, phases.write("m", "range:0", count=100).pages),
        (phases.pid, phases.write("second", "range:50", count=100).pages),
        (child, phases.child_write("m", "range:80", count=100).pages),
        (phases.pid, phases.write("s", "range:10", count=20).pages),
        (child, phases.child_write("s", "range:20", count=20).pages),
    ]
    for pid in (phases.pid, child):
        wait_idle(pid)
    found = live.end()
    truth = union(frames(pid, pages) for pid, pages in written)
    assert len(truth) == 180 + 30
    news = [only(found, pid, area) for pid in (phases.pid, child) for area in (m, second, s)]
    assert sum(len(pages) for pages, _ in news) == 300 + 40, "each virtual page"
    assert_same(real(np.concatenate([at for _, at in news])), truth, "frames")
    assert np.isin(truth, page_numbers(found.frames)).all()
    areas = [(pid, area) for pid in (phases.pid, child) for area in (m, second, s)]
    expected = times_mapped(areas, truth)
    assert expected.max() >= 3 and expected.min() == 1
    assert (kernel_table("kpagecount", truth) == expected).all()
    assert not (kernel_table("kpageflags", truth) >> ANON & 1).any()


def test_copy_on_write(stack: contextlib.ExitStack) -> None:
    """After a fork a page that either process writes is in a frame of its own."""
    phases = stack.enter_context(Phases({"a": ("anon_private", 2)}))
    area = phases.areas["a"]
    phases.write("a", "range:0", count=100)
    child = phases.fork()
    live = begin(stack, phases.pid, child)
    shared = frames(phases.pid, area.pages[:100])
    assert (shared == frames(child, area.pages[:100])).all()
    ours = phases.write("a", "range:0", count=30).pages
    theirs = phases.child_write("a", "range:20", count=30).pages
    for pid in (phases.pid, child):
        wait_idle(pid)
    found = live.end()
    a, b = only(found, phases.pid, area), only(found, child, area)
    assert_same(a[0], ours, "the parent's")
    assert_same(b[0], theirs, "the child's")
    assert (a[1] == frames(phases.pid, ours)).all() and (b[1] == frames(child, theirs)).all()
    assert not np.intersect1d(a[1], b[1]).size, "no frame is both's any more"
    assert len(real(np.concatenate((a[1], b[1])))) == 60
    assert (kernel_table("kpagecount", np.concatenate((a[1], b[1]))) == 1).all()


def test_pages_without_a_frame(stack: contextlib.ExitStack) -> None:
    """Pages dropped after they were written are dirty, and in no frame; so are those of a process that ended.

    When they are read again they are the kernel's zero page, which was never written.
    """
    phases = stack.enter_context(Phases({"a": ("anon_private", 2)}))
    area = phases.areas["a"]
    other = stack.enter_context(Hold("sleep"))
    live = begin(stack, phases.pid, other.pid)
    phases.write("a", "range:0", count=60)
    phases.dontneed("a", 10, 20)
    phases.read("a", "range:10", count=5)
    wait_idle(phases.pid)
    found = live.end()
    pages, at = only(found, phases.pid, area)
    assert_same(pages, area.pages[:60], "dirty")
    assert_same(pages[at == 0], area.pages[10:30], "in no frame")
    assert found.frameless >= 20
    assert (at == frames(phases.pid, pages)).sum() == 55, "all but the pages of zeros"
    phases.write("a", "range:12", count=3)
    wait_idle(phases.pid)
    pages, at = only(live.end(), phases.pid, area)
    assert_same(pages, area.pages[12:15], "news")
    assert (at == frames(phases.pid, pages)).all() and (at != 0).all()
    other.write(0, 30)
    wait_idle(other.pid)
    other.close()
    found = live.end()
    assert found.frameless >= 30
    assert not [m for m in found.moved if m.pid == other.pid and (m.frames != 0).any()]


@contextlib.contextmanager
def swap(directory: Path) -> Iterator[None]:
    """Add a swap file that is used before any other."""
    file = directory / "swap"
    file.write_bytes(bytes(16 << 20))
    file.chmod(0o600)
    for words in (["mkswap"], ["swapon", "--priority", "32767"]):
        program = shutil.which(words[0], path="/usr/sbin:/sbin:/usr/bin:/bin")
        require(program, f"needs {words[0]} (Debian package mount or util-linux)")
        done = subprocess.run(
            [str(program), *words[1:], str(file)], capture_output=True, text=True, check=False
        )
        require(done.returncode == 0, f"needs {words[0]} to work here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run([str(program).replace("swapon", "swapoff"), str(file)], check=True)


def test_swapped_out(stack: contextlib.ExitStack, tmp_path: Path) -> None:
    """A page swapped out after it was written is dirty, and in no frame; written again it is in one."""
    stack.enter_context(swap(tmp_path))
    phases = stack.enter_context(Phases({"a": ("anon_private", 2)}))
    area = phases.areas["a"]
    live = begin(stack, phases.pid)
    phases.write("a", "range:0", count=100)
    phases.advise("a", "pageout", 20, 50)
    wait_idle(phases.pid)
    out = area.pages[:100][frames(phases.pid, area.pages[:100]) == 0]
    require(len(out) > 0, "needs the kernel to swap out what it is told to")
    assert np.isin(out, area.pages[20:70]).all()
    found = live.end()
    pages, at = only(found, phases.pid, area)
    assert_same(pages, area.pages[:100], "dirty")
    assert_same(pages[at == 0], out, "in no frame")
    assert found.frameless >= len(out)
    phases.write("a", "range:0", count=100)
    wait_idle(phases.pid)
    found = live.end()
    pages, at = only(found, phases.pid, area)
    assert np.isin(out, pages).all()
    assert (at == frames(phases.pid, pages)).all() and (at != 0).all()
    assert np.isin(frames(phases.pid, area.pages[:100]), page_numbers(found.frames)).all()


def test_hugetlb(stack: contextlib.ExitStack) -> None:
    pool = Path("/proc/sys/vm/nr_hugepages")
    before = pool.read_text()
    pool.write_text("4\n")
    stack.callback(pool.write_text, before)
    require(int(pool.read_text()) >= 4, "needs four free huge pages of 2 MiB")
    phases = stack.enter_context(Phases({"h": ("hugetlb", 4)}))
    area = phases.areas["h"]
    live = begin(stack, phases.pid)
    phases.write("h", "range:7", count=1)
    wait_idle(phases.pid)
    found = live.end()
    pages, at = only(found, phases.pid, area)
    assert area.first_page + 7 in pages
    here = frames(phases.pid, pages)
    assert (at == here).all() and (here != 0).all()
    assert len(np.unique(at)) == len(at), "each small page of it by its own number"
    assert (kernel_table("kpageflags", here) >> HUGE & 1).all()


# ---- the program ----


def test_the_files(tmp_path: Path) -> None:
    with Phases({"a": ("anon_private", 2), "m": ("memfd", 2)}) as phases:
        second = phases.alias("second", "m")
        with Recorded(tmp_path, "-p", phases.pid, "--physical") as recorded:
            a = phases.write("a", "stride:3").pages
            m = phases.write("m", "range:0", count=60).pages
            s = phases.write("second", "range:0", count=60).pages
            recorded.pass_rounds()
            phases.write("a", "stride:3")
            recorded.pass_rounds()
            truth = {int(p): int(f) for p, f in zip(a, frames(phases.pid, a), strict=True)}
            both = frames(phases.pid, m)
            assert (both == frames(phases.pid, s)).all()
    directory = recorded.directory
    for name in ("physical.parquet", "frames.parquet"):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600
    assert not list(directory.glob(".*"))
    table = pd.read_parquet(directory / "frames.parquet")
    assert list(table.columns) == ["round", "pid", "address", "pfn"]
    assert set(table["pid"]) == {phases.pid}
    last = load.load_frames(directory, 10**6).set_index("address")["pfn"].to_dict()
    assert {page: last[page << 12] for page in truth} == truth
    assert [last[int(p) << 12] for p in m] == [last[int(p) << 12] for p in s] == both.tolist()
    rounds = pd.read_csv(directory / "rounds.csv")
    bitmap = pd.read_parquet(directory / "physical.parquet")
    assert list(bitmap.columns) == ["round", "first_pfn", "bits"]
    for number, part in load.load_physical(directory).groupby("round"):
        numbers = load.frame_numbers(part)
        row = rounds[rounds["round"] == number].iloc[0]
        assert len(numbers) == row["dirty_frames"]
    assert set(bitmap["round"]) == set(rounds["round"][rounds["dirty_frames"] > 0])
    # each page of the memfd is at two addresses
    assert rounds["dirty_pages"].sum() - rounds["frameless_pages"].sum() >= (
        rounds["dirty_frames"].sum() + 60
    )
    every = load.frame_numbers(load.load_physical(directory))
    assert np.isin(both, every).all() and np.isin(list(truth.values()), every).all()
    said = summary.summarise(directory)
    assert said["distinct_frames"] == len(every)
    assert f"page frames: {len(every)} ever dirty" in run_redirty("report", directory).out
    assert second.first_page << 12 in last


def test_without_the_switch(tmp_path: Path) -> None:
    with Hold("sleep") as hold, Recorded(tmp_path, "-p", hold.pid) as recorded:
        recorded.pass_rounds()
    directory = recorded.directory
    assert not list(directory.glob("*.parquet"))
    assert pd.read_csv(directory / "rounds.csv")["dirty_frames"].isna().all()
    assert json.loads(run_redirty("report", directory, "--json").out)["distinct_frames"] is None


def test_without_the_privilege_to_read_frames(tmp_path: Path) -> None:
    """CAP_BPF and CAP_PERFMON suffice to trace, but not to read frames."""
    output = tmp_path / "recording"
    with Hold("sleep") as hold:
        words = ["record", "-p", hold.pid, "100ms", "1", "-o", output]
        done = run_redirty(*words, "--physical", wrapper=root_without("sys_admin"))
        assert_refused(done, COULD_NOT, "--physical needs CAP_SYS_ADMIN")
        assert not output.exists()
