"""The speed of an interface, as its driver tells it."""

from __future__ import annotations

import array
import fcntl
import socket
import struct

# linux/sockios.h, linux/ethtool.h
_SIOCETHTOOL = 0x8946
_GLINKSETTINGS = 0x4C
_SETTINGS = struct.Struct("=II7Bb32x")  # struct ethtool_link_settings, without its masks
_NWORDS = 9  # which of its fields says how long the masks are
_MASK_WORDS = 127
_UNKNOWN = (0, 0xFFFF, 0xFFFFFFFF)
_BYTES_PER_MBIT = 1_000_000 / 8


def speed(name: str) -> float | None:
    """Bytes per second that an interface can send; None when its driver knows of no speed (wifi,
    loopback, no cable). The kernel adds up a bond and hands a VLAN on to the device below it.

    By ioctl, since that form is known by every kernel and needs no names of link modes.
    Source: linux/ethtool.h, ETHTOOL_GLINKSETTINGS.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asked:
        try:
            # The first call says how long the masks are, as a negative number.
            words = -int(_get(asked, name, 0)[_NWORDS])
            if not 0 < words <= _MASK_WORDS:
                return None
            mbit = int(_get(asked, name, words)[1])
        except OSError:
            return None
    return None if mbit in _UNKNOWN else mbit * _BYTES_PER_MBIT


def _get(asked: socket.socket, name: str, words: int) -> tuple[int, ...]:
    head = _SETTINGS.pack(_GLINKSETTINGS, 0, *([0] * 7), words)
    room = array.array("B", head + bytes(4 * 3 * _MASK_WORDS))
    address, _ = room.buffer_info()
    fcntl.ioctl(asked, _SIOCETHTOOL, struct.pack("16sP16x", name.encode()[:15], address))
    return _SETTINGS.unpack_from(room)
