"""Which pages a pass sends: those the tracer found, less what is unchanged or kept for the end. And how fast."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.mirror.decision import Decision, Goals
from redirty.collector.mirror.image.image import Image
from redirty.collector.mirror.observer import PassReport, ProgressReport
from redirty.collector.mirror.rate_limiter import RateLimiter
from redirty.collector.mirror.request import MirrorRequest
from redirty.collector.mirror.session import MirrorSession
from redirty.collector.mirror.state import MirrorState
from redirty.collector.mirror.transport.local_sink import LocalSink
from redirty.collector.mirror.transport.sink import PageSink
from redirty.collector.pageset import PageSet, empty, page_numbers
from redirty.collector.target.targets import Pids
from redirty.collector.tracking.rounds import Round

from tests.support.mirror_oracle import CoreFile, mirror_json
from tests.support.receiver import Wire, receive
from tests.support.redirty_cli import finish, start_redirty
from tests.support.tested_methods import ARM, PROBE
from tests.workloads.driver import Phases, Uring, Writer

pytestmark = [pytest.mark.usefixtures("tracing"), pytest.mark.timeout(300)]


class Watcher:
    """Notes what each pass sent, and what was dirty after it, by source."""

    def __init__(self) -> None:
        self.sent: list[dict[int, PageSet]] = []
        self.dirty: list[dict[int, PageSet]] = []
        self.done: list[PassReport] = []

    def going(self, now: ProgressReport) -> None:
        pass

    def passed(self, done: PassReport, state: MirrorState, result: Round) -> None:
        self.sent.append(done.counts.sent)
        self.done.append(done)
        self.dirty.append({s.number: s.dirty[0] for s in state.sources()})

    def decided(self, decision: Decision) -> None:
        pass

    def said(self, text: str) -> None:
        pass


class WritingSink(LocalSink):
    """After the copying of a pass, and before its round ends, the target writes: on_flush(pass)."""

    on_flush: Callable[[int], None]
    flushes = 0

    def flush(self) -> None:
        self.flushes += 1
        self.on_flush(self.flushes)


def in_process(
    to: Path, write: Callable[[int], None], wish: MirrorRequest
) -> tuple[MirrorSession, Watcher]:
    def sink() -> PageSink:
        made = WritingSink(Image.create(to, "s" * 16), RateLimiter(wish.bandwidth))
        made.on_flush = write
        return made

    watcher = Watcher()
    mirroring = MirrorSession(wish, sink, watcher)
    mirroring.run()
    return mirroring, watcher


AREAS = {"anon": ("anon_private", 8), "shared_file": ("file_shared", 8)}


def test_only_re_dirtied_pages_are_sent_again(tmp_path: Path) -> None:
    with Phases(AREAS) as phases:
        phases.write("anon")
        written = []

        def write(number: int) -> None:
            if number <= 4:
                one = phases.write("anon", "random", seed=number, count=300).pages
                two = phases.write("shared_file", "random", seed=number, count=100).pages
                written.append((len(one), len(two)))

        wish = MirrorRequest(
            Pids([phases.pid]), Goals(None, passes=5), arm=ARM, probe=PROBE, keep_lists=True
        )
        _, watcher = in_process(tmp_path / "m", write, wish)
    assert len(watcher.sent) == 5 and written == [(300, 100)] * 4
    for k in range(1, 5):
        traced = watcher.dirty[k - 1]
        total = 0
        for number, pages in watcher.sent[k].items():
            # nothing but what was traced in the round before
            extra = pages - traced.get(number, empty())
            assert len(extra) == 0, (k, number, len(extra))
            total += len(pages)
        lacking = sum(len(p) for p in traced.values()) - total
        counts = watcher.done[k].counts
        assert lacking == counts.unchanged_pages + counts.zero_pages, (k, lacking, counts)
        assert 400 <= total <= 440, total  # those, and a few of the program's own


def test_pages_that_are_written_again_and_again_wait_for_the_end(tmp_path: Path) -> None:
    with Phases(AREAS) as phases:
        phases.write("anon")

        def write(number: int) -> None:
            if number <= 6:
                phases.write("anon", "range:0", seed=number, count=20)
            if number <= 4:  # others than before
                phases.write("anon", f"range:{number * 500 - 480}", seed=number, count=500)

        goals = Goals(0.4)
        wish = MirrorRequest(
            Pids([phases.pid]), goals, bandwidth=4 << 20, arm=ARM, probe=PROBE, keep_lists=True
        )
        mirroring, watcher = in_process(tmp_path / "m", write, wish)
    held = [done.held_pages for done in watcher.done]
    assert held[:3] == [0, 0, 0] and max(held) >= 20, held
    at = next(i for i, n in enumerate(held) if n)
    hot = {
        p for sent in watcher.sent[1:at] for s in sent.values() for p in page_numbers(s).tolist()
    }
    later = {
        p for sent in watcher.sent[at:] for s in sent.values() for p in page_numbers(s).tolist()
    }
    area = phases.areas["anon"].first_page
    assert set(range(area, area + 20)) <= hot, "they were sent before it was known"
    assert not set(range(area, area + 20)) & later, "and not any more then"
    assert mirroring.information["passes"][-1]["sent_pages"] >= 20
    core = CoreFile(tmp_path / "m" / "memory.core")
    assert any(core.read(area * 4096, 20 * 4096))
    core.close()


def test_what_the_kernel_writes_unseen_is_read_again(tmp_path: Path) -> None:
    """A registered buffer of io_uring is written by its physical address: no fault, no bit."""
    with Uring(tmp_path) as uring:
        if uring.why:
            pytest.skip(f"io_uring: {uring.why}")
        uring.write(0, 64)
        uring.register(0, 32)

        def write(number: int) -> None:
            if number <= 2:
                uring.read(0, 32, "fixed")

        wish = MirrorRequest(
            Pids([uring.pid]), Goals(None, passes=2), arm=ARM, probe=PROBE, verify=True
        )
        mirroring, _ = in_process(tmp_path / "m", write, wish)
    assert mirroring.information["verified"]


@pytest.mark.parametrize("mib", [4, 40])
def test_the_rate_limit_is_kept(mib: int, tmp_path: Path) -> None:
    """Within 2 % over a second: counted at a wire, not by the sender. Never more; a second in which the machine
    has no processor for the sender has less, and that is not made up for in the next."""
    with Writer(320) as writer, receive(tmp_path / "m", tmp_path / "log") as other:
        writer.start("cyclic", 10, 81_920, 600)
        wire = Wire(other.port)
        words = ["-p", writer.pid, "--to", f"127.0.0.1:{wire.port}", "--bandwidth", f"{mib}MiB"]
        sender = start_redirty("mirror", *words)
        try:
            while wire.passed < mib << 18:
                time.sleep(0.01)
            time.sleep(0.5)
            moments = []
            for _ in range(6):
                moments.append((time.monotonic(), wire.passed))
                time.sleep(1.0)
        finally:
            sender.terminate()
            finish(sender)
            wire.close()
        writer.signal(signal.SIGKILL)
    rates = [(b - a) / (t - s) / (mib << 20) for (s, a), (t, b) in itertools.pairwise(moments)]
    assert max(rates) < 1.02, rates
    assert np.median(rates) > 0.98, rates
    assert not (tmp_path / "m" / "mirror.json").exists()


def test_decisions_are_told_and_kept(tmp_path: Path) -> None:
    with Writer(64) as writer:
        writer.start("uniform", 3000, 16_384, 600)
        words = ["-p", writer.pid, "--to", tmp_path / "m", "--bandwidth", "100MiB"]
        done = finish(start_redirty("mirror", *words, "--downtime", "50ms"))
        writer.signal(signal.SIGKILL)
    assert done.code == 0, done
    information = mirror_json(tmp_path / "m")
    assert len(information["decisions"]) == len(information["passes"]) - 1 >= 2
    for decision in information["decisions"]:
        assert decision["reason"] in done.err
    assert information["decisions"][-1]["decision"] == "quiesce"
    # what was predicted and what it took, with room for a busy machine
    predicted = information["decisions"][-1]["predicted_downtime_s"]
    assert predicted <= 0.05
    assert 0 < information["downtime_s"] < 0.1
