"""The digest of what was sent, at both ends; a receiver that has none; the promise of a downtime."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from redirty.collector.errors import RedirtyError
from redirty.collector.mirror.decision import Goals
from redirty.collector.mirror.estimator import Estimator
from redirty.collector.mirror.image.digest import HashDigest
from redirty.collector.mirror.image.image import SPACE, Image
from redirty.collector.mirror.pipeline import PassCounts, Pipeline
from redirty.collector.mirror.promise import FailedStop, allowed_s, broken, kept, limit_s
from redirty.collector.mirror.rate_limiter import RateLimiter
from redirty.collector.mirror.request import MirrorRequest
from redirty.collector.mirror.running import RunningMirror
from redirty.collector.mirror.sources.page_hashes import SEED, PageHashes
from redirty.collector.mirror.transport import protocol
from redirty.collector.mirror.transport.destination import Destination
from redirty.collector.mirror.transport.local_sink import LocalSink
from redirty.collector.mirror.transport.network_sink import NetworkSink
from redirty.collector.mirror.verification import compare_with_sent, require_hashes
from redirty.collector.pageset import PAGE_SIZE, U64, Bools, PageSet, empty, from_pages
from redirty.collector.target.targets import TargetSet

U = np.uint64


class Contents:
    """A source with contents given by page number; pages that are not in it are zero."""

    def __init__(self, number: int, contents: dict[int, bytes]) -> None:
        self.number = number
        self.contents = contents
        self.have = self.unread = self.retried = empty()
        self.pending: PageSet = from_pages(np.array(sorted(contents), U))
        self.dirty: list[PageSet] = []
        self.sent = PageHashes()

    def read(self, pages: U64, buffer: memoryview) -> Bools:
        for i, page in enumerate(pages.tolist()):
            buffer[i * PAGE_SIZE : (i + 1) * PAGE_SIZE] = self.contents[page]
        return np.ones(len(pages), np.bool_)


def page(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(PAGE_SIZE)


def mirrored(tmp_path: Path, *sources: Contents) -> tuple[RunningMirror, Image]:
    """Copy sources to an image, and return what compare_with_sent() needs of the mirror."""
    image = Image.create(tmp_path / "m", "s" * 16)
    sink = LocalSink(image, RateLimiter(None))
    pipeline = Pipeline(sink)
    for source in sources:
        sink.declare(source.number, SPACE)
    pipeline.copy([(s, s.pending) for s in sources])
    pipeline.close()
    state = SimpleNamespace(sources=lambda: list(sources))
    return cast(RunningMirror, SimpleNamespace(sink=sink, state=state)), image


def test_both_ends_digest_the_same_pages(tmp_path: Path) -> None:
    """Zero pages, pages far apart, two sources, and more pages than fit a piece of either end."""
    first = {n: page(n) for n in (*range(700), 5 << 18, (5 << 18) + 9)}
    first[17] = bytes(PAGE_SIZE)
    second = {n: page(n) for n in range(3, 40)}
    one, two = Contents(1, first), Contents(2, second)
    mirror, image = mirrored(tmp_path, one, two)
    assert compare_with_sent(mirror) == image.digest(SEED)
    # A page becomes zero, another one gets other contents, and a third is dropped.
    one.contents[3], one.contents[4] = bytes(PAGE_SIZE), page(1000)
    pipeline = Pipeline(mirror.sink)
    pipeline.copy([(one, from_pages(np.array([3, 4], U)))])
    pipeline.close()
    mirror.sink.zero(2, np.array([5], U), np.array([1], U))
    two.sent.mark_never_sent(np.array([5], U))
    before = image.digest(SEED)
    assert compare_with_sent(mirror) == before
    image.write(1, np.array([4], U), np.array([1], U), memoryview(page(4)))
    with pytest.raises(RedirtyError, match="differs from what was sent"):
        compare_with_sent(mirror)
    image.write(1, np.array([4], U), np.array([1], U), memoryview(page(1000)))
    assert image.digest(SEED) == before, "it depends on the contents only"
    image.zero(2, np.array([9], U), np.array([1], U))
    with pytest.raises(RedirtyError, match="differs from what was sent"):
        compare_with_sent(mirror)
    image.discard()


def test_a_page_in_another_place_or_source_has_another_digest() -> None:
    def digest(*entries: tuple[int, int, int]) -> str:
        found = HashDigest()
        for number, at, value in entries:
            found.add(number, np.array([at], U), np.array([value], U))
        return found.hex()

    expected = digest((1, 5, 99), (1, 6, 98))
    whole = HashDigest()
    whole.add(1, np.array([5, 6], U), np.array([99, 98], U))
    assert whole.hex() == expected, "it does not depend on the pieces"
    others = [
        digest((1, 5, 99)), digest((2, 5, 99), (1, 6, 98)), digest((1, 5, 98), (1, 6, 99)),
        digest((1, 4, 99), (1, 6, 98)),
    ]  # fmt: skip
    assert expected not in others and len(set(others)) == len(others)


def test_pages_of_unknown_contents_may_be_at_the_other_end() -> None:
    hashes = PageHashes()
    hashes.reserve(from_pages(np.arange(600, dtype=U)))
    hashes.record(np.array([3, 4, 5], U), np.array([77, 1, 88], U))
    hashes.mark_unknown(np.array([3], U))
    asked = np.array([2, 3, 4, 5, 1 << 40], U)
    assert hashes.maybe_sent(asked).tolist() == [3, 4, 5]
    ((pages, found),) = list(hashes.sent())
    assert pages.tolist() == [3, 5] and found.tolist() == [2, 88], "4 is zero"


def test_a_receiver_of_an_older_version_is_refused() -> None:
    """Send a WELCOME without hashes: such a receiver would answer DIGEST with that of the contents."""
    near, far = socket.socketpair()

    def answer() -> None:
        head = protocol.parse_head(far.recv(protocol.HEAD.size))
        far.recv(head.body)
        welcome = json.dumps({"done": 0}).encode()
        far.sendall(protocol.head(protocol.WELCOME, payload=len(welcome)) + welcome)

    thread = threading.Thread(target=answer)
    thread.start()
    sink = NetworkSink(lambda: near, RateLimiter(None), 0.0)
    thread.join()
    with pytest.raises(RedirtyError, match="of an older version"):
        require_hashes(sink)
    sink.close()
    far.close()


def test_the_promise_is_ten_per_cent_or_five_milliseconds() -> None:
    assert allowed_s(1.0) == pytest.approx(1.1) and allowed_s(0.01) == pytest.approx(0.015)
    for goal_s in (0.001, 0.05, 0.2, 3.0):
        assert goal_s < limit_s(goal_s) < allowed_s(goal_s)
        assert kept(goal_s, allowed_s(goal_s) * 0.999, []) is True
        assert kept(goal_s, allowed_s(goal_s) * 1.001, []) is False
        assert kept(goal_s, 0.0, [FailedStop(allowed_s(goal_s) * 1.001, "late")]) is False
    assert kept(None, 60.0, []) is None
    information = {
        "downtime_goal_s": 0.2, "kept_downtime": False, "downtime_s": 0.1, "verify_s": 0.0,
        "verified_by": None, "failed_stops": [{"downtime_s": 0.5, "reason": "late"}],
    }  # fmt: skip
    assert broken(information) == (
        "the downtime asked for was 200.0 ms, and the target stood still for 500.0 ms"
    )
    assert not broken({**information, "kept_downtime": True})
    assert not broken({"downtime_s": 9.0}), "of an older version"


def make_estimator(bandwidth: float | None = None, *, compressed: bool = False) -> Estimator:
    compress = (lambda data: data) if compressed else None
    none = cast(TargetSet, None), cast(Destination, None)
    return Estimator(MirrorRequest(*none, Goals(0.1), bandwidth=bandwidth, compress=compress))


def test_the_slowest_of_the_last_passes_counts_and_late_stops_teach() -> None:
    estimator = make_estimator()
    for number, seconds in enumerate((0.1, 0.2, 0.1, 0.1), 1):
        counts = PassCounts(pages=2560, sent_pages=2560, batches=4)
        estimator.end_pass(number, counts, 10 << 20, seconds)
    assert estimator.rate == pytest.approx((10 << 20) / 0.1)
    assert estimator.stop_rate == pytest.approx((10 << 20) / 0.2)
    before = estimator.stop_rate
    estimator.late_stop(0.05)
    assert estimator.stop_rate < before
    assert estimator.least_s(10 << 20) < 0.1, "what is sure to take longer"


def test_of_compressed_pages_the_rate_is_that_of_pages() -> None:
    """Count pages as what is left is counted, not the bytes that they became."""
    estimator = make_estimator(bandwidth=1 << 20, compressed=True)
    counts = PassCounts(pages=2560, sent_pages=2560, batches=4)
    estimator.end_pass(1, counts, 2 << 20, 2.0)
    assert estimator.rate == pytest.approx(5 << 20)
