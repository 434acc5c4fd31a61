"""A mapping list that changes while it is read (36), and mappings of odd kinds and at odd places (35)."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.arming.methods import open_armed
from redirty.collector.arming.uffd import initialize
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.linux.maps import MapsFile
from redirty.collector.pageset import PageSet, from_pages, page_numbers
from redirty.collector.ptrace.injector_client import Injector

from tests.support.processes import ManagedProcess
from tests.support.stepped_rounds import NONE, LiveRounds, assert_same, within
from tests.support.tested_methods import arm_method
from tests.support.waiting import PATIENCE_S, wait_idle
from tests.tiers import require_program
from tests.traps.common import not_applicable
from tests.workloads.driver import Churn, Phases
from tests.workloads.pages import PAGE_BYTES, Pages

pytestmark = pytest.mark.usefixtures("tracing")

ONE_AREA = {"a": ("anon_private", 2)}


# ---- 36 ----


def test_36_list_that_changes_while_it_is_read(tracer: Tracer) -> None:
    """Among thousands of mappings that are cut, joined, dropped and made anew all the time, far more than one read
    of the list returns, the pages that stay are exact in every round. (A mapping that is joined with a new one has
    soft-dirty bits all over: too many, never too few.)
    """
    with Churn(slots=600) as churn, LiveRounds(churn.pid, tracer=tracer) as live:
        truth = churn.write(0, 600)
        wait_idle(churn.pid)
        live.begin()
        churn.start()
        maps = Path(f"/proc/{churn.pid}/maps")
        lists = set()
        for number in range(10):
            truth = churn.write(number, 150)
            space = live.round_of(churn.pid)
            lists.add(maps.read_bytes())
            assert_same(np.setdiff1d(truth, within(space.dirty, churn.stable)), NONE, "lost")
            assert_same(within(space.log, churn.stable), truth, f"round {number}, log")
            assert_same(within(space.redirtied, truth), truth, f"round {number}, re-dirtied")
            if arm_method() == "uffd":
                assert_same(within(space.dirty, churn.stable), truth, f"round {number}, dirty")
        churn.stop()
        assert len(lists) > 6, "the list did not change"
        assert max(map(len, lists)) > 8 * PAGE_BYTES, "one read of the list, or a few, take it all"
        truth = churn.write(99, 400)
        wait_idle(churn.pid)
        space = live.round_of(churn.pid)
        assert_same(np.setdiff1d(truth, within(space.dirty, churn.stable)), NONE, "lost at rest")


@pytest.mark.every_way
def test_36_gone_for_a_moment(tracing: None) -> None:
    """Writes to a mapping that is listed, missing when it is to be armed, and back when the next list is read,
    which looks the same, are found from then on.
    """
    injector = Injector()
    with Phases({**ONE_AREA, "keep": ("anon_private", 2)}) as phases:
        area = phases.areas["a"]
        phases.write("keep", "all")
        maps, armed = MapsFile(phases.pid), open_armed(arm_method(), phases.pid, injector)
        try:

            def arm() -> PageSet:
                mappings = maps.read()
                assert mappings is not None
                candidates = armed.arm(mappings, armed.present(mappings, 0, 1 << 52).pages)
                return armed.resolve(candidates, mappings)[0]

            arm()
            phases.unmap("a")
            arm()
            phases.mapnew("a", "anon_private", 2, area.start)
            before = maps.read()
            assert before is not None
            phases.unmap("a")
            armed.arm(before, armed.present(before, 0, 1 << 52).pages)
            phases.mapnew("a", "anon_private", 2, area.start)
            again = maps.read()
            assert again is not None and again.items == before.items, "not the same list"
            first = phases.write("a", "range:0", count=50).pages
            assert_same(within(arm(), area), first, "first touch")
            for pattern in ("range:10", "range:200", "stride:9"):
                truth = phases.write("a", pattern, count=40).pages
                assert_same(within(arm(), area), truth, pattern)
            assert_same(within(arm(), area), NONE, "nothing")
        finally:
            armed.close()
            maps.close()
            injector.close()


# ---- 35 ----

ODD = Path(__file__).with_name("odd_mappings.py")


@dataclass(frozen=True)
class Odd:
    """A mapping of an odd kind: its pages, or why the kernel did not make it."""

    name: str
    pages: Pages
    why: str


class OddMappings(ManagedProcess):
    """A program with mappings of every odd kind that this kernel makes, and with ordinary ones."""

    def __init__(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(ODD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        super().__init__(process, stop=signal.SIGKILL)
        self.odd = [self._odd(fields) for fields in self._answer()]

    @staticmethod
    def _odd(fields: dict[str, object]) -> Odd:
        first, last = int(str(fields["start"])) >> 12, int(str(fields["end"])) >> 12
        return Odd(str(fields["name"]), np.arange(first, last, dtype=np.uint64), str(fields["why"]))

    def _answer(self) -> list[dict[str, object]]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the program ended: {self._process.wait()}"
        answer: list[dict[str, object]] = json.loads(line)
        return answer

    def write(self, name: str, pages: Pages) -> None:
        """Have it write a word of each of some pages."""
        assert self._process.stdin is not None
        addresses = " ".join(str(int(page) << 12) for page in pages)
        self._process.stdin.write(f"{name} {addresses}\n")
        self._process.stdin.flush()
        self._answer()

    def made(self, name: str) -> Odd:
        """Return a mapping; the test is n/a where the kernel did not make it."""
        (found,) = (odd for odd in self.odd if odd.name == name)
        if found.why:
            not_applicable(f"{name}: {found.why}")
        return found


@pytest.fixture(scope="module")
def odd(tracing: None) -> Iterator[OddMappings]:
    """Start a program with mappings of every odd kind."""
    with OddMappings() as program:
        yield program


def check_writes(live: LiveRounds, odd: OddMappings, pages: Pages, name: str) -> None:
    """Assert that writes to a mapping are found, round after round, to the page."""
    for truth in (pages[::2], pages[1::3], NONE, pages):
        odd.write(name, truth)
        wait_idle(odd.pid)
        space = live.round_of(odd.pid)
        assert_same(within(space.dirty, pages), truth, f"{name}, dirty")


WRITABLE = ("plain", "write_only", "grows_down", "locked", "opened_late", "high")
NEVER_ABORTS = ("none", "read_only", "ring", "pci", "hpet", "secret", "bpf", "droppable", "perf")


@pytest.mark.parametrize("name", WRITABLE)
def test_35_ordinary_pages_in_odd_places(odd: OddMappings, tracer: Tracer, name: str) -> None:
    """Every write is found in memory above 47 bits of address, in memory that grows down, is locked, or was not
    accessible at first.
    """
    pages = odd.made(name).pages
    with LiveRounds(odd.pid, tracer=tracer) as live:
        live.begin()
        odd.write(name, pages)
        wait_idle(odd.pid)
        live.end_round()
        check_writes(live, odd, pages, name)


@pytest.mark.parametrize("name", NEVER_ABORTS)
def test_35_odd_kinds(odd: OddMappings, tracer: Tracer, name: str) -> None:
    """Memory that cannot be armed, or that only devices and the kernel write, is skipped or handled: rounds
    continue, and ordinary pages next to it are exact.
    """
    plain = odd.made("plain").pages
    kind = odd.made(name)
    with LiveRounds(odd.pid, tracer=tracer) as live:
        live.begin()
        odd.write("plain", plain)
        wait_idle(odd.pid)
        live.end_round()
        check_writes(live, odd, plain, "plain")
        space = live.round_of(odd.pid)
        assert len(within(space.dirty, kind.pages)) == 0 or name in ("ring", "bpf", "perf")


def test_35_unarmed_mappings_are_counted(odd: OddMappings, tracer: Tracer) -> None:
    """Writable mappings that cannot be armed are counted in meta.json."""
    kinds = [k for k in odd.odd if k.name in ("droppable", "bpf", "ring", "pci") and not k.why]
    with LiveRounds(odd.pid, tracer=tracer) as live:
        live.begin()
        live.end_round()
        unarmed = live.recorder.members.unarmed()
    if arm_method() == "soft-dirty":
        assert unarmed == 0
    else:
        assert (unarmed > 0) == refused_here(odd, kinds)


def refused_here(odd: OddMappings, kinds: list[Odd]) -> bool:
    """Return whether a userfaultfd refuses one of the mappings, tried by hand."""
    injector = Injector()
    descriptor, _ = injector.userfaultfd(odd.pid, PATIENCE_S)
    try:
        initialize(descriptor)
        return not all(registers(descriptor, kind.pages) for kind in kinds)
    finally:
        os.close(descriptor)
        injector.close()


def registers(descriptor: int, pages: Pages) -> bool:
    """Call UFFDIO_REGISTER for some pages, for write protection; return whether it succeeded."""
    try:
        argument = struct.pack("QQQQ", int(pages[0]) << 12, len(pages) << 12, 2, 0)
        fcntl.ioctl(descriptor, 0xC020AA00, argument)
    except OSError:
        return False
    return True


def test_35_kernel_pages_are_no_data(odd: OddMappings, tracer: Tracer) -> None:
    """The vdso, vvar and vsyscall pages are in no set of pages."""
    special = []
    for line in Path(f"/proc/{odd.pid}/maps").read_text().splitlines():
        if line.endswith(("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]")):
            low, _, high = line.split()[0].partition("-")
            special.append(np.arange(int(low, 16) >> 12, int(high, 16) >> 12, dtype=np.uint64))
    pages = np.sort(np.concatenate(special))
    with LiveRounds(odd.pid, tracer=tracer) as live:
        live.begin()
        for _ in range(2):
            space = live.round_of(odd.pid)
            assert_same(within(space.dirty, pages), NONE, "dirty")
            ranges = [(m.start >> 12, m.end >> 12) for m in space.mappings.items]
            assert not [r for r in ranges for p in pages.tolist() if r[0] <= p < r[1]]


def test_35_stack_in_the_last_page_of_all(tracing: None) -> None:
    """A stack that ends where user addresses do, as without randomisation, is traced."""
    setarch = require_program("setarch", "util-linux")
    child = subprocess.Popen(
        [setarch, "-R", sys.executable, "-I", "-S", "-c", "print(1, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    injector = Injector()
    try:
        assert child.stdout is not None and child.stdout.readline()
        armed = open_armed(arm_method(), child.pid, injector)
        maps = MapsFile(child.pid)
        mappings = maps.read()
        assert mappings is not None
        for _ in range(2):
            armed.arm(mappings, armed.present(mappings, 0, 1 << 52).pages)
        last = mappings.items[-1].end // 4096 - 1
        written, there = armed.resolve(from_pages(np.array([last], np.uint64)), mappings)
        assert page_numbers(there).tolist() == [last]
        assert page_numbers(written).tolist() in ([], [last])
        armed.close()
        maps.close()
    finally:
        injector.close()
        child.kill()
        child.communicate()
