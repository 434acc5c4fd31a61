"""The copier's parts that need no target: stores, journals, hashes, the pace, decisions, layouts, pairing."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from redirty.collector.bitmap import PageSet, empty, from_pages, page_numbers
from redirty.collector.copier import pairing
from redirty.collector.copier.content import NEVER, Sent, hashes_of, zero_pages
from redirty.collector.copier.core import Segment, head_of
from redirty.collector.copier.decide import (
    GIVE_UP,
    PASS,
    QUIESCE,
    Goals,
    Standing,
    decide,
    would_do,
)
from redirty.collector.copier.door import parse_address
from redirty.collector.copier.engine import Engine
from redirty.collector.copier.guest import Piece, _whose, pieces
from redirty.collector.copier.held_back import again, cold_first, hold_back
from redirty.collector.copier.image import FILE, SPACE, Image
from redirty.collector.copier.journal import Journal
from redirty.collector.copier.layout import parse_line, without_overlaps
from redirty.collector.copier.owner import is_loopback
from redirty.collector.copier.pace import Pace
from redirty.collector.copier.reading import PAGE, Bools, Reader, runs_of
from redirty.collector.copier.sink import LocalSink
from redirty.collector.copier.store import Store, StoreError
from redirty.collector.errors import RedirtyError

U = np.uint64


def pages(*numbers: int) -> PageSet:
    return from_pages(np.array(numbers, U))


# ---- stores ----


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.one_of(
                st.integers(0, 40), st.integers((1 << 18) - 8, (1 << 18) + 8), st.just(1 << 40)
            ),
            st.integers(1, 12),
        ),
        max_size=25,
    )
)
def test_a_store_has_what_was_put_in(steps: list[tuple[bool, int, int]]) -> None:
    fd = os.memfd_create("store")
    store, truth = Store(fd, 1 << 16), {}
    for n, (write, first, length) in enumerate(steps):
        runs = np.array([first], U), np.array([length], U)
        if write:
            for window in store.new_windows(*runs):
                store.open_window(window)
            data = bytes([n % 250 + 1]) * (length * PAGE)
            store.write(*runs, memoryview(data))
        else:
            store.zero(*runs)
        for page in range(first, first + length):
            truth[page] = n % 250 + 1 if write else 0
    filled = {p for w in store.windows for p in store.filled_pages(w).tolist()}
    assert filled == {page for page, value in truth.items() if value}
    for page in filled:
        buffer = memoryview(bytearray(PAGE))
        store.read_into(np.array([page], U), np.array([1], U), buffer)
        assert bytes(buffer) == bytes([truth[page]]) * PAGE
    again_opened = Store(os.dup(fd), 1 << 16, store.windows)
    again_opened.find_filled()
    found = {p for w in again_opened.windows for p in again_opened.filled_pages(w).tolist()}
    assert found >= filled  # a file system may tell of more data than there is, never of less
    again_opened.close()
    store.close()


def test_a_store_is_bounded() -> None:
    store = Store(os.memfd_create("store"), 0)
    with pytest.raises(StoreError):
        store.new_windows(np.array([1 << 60], U), np.array([1], U))
    many = np.arange(9000, dtype=U) << U(18)
    with pytest.raises(StoreError):
        store.new_windows(many, np.ones(9000, U))
    store.close()


# ---- journals ----


def test_an_image_goes_on_after_a_kill(tmp_path: Path) -> None:
    image = Image.create(tmp_path / "m", "s" * 16)
    image.declare(1, SPACE)
    image.declare(2, FILE)
    one = np.array([5, 1 << 30], U), np.array([2, 1], U)
    image.write(1, *one, memoryview(b"x" * (3 * PAGE)))
    image.journal.done(7)
    digest = image.digest()
    image.close()
    found = Image.resume(tmp_path / "m")
    assert (found.done, found.session) == (7, "s" * 16)
    assert found.kinds == {1: SPACE, 2: FILE}
    assert found.digest() == digest
    found.discard()
    assert not (tmp_path / "m").exists()


@settings(deadline=None, max_examples=50)
@given(cut=st.integers(0, 28 * 4), damage=st.integers(0, 28 * 4 - 1))
def test_a_journal_ends_at_the_first_bad_record(
    cut: int, damage: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    journal = Journal.create(directory, "s" * 16)
    journal.source(1, SPACE)
    for number in (1, 2, 3):
        journal.done(number)
    journal.close()
    data = bytearray(journal.path.read_bytes())
    data[4096 + damage] ^= 0x55
    journal.path.write_bytes(data[: 4096 + cut])
    again_opened, found = Journal.open(directory)
    again_opened.close()
    whole = min(cut // 28, damage // 28)
    assert found.done == max(whole - 1, 0)


def test_a_journal_of_another_boot_is_refused(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, "s" * 16)
    journal.close()
    data = journal.path.read_bytes()
    at = data.index(b'"boot": "') + 9
    journal.path.write_bytes(data[:at] + b"00000000" + data[at + 8 :])
    with pytest.raises(RedirtyError, match="before this machine was started"):
        Journal.open(tmp_path)


def test_a_commit_is_not_gone_on_with(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, "s" * 16)
    journal.end()
    journal.close()
    with pytest.raises(RedirtyError, match="commit"):
        Journal.open(tmp_path)


# ---- contents ----


def test_zero_pages_and_hashes() -> None:
    words = np.zeros((5, 512), U)
    words[1, 511], words[2, 0], words[4, :] = 1, 7, 9
    zero = zero_pages(words)
    assert zero.tolist() == [True, False, False, True, False]
    found = hashes_of([memoryview(row.tobytes()) for row in words], zero)
    assert found[0] == found[3] == 1 and (found[[1, 2, 4]] > 2).all()
    assert len(set(found.tolist())) == 4
    assert zero_pages(np.zeros((3, 512), U)).all()
    assert xxhash.xxh3_64_intdigest(b"") >= 0


def test_what_was_sent_is_remembered_by_page() -> None:
    sent = Sent()
    sent.make_room(pages(5, 600))
    sent.note(np.array([5, 600], U), np.array([77, 1], U))
    sent.make_room(pages(1 << 30))  # rows move
    assert sent.of(np.array([5, 6, 600, 1 << 30], U)).tolist() == [77, NEVER, 1, NEVER]
    assert sent.zero_among(pages(5, 600, 601)).tolist() == [600]
    sent.forget(np.array([5, 1 << 40], U))
    assert sent.of(np.array([5], U)).tolist() == [2]
    sent.drop(np.array([5], U))
    assert sent.of(np.array([5], U)).tolist() == [0]


class Made:
    """A source whose pages are what a test says; those that are missing cannot be read."""

    def __init__(self, contents: dict[int, int]) -> None:
        self.number = 1
        self.contents = contents
        self.have = self.pending = empty()
        self.dirty: list[PageSet] = []
        self.sent = Sent()

    def read(
        self, wanted: np.ndarray[tuple[int, ...], np.dtype[np.uint64]], buffer: memoryview
    ) -> Bools:
        view = np.frombuffer(buffer, np.uint8).reshape(-1, PAGE)
        good = np.ones(len(wanted), np.bool_)
        for i, page in enumerate(wanted.tolist()):
            good[i] = page in self.contents
            view[i] = self.contents.get(page, 0)
        return good


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.dictionaries(st.integers(0, 1500), st.integers(0, 3), max_size=400),
        min_size=1,
        max_size=5,
    )
)
def test_an_image_ends_equal_whatever_pages_become(states: list[dict[int, int]]) -> None:
    """Pages change, become zero, vanish and come back; each time only those that may differ are copied."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        image = Image.create(Path(name) / "m", "s" * 16)
        image.declare(1, SPACE)
        engine = Engine(LocalSink(image, Pace(None)), keep_lists=True)
        source = Made({})
        for state in states:
            touched = set(state.keys() | source.contents.keys())
            source.contents = state
            source.pending = pages(*touched)
            counts = engine.copy([(source, source.pending)])
            assert counts.pages == len(touched)
            assert counts.unread_pages == len(touched - state.keys())
            assert len(source.pending) == 0
            assert set(page_numbers(source.have).tolist()) == state.keys()
        engine.close()
        store = image.stores[1]
        filled = {p for w in store.windows for p in store.filled_pages(w).tolist()}
        last = states[-1]
        assert filled == {page for page, value in last.items() if value}
        for page in filled:
            buffer = memoryview(bytearray(PAGE))
            store.read_into(np.array([page], U), np.array([1], U), buffer)
            assert buffer[0] == last[page]
        image.discard()


