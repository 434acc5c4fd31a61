"""The owner of the other end of a connection within this machine, where any user may listen and connect.

Source: Documentation/networking/proc_net_tcp.rst.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from pathlib import Path

from redirty.collector.errors import RedirtyError


def is_loopback(host: str) -> bool:
    """Return whether an address is a loopback address; the only name that counts is localhost."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _proc_format(address: tuple[str, int]) -> str:
    """Format an address as /proc/net/tcp does: hex words in native byte order."""
    packed = ipaddress.ip_address(address[0].partition("%")[0]).packed
    words = struct.unpack(f">{len(packed) // 4}I", packed)
    text = "".join(f"{struct.unpack('<I', struct.pack('>I', w))[0]:08X}" for w in words)
    return f"{text}:{address[1]:04X}"


def require_own(connection: socket.socket) -> None:
    """Require that the peer's socket belongs to root or this user.

    Raises:
        RedirtyError: another user owns it, or the owner cannot be determined.
    """
    local = _proc_format(connection.getsockname()[:2])
    peer = _proc_format(connection.getpeername()[:2])
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if words[1] == peer and words[2] == local:
                if int(words[7]) in (0, os.geteuid()):
                    return
                raise RedirtyError(
                    f"the peer of the connection is of user {words[7]}, not of the current one: use "
                    "--code-file at both ends"
                )
    raise RedirtyError("the owner of the peer cannot be determined: use --code-file at both ends")
