"""The copier's parts that need no target: layouts, addresses, pairing, core files."""

from __future__ import annotations

import socket
import ssl
import threading

import pytest
from redirty.collector.errors import RedirtyError, UsageError
from redirty.collector.linux.process_memory import PAGE
from redirty.collector.mirror.export.guest_ram import _whose
from redirty.collector.mirror.image.elf_core import Segment, head_of
from redirty.collector.mirror.sources.vmas import parse_line, without_overlaps
from redirty.collector.mirror.transport import pairing
from redirty.collector.mirror.transport.listener import parse_address
from redirty.collector.mirror.transport.peer import is_loopback
from redirty.collector.target.qemu import Piece, pieces

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
    for directory in ("dir", "/a/b:1", "./a:1", "a:b", "./::1"):
        assert parse_address(directory) is None
    for neither in ("::1", ":7411", "::1:7462"):  # and no directory of secrets by mistake
        with pytest.raises(UsageError, match="HOST:PORT"):
            parse_address(neither)
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
