"""Speed of an interface as its driver reports it (ETHTOOL_GLINKSETTINGS)."""

from __future__ import annotations

import array
import fcntl
import socket
import struct

# linux/sockios.h, linux/ethtool.h
_SIOCETHTOOL = 0x8946
_GLINKSETTINGS = 0x4C
_SETTINGS = struct.Struct("=II7Bb32x")  # struct ethtool_link_settings, without its masks
_NWORDS = 9  # index of the field with the length of the masks
_MASK_WORDS = 127
_UNKNOWN = (0, 0xFFFF, 0xFFFFFFFF)
_BYTES_PER_MBIT = 1_000_000 / 8


def speed(name: str) -> float | None:
    """Return how many bytes per second an interface can send.

    The kernel adds up the ports of a bond, and forwards the question for a VLAN to the device below
    it. The request is an ioctl, which every kernel supports and which needs no names of link modes.

    Returns:
        The speed; None if the driver reports none (wifi, loopback, no cable).
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            # The first call returns the length of the masks, as a negative number.
            words = -int(_get(sock, name, 0)[_NWORDS])
            if not 0 < words <= _MASK_WORDS:
                return None
            mbit = int(_get(sock, name, words)[1])
        except OSError:
            return None
    return None if mbit in _UNKNOWN else mbit * _BYTES_PER_MBIT


def _get(sock: socket.socket, name: str, words: int) -> tuple[int, ...]:
    head = _SETTINGS.pack(_GLINKSETTINGS, 0, 0, 0, 0, 0, 0, 0, 0, words)
    buffer = array.array("B", head + bytes(4 * 3 * _MASK_WORDS))
    address, _ = buffer.buffer_info()
    fcntl.ioctl(sock, _SIOCETHTOOL, struct.pack("16sP16x", name.encode()[:15], address))
    return _SETTINGS.unpack_from(buffer)
