"""Addresses of receivers."""

from __future__ import annotations

import pytest
from redirty.collector.errors import RedirtyError, UsageError
from redirty.collector.mirror.transport.candidate import neighbourhood
from redirty.collector.mirror.transport.dial import connect
from redirty.collector.mirror.transport.listener import Listener, parse_address
from redirty.collector.mirror.transport.peer import is_loopback


def test_addresses_and_directories_are_told_apart() -> None:
    assert parse_address("host.example:7411") == ("host.example", 7411)
    assert parse_address("[fe80::1%eth0]:1") == ("fe80::1%eth0", 1)
    for directory in ("dir", "/a/b:1", "./a:1", "./a:b", "a/b:c", "./::1"):
        assert parse_address(directory) is None
    mistakes = ("::1", ":7411", "::1:7462", "192.0.2.1:x", "a:b", "host:", "[::1]:80a", "host:١")
    for neither in mistakes:  # not a directory of secrets by mistake
        with pytest.raises(UsageError, match="HOST:PORT"):
            parse_address(neither)
    assert is_loopback("127.3.2.1") and is_loopback("::1") and is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("10.0.0.1") and not is_loopback("::")


@pytest.mark.parametrize("name", ["a..b", "a" * 70, ".", "a" * 64 + ".example"])
@pytest.mark.parametrize("code", [None, bytes(16)])
def test_names_that_no_machine_can_have(name: str, code: bytes | None) -> None:
    with pytest.raises((UsageError, RedirtyError, OSError)):
        connect(name, 1, code)
    with pytest.raises((UsageError, RedirtyError)):
        Listener(name, 0, code)


def test_neighbourhoods() -> None:
    """Take for one what one machine can have: all of loopback, and as many addresses of an IPv6 network as it likes."""
    assert (
        len({neighbourhood(a) for a in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")}) == 1
    )
    assert neighbourhood("192.0.2.1") != neighbourhood("192.0.2.2")
    assert neighbourhood("2001:db8::1") == neighbourhood("2001:db8::ffff:1")
    assert neighbourhood("2001:db8::1") != neighbourhood("2001:db8:0:1::1")
    assert neighbourhood("fe80::1%eth0") == neighbourhood("fe80::2%eth0")
    assert neighbourhood("::ffff:192.0.2.1") == neighbourhood("192.0.2.1")
    assert neighbourhood("::ffff:192.0.2.1") != neighbourhood("::ffff:192.0.2.2")
