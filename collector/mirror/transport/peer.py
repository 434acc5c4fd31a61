"""The owner of the other end of a connection within this machine, where any user may listen and connect.

The kernel tells it for unix sockets only (SO_PEERCRED, unix(7)): the user at the moment of connect() or listen(),
whatever became of the process since. /proc/net/tcp says 0, root's number, of a TCP socket that was closed.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from pathlib import Path

from redirty.collector.errors import RedirtyError

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


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


def require_own(connection: socket.socket) -> None:
    """Require that the other end of a unix socket belongs to root or this user.

    Raises:
        RedirtyError: another user owns it, or the owner cannot be determined.
    """
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid = _CREDENTIALS.unpack(data)[1]
    own = os.geteuid()
    if uid == own and uid != 0 and _stands_for_others(uid):
        raise RedirtyError(
            f"user {uid} stands for all users that this user namespace does not know: use --code-file at "
            "both ends"
        )
    if uid not in (0, own):
        raise RedirtyError(
            f"the other end is of user {uid}, neither root nor the user of this one ({own}): use "
            "--code-file at both ends"
        )


def _stands_for_others(uid: int) -> bool:
    """Return whether the kernel shows this number for users without one here, as in most containers."""
    try:
        overflow = int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
        words = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return True
    return uid == overflow and [int(w) for w in words] != [0, 0, (1 << 32) - 1]