def test_unchanged_pages_are_not_sent_again(tmp_path: Path) -> None:
    image = Image.create(tmp_path / "m", "s" * 16)
    image.declare(1, SPACE)
    engine = Engine(LocalSink(image, Pace(None)))
    source = Made({1: 5, 2: 6, 3: 0})
    first = engine.copy([(source, pages(1, 2, 3))])
    assert (first.sent_pages, first.zero_pages) == (2, 1)
    source.contents[2] = 7
    second = engine.copy([(source, pages(1, 2, 3))])
    assert (second.sent_pages, second.unchanged_pages, second.zero_pages) == (1, 1, 1)
    engine.close()
    image.discard()


def test_reading_what_is_partly_there() -> None:
    import mmap

    area = mmap.mmap(-1, 8 * PAGE)
    area[:] = b"q" * (8 * PAGE)
    first = np.frombuffer(area, np.uint8).ctypes.data >> 12
    reader = Reader(os.getpid())
    wanted = np.array([first, first + 1, first + 3, first + (1 << 40)], U)
    buffer = memoryview(bytearray(b"z" * (4 * PAGE)))
    assert reader.read(wanted, buffer).tolist() == [True, True, True, False]
    assert bytes(buffer) == b"q" * (3 * PAGE) + bytes(PAGE)
    reader.close()


