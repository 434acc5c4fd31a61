"""Network namespaces that belong to a test: nothing outside them is changed or contacted."""

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
    """Run this thread in a new namespace with only its loopback, which is up."""
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
    """Create one more namespace; yield the PID of the process in it, for moving links there."""
    unshare = require_program("unshare", "util-linux")
    words = (unshare, "-n", "sh", "-c", "echo there; exec cat >&2")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        yield process.pid
        process.kill()


def ip(*words: object) -> None:
    """Run ip."""
    _run("ip", *words)


def tc(words: str) -> None:
    """Run tc."""
    _run("tc", *words.split())


def has(words: str) -> None:
    """Create a link or a qdisc; skip the test on a kernel that was built without its kind, as no set-up of
    the machine would help.
    """
    done = subprocess.run(words.split(), check=False, capture_output=True, text=True)
    if "Unknown device type" in done.stderr or "qdisc kind is unknown" in done.stderr:
        pytest.skip(f"this kernel does not have that kind: {words}")
    assert done.returncode == 0, (words, done.stderr)


def _run(*words: object) -> None:
    done = subprocess.run([*map(str, words)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stderr)


def veth(peer: int) -> None:
    """Create v0 here (10.9.0.1) and its peer v1 in a process's namespace (10.9.0.2), both up.

    Neither sends anything unasked: no IPv6, and each knows the other's link-layer address.
    """
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
    """Send `count` UDP packets; return their bytes on the wire, headers included."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            with contextlib.suppress(ConnectionRefusedError):  # no socket is bound there
                sender.sendto(bytes(payload), (to, 9))
    return count * (payload + _HEADERS)
