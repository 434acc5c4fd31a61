"""Lets two ends on one machine meet without a code: on a unix socket, where the kernel tells each the other's user.

The TCP port of such a receiver is a signpost only: whoever connects is told the name of the unix socket, and nothing
is read from him. So strangers can neither pretend to be somebody nor occupy anything, and the mirror itself never
goes over a socket whose other end is not known. The name is random: nobody can take it before the receiver.
"""

from __future__ import annotations

import re
import secrets
import socket
import time

from redirty.collector.errors import RedirtyError, why
from redirty.collector.mirror.transport import protocol
from redirty.collector.mirror.transport.peer import require_own
from redirty.collector.mirror.transport.protocol import ConnectionLostError, FrameError
from redirty.collector.mirror.transport.sockets import readable

# Abstract names belong to the network namespace, as the loopback interface does. Of this form only: a stranger's
# signpost must not lead to the socket of another program of root's.
_NAME = re.compile(rb"redirty/receive/[0-9a-f]{32}")
_BACKLOG = 128
_SIGNPOST_S = 30.0
_SIGNPOST_BYTES = 4096
_SILENCE_S = 1.0
# What a receiver that waits for the sender's first word (one with a code, one of an older version) refuses at once.
_PROBE = b"RDM2".ljust(protocol.HEAD.size, b"\0")
_CONNECT_S = 10.0


def listen_here() -> tuple[socket.socket, bytes]:
    """Return a listening unix socket, and what its signpost says.

    Raises:
        OSError: the kernel refuses.
    """
    name = f"redirty/receive/{secrets.token_hex(16)}".encode()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(b"\0" + name)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    # The error is for senders of before version 2 of the rendezvous, which read no further.
    older = (
        b"it is of a newer version: use the same version of redirty at both ends, or --code-file"
    )
    sign = protocol.head(protocol.ERROR, payload=len(older)) + older
    return listener, sign + protocol.head(protocol.MEET, payload=len(name)) + name


def meet(tcp: socket.socket) -> socket.socket:
    """Follow a receiver's signpost, and return the connected unix socket of a receiver of root or this user.

    Raises:
        RedirtyError: the receiver belongs to another user, or needs its code.
        ConnectionLostError: there is no signpost, or it leads nowhere.
        OSError: the connection is lost.
    """
    name = _read_signpost(tcp)
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        found.settimeout(_CONNECT_S)
        try:
            found.connect(b"\0" + name)
        except OSError as e:
            raise ConnectionLostError(
                f"it is on another machine or in another network namespace ({why(e)}): use --code-file at "
                "both ends"
            ) from None
        require_own(found)
    except BaseException:
        found.close()
        raise
    return found


def _read_signpost(tcp: socket.socket) -> bytes:
    """Read the name of the receiver's unix socket, for a limited time and from a limited number of bytes."""
    data = bytearray()
    until, probe_at = time.monotonic() + _SIGNPOST_S, time.monotonic() + _SILENCE_S
    probed = False
    while len(data) < _SIGNPOST_BYTES and (left := until - time.monotonic()) > 0:
        name = _name_in(data)
        if name is not None:
            return name
        if readable([tcp], left if probed else max(probe_at - time.monotonic(), 0)):
            try:
                part = tcp.recv(_SIGNPOST_BYTES - len(data))
            except ConnectionResetError:
                break
            if not part:
                break
            data += part
        elif not probed:
            probed = True
            tcp.sendall(_PROBE)
    name = _name_in(data, ended=True)
    if name is None:
        raise ConnectionLostError(
            "it does not answer as redirty receive does: another program, or an older version; use the same "
            "version at both ends"
        )
    return name


def _name_in(data: bytearray, *, ended: bool = False) -> bytes | None:
    """Return the name that a signpost leads to, if it is complete.

    Args:
        data: what was read so far.
        ended: nothing follows.

    Raises:
        RedirtyError: the receiver says why it cannot be met here.
        ConnectionLostError: this is no signpost.
    """
    at, size = 0, protocol.HEAD.size
    reason = None
    while len(data) >= at + size:
        try:
            head = protocol.parse_head(bytes(data[at : at + size]))
        except FrameError as e:
            raise ConnectionLostError(f"the peer is not a redirty receive: {e}") from None
        end = at + size + head.body
        if len(data) < end:
            break
        body = bytes(data[at + size : end])
        if head.type == protocol.MEET and _NAME.fullmatch(body):
            return body
        if head.type == protocol.ERROR:
            reason = body.decode(errors="replace")
        at = end
    if ended and reason is not None:
        raise RedirtyError(f"the receiver failed: {reason}; the target keeps running")
    return None
