"""Network namespaces of a test's own: nothing outside them is touched or contacted."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiers import require, require_program, require_root

_CLONE_NEWNET = 0x40000000
_HEADERS = 14 + 20 + 8  # of Ethernet, IPv4 and UDP
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """This thread in a new namespace, with nothing but its loopback, up."""
    require_root()
    require_program("ip", "iproute2")
    require_program("tc", "iproute2")
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        made = _libc.unshare(_CLONE_NEWNET) == 0
        require(made, f"needs network namespaces: {os.strerror(ctypes.get_errno())}")
        try:
            ip("link", "set", "lo", "up")
            yield
        finally:
            assert _libc.setns(home, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(home)


@contextlib.contextmanager
def another_network() -> Iterator[int]:
    """One more namespace; the process in it, by whose number links are moved there."""
    unshare = require_program("unshare", "util-linux")
    words = (unshare, "-n", "sh", "-c", "echo there; exec cat >&2")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        yield process.pid
        process.kill()


def ip(*words: object) -> None:
    """Runs ip."""
    _run("ip", *words)


def tc(words: str) -> None:
    """Runs tc."""
    _run("tc", *words.split())


def has(words: str) -> None:
    """Makes a link or a qdisc, or skips the test on a kernel that was built without its kind: no
    set-up of the machine would help."""
    done = subprocess.run(words.split(), check=False, capture_output=True, text=True)
    if "Unknown device type" in done.stderr or "qdisc kind is unknown" in done.stderr:
        pytest.skip(f"this kernel has none of that kind: {words}")
    assert done.returncode == 0, (words, done.stderr)


def _run(*words: object) -> None:
    done = subprocess.run([*map(str, words)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)


def veth(peer: int) -> None:
    """v0 here (10.9.0.1), its other end v1 in a process' namespace (10.9.0.2), both up. Neither
    sends anything by itself: no IPv6, and each knows the other's address."""
    ip("link", "add", "v0", "address", "02:00:00:00:00:01", "type", "veth", "peer", "name", "v1")
    ip("link", "set", "v1", "address", "02:00:00:00:00:02", "netns", peer)
    Path("/proc/sys/net/ipv6/conf/v0/disable_ipv6").write_text("1")
    ip("addr", "add", "10.9.0.1/24", "dev", "v0")
    ip("link", "set", "v0", "up")
    over = ("nsenter", "-t", peer, "-n", "ip")
    _run(*over, "addr", "add", "10.9.0.2/24", "dev", "v1")
    _run(*over, "link", "set", "v1", "up")
    known = ("lladdr", "02:00:00:00:00:01", "nud", "permanent", "dev", "v1")
    _run(*over, "neigh", "add", "10.9.0.1", *known)
    ip("neigh", "add", "10.9.0.2", "lladdr", "02:00:00:00:00:02", "nud", "permanent", "dev", "v0")


def send(count: int, payload: int, to: str = "10.9.0.2") -> int:
    """Sends so many packets; the bytes that makes on the wire, with their headers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            with contextlib.suppress(ConnectionRefusedError):  # nobody listens there
                sender.sendto(bytes(payload), (to, 9))
    return count * (payload + _HEADERS)
