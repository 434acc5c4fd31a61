"""An unprivileged user of this machine who attacks a receiver, in a process of his own with Python's library only."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from tests.support.processes import ManagedProcess
from tests.tiers import require_root

UID = 65534

_SCRIPT = r"""
import itertools, json, os, re, socket, struct, sys, time
os.setgroups([]); os.setgid(65534); os.setuid(65534)
attack, port, session, end = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
HEAD = struct.Struct("<4sBBxxIQII")

def frame(kind, body=b"", *, source=0, number=0, runs=0):
    return HEAD.pack(b"RDM1", kind, 0, source, number, runs, len(body) - runs * 12) + body

page = struct.pack("<QI", 0x400, 1) + b"forged".ljust(4096, b"!")
mapping = [0x400, 0x401, "rw-p", "", None, 0]
layout = {"machine": 62, "processes": [{"pid": 42, "source": 0, "zero": [], "mappings": [mapping]}]}
mirror = (
    frame(1, json.dumps({"version": 1, "session": session}).encode())
    + frame(2, number=1)
    + frame(3, page, number=2, runs=1)
    + frame(7, json.dumps(layout).encode())
    + frame(7, number=1)
    + frame(8, json.dumps({"information": {"schema": 1, "forged": True}}).encode())
)

def ways():
    '''Return the addresses at which the receiver listens: its port, and all unix sockets of its.'''
    with open("/proc/net/unix") as table:
        names = set(re.findall(r"@(redirty/receive/[0-9a-f]+)", table.read()))
    return [(socket.AF_INET, ("127.0.0.1", port))] + [(socket.AF_UNIX, "\0" + n) for n in names]

def connect(family, address):
    made = socket.socket(family)
    made.settimeout(2)
    made.connect(address)
    return made

def forge():
    '''Send a whole mirror, by each way, and end it as the name says.'''
    kept = []
    for count in itertools.count(1):
        for family, address in ways():
            try:
                made = connect(family, address)
                kept.append(made)
                made.sendall(mirror)
                if end == "closed": made.close()
                if end == "half": made.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        for old in kept[:-16]: old.close()
        del kept[:-16]
        yield count

def crowd(first):
    '''Hold many connections, and add to them: each sends this first, and then nothing.'''
    held = []
    for count in itertools.count(1):
        for family, address in ways():
            try:
                made = connect(family, address)
                held.append(made)
                made.sendall(first)
            except OSError:
                pass
        for old in held[:-400]: old.close()
        del held[:-400]
        yield count

def trickle():
    '''Hold connections that send a byte now and then.'''
    held = []
    for count in itertools.count(1):
        while len(held) < 200:
            try:
                held.append(connect(*ways()[0]))
            except OSError:
                break
        for made in list(held):
            try:
                made.setblocking(False)
                made.sendall(b"\x16\x03\x01\x02\x00\x01"[count % 6:][:1] or b"\0")
            except BlockingIOError:
                pass
            except OSError:
                held.remove(made)
        time.sleep(0.02)
        yield count

attacks = {"forge": forge, "silent": lambda: crowd(b""), "tls": lambda: crowd(b"\x16\x03\x01\x02\x00\x01\x00"),
           "garbage": lambda: crowd(b"GET / HTTP/1.1\r\n\r\n"), "trickle": trickle}
for count in attacks[attack]():
    print(count, flush=True)
"""


class Stranger(ManagedProcess):
    """Attacks a receiver until the end of its `with` block."""

    def __init__(
        self, attack: str, port: int, *, session: str = "f" * 32, end: str = "open"
    ) -> None:
        """Start an attack.

        Args:
            attack: forge (a whole mirror), silent, tls, garbage (many connections) or trickle (slow ones).
            port: the receiver's TCP port on 127.0.0.1.
            session: the session that a forged mirror claims.
            end: what becomes of a forged mirror's connection: open, closed or half (closed for writing).
        """
        require_root()
        process: subprocess.Popen[Any] = subprocess.Popen(
            [sys.executable, "-I", "-c", _SCRIPT, attack, str(port), session, end],
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        super().__init__(process)

    def wait_for_rounds(self, count: int) -> None:
        """Wait until that many more rounds of the attack are done."""
        assert self._process.stdout is not None
        for _ in range(count):
            assert self._process.stdout.readline(), "the attack has ended"
