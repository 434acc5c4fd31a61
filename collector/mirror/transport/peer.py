"""Who has the other end of a connection within this machine: there, any user may listen on a port, and
any may connect to one. Source: Documentation/networking/proc_net_tcp.rst."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from pathlib import Path

from redirty.collector.errors import RedirtyError


def is_loopback(host: str) -> bool:
    """Whether an address is one of this machine's own loopback; by name only localhost."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _shown(address: tuple[str, int]) -> str:
    """An address as /proc/net/tcp has it: words in the processor's order, in hex."""
    packed = ipaddress.ip_address(address[0].partition("%")[0]).packed
    words = struct.unpack(f">{len(packed) // 4}I", packed)
    text = "".join(f"{struct.unpack('<I', struct.pack('>I', w))[0]:08X}" for w in words)
    return f"{text}:{address[1]:04X}"


def require_own(connection: socket.socket) -> None:
    """Errors: RedirtyError when the other end belongs to neither root nor this user."""
    ours, theirs = _shown(connection.getsockname()[:2]), _shown(connection.getpeername()[:2])
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if words[1] == theirs and words[2] == ours:
                if int(words[7]) in (0, os.geteuid()):
                    return
                raise RedirtyError(
                    f"the other end of the connection is of user {words[7]}, not of this one: use "
                    "--code-file at both ends"
                )
    raise RedirtyError("nobody can tell whose the other end is: use --code-file at both ends")