def test_runs() -> None:
    firsts, lengths = runs_of(np.array([3, 4, 5, 9, 11, 12], U))
    assert (firsts.tolist(), lengths.tolist()) == ([3, 9, 11], [3, 1, 2])


# ---- the pace ----


@settings(deadline=None)
@given(
    st.floats(1e4, 1e9),
    st.lists(st.integers(1, 1 << 20), min_size=50, max_size=200),
    st.integers(0, 2**32),
)
def test_the_pace_is_kept_however_late_sleeps_end(rate: float, sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds + float(rng.exponential(0.0002))

    pace = Pace(rate, lambda: now[0], sleep)
    for size in sizes:
        pace.wait(size)
    sent = sum(sizes[:-1])  # the last one left just now
    assert now[0] >= sent / rate - 0.02 - 1e-9
    assert now[0] <= sent / rate + 0.02 + 0.01 * len(sizes) / 50


# ---- decisions ----


def standing(
    *left: float, rate: float = 100.0, fixed_s: float = 0.0, elapsed_s: float = 0.0
) -> Standing:
    return Standing(len(left), left, rate, fixed_s, elapsed_s)


def test_decisions() -> None:
    goals = Goals(0.2)
    assert decide(goals, standing(19)).action == QUIESCE
    assert decide(goals, standing(21)).action == PASS
    assert decide(goals, standing(19, fixed_s=0.05)).action == PASS
    assert decide(goals, standing(1, fixed_s=0.3)).action == GIVE_UP
    assert decide(goals, standing(90, 80, 70, 60, 50, 40, 30)).action == PASS
    stuck = decide(goals, standing(30, *[30] * 6))
    assert stuck.action == GIVE_UP and "no less" in stuck.reason
    assert decide(Goals(None, passes=3), standing(1e9, 1e9)).action == PASS
    assert decide(Goals(None, passes=3), standing(1e9, 1e9, 1e9)).action == QUIESCE
    assert decide(Goals(0.2, passes=1), standing(1e9)).action == GIVE_UP
    assert decide(Goals(0.2, deadline_s=5), standing(30, elapsed_s=5)).action == GIVE_UP
    assert decide(Goals(None, deadline_s=5), standing(100, elapsed_s=1)).action == PASS
    assert decide(Goals(None, deadline_s=5), standing(100, elapsed_s=4.5)).action == QUIESCE
    assert "200.0 ms" in decide(goals, standing(21)).reason


def test_what_would_do() -> None:
    said = would_do(Goals(0.2), 40.0, standing(50, 40, 45))
    assert "--downtime 440ms" in said and "1.8 kbit/s" in said, said


def test_hot_pages_are_held_back_when_they_are_sure_to_come_again() -> None:
    hot, cold = pages(*range(10)), pages(*range(100, 110))
    rounds = [[hot | cold, hot, hot]]
    assert again(rounds) == 1.0
    (kept,) = hold_back(rounds, [hot | cold], 100)
    assert kept == hot
    (kept,) = hold_back(rounds, [hot | cold], 4)
    assert len(kept) == 4
    assert again([[cold, hot, hot]]) == 0.0
    assert len(hold_back([[cold, hot, hot]], [hot], 100)[0]) == 0
    first, then = cold_first(rounds[0], hot | cold)
    assert (first, then) == (cold, hot)


# ---- layouts, addresses, pairing ----


def test_lines_of_maps() -> None:
    vma = parse_line(b"7f0000000000-7f0000002000 r--s 00003000 08:01 77    /a b\n"[:-1])
    assert vma is not None
    assert (vma.pages_of_file(), vma.shared, vma.has_file) == ((3, 5), True, True)
    assert vma.path == "/a b"
    assert parse_line(b"ffff0000-ffff1000 r--p 00000000 00:00 0    [vvar]") is None
    anonymous = parse_line(b"1000-2000 rw-p 00000000 00:00 0")
    assert anonymous is not None and not anonymous.has_file
    huge = parse_line(b"200000-400000 rw-p 00000000 00:0f 9   /anon_hugepage (deleted)")
    assert huge is not None and not huge.has_file
    grown = without_overlaps([vma, vma._replace(end=vma.end + PAGE)])
    assert [(v.start, v.end) for v in grown] == [
        (vma.start, vma.end),
        (vma.end, vma.end + PAGE),
    ]
    assert grown[1].offset == 0x5000


def test_addresses() -> None:
    assert parse_address("host.example:7411") == ("host.example", 7411)
    assert parse_address("[fe80::1%eth0]:1") == ("fe80::1%eth0", 1)
    for directory in ("dir", "/a/b:1", "./a:1", "a:b", "::1"):
        assert parse_address(directory) is None
    assert is_loopback("127.3.2.1") and is_loopback("::1") and is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("10.0.0.1") and not is_loopback("::")


def shake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[str, str]:
    """What each end says of a handshake: '' when all is well."""
    ours, theirs = socket.socketpair()
    found = {}

    def one(name: str, sock: socket.socket, context: ssl.SSLContext, **more: object) -> None:
        sock.settimeout(5)
        try:
            with context.wrap_socket(sock, **more) as wrapped:  # type: ignore[arg-type]
                wrapped.sendall(b"x")
                found[name] = "" if wrapped.recv(1) == b"x" else "closed"
                assert wrapped.version() == "TLSv1.3"
        except OSError as e:
            found[name] = str(e)

    thread = threading.Thread(
        target=one, args=("server", ours, server), kwargs={"server_side": True}
    )
    thread.start()
    one("client", theirs, client, server_hostname=pairing.RECEIVER)
    thread.join()
    return found["server"], found["client"]


def test_only_who_knows_the_code_comes_in() -> None:
    code, other = pairing.parse_code(pairing.new_code()), pairing.parse_code(pairing.new_code())
    receiver, sender = (pairing.context(code, r) for r in (pairing.RECEIVER, pairing.SENDER))
    assert shake(receiver, sender) == ("", "")
    wrong = pairing.context(other, pairing.SENDER)
    server, client = shake(receiver, wrong)
    assert server and client
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    server, client = shake(receiver, nobody)
    assert server
    # a sender's certificate does not make a receiver
    fake = pairing.context(code, pairing.SENDER)
    as_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert fake.verify_mode is ssl.CERT_REQUIRED and as_server is not None


def test_codes() -> None:
    text = pairing.new_code()
    assert pairing.parse_code(text) == pairing.parse_code(text.upper().replace("-", " ") + "\n")
    for wrong in ("", "aaaa", text + "a", text[:-1] + "1"):
        with pytest.raises(RedirtyError, match="code"):
            pairing.parse_code(wrong)


# ---- core files ----


def test_more_mappings_than_a_head_can_count() -> None:
    import struct

    segments = [Segment(i << 12, (i + 1) << 12, "r--p", None) for i in range(70_000)]
    head = head_of(segments, b"notes", 62)
    (count,) = struct.unpack_from("<H", head, 56)
    (table,) = struct.unpack_from("<Q", head, 40)
    assert count == 0xFFFF
    assert struct.unpack_from("<I", head, table + 44)[0] == 70_001
    assert head.endswith(b"notes")
    with pytest.raises(ValueError, match="room"):
        head_of(segments, bytes(64 << 20), 62)


def test_where_guest_memory_is() -> None:
    """QEMU's words: memory that is read-only in part is one piece; a screen, and what another view has, are none."""
    told = """FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000fff (prio 0, ram): pc.ram

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000effff (prio 0, rom): pc.ram @00000000000c0000
  00000000000f0000-00000000bfffffff (prio 0, ram): pc.ram @00000000000f0000
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  0000000100000000-000000013fffffff (prio 0, ram): pc.ram @00000000c0000000
  0000000140000000-0000000147ffffff (prio 0, ram): /objects/one KVM
"""
    expected = [(0, 0xA0000), (0xC0000, 0xC0000000), (0x100000000, 0x140000000)]
    assert pieces(told, {"pc.ram"}) == expected
    assert pieces(told, {"one", "/objects/one"}) == [(0x140000000, 0x148000000)]
    assert pieces("FlatView #0\n no such lines\n", {"pc.ram"}) == []


def test_export_takes_the_guest_that_has_the_memory() -> None:
    mib = 1 << 20
    blocks = [(4 * mib, 16 * mib, 1), (4 * mib, 32 * mib, 1), (8 * mib, 64 * mib, 2)]
    one, two = Piece(0, mib, 16 * mib), Piece(mib, 4 * mib, 32 * mib)
    assert _whose([one, two], blocks) == 1
    assert _whose([Piece(0, 8 * mib, 64 * mib)], blocks) == 2
    for wrong in ([one, Piece(0, mib, 64 * mib)], [Piece(0, 8 * mib, 16 * mib)], [Piece(0, 1, 0)]):
        with pytest.raises(ValueError, match="changed its place"):
            _whose(wrong, blocks)
