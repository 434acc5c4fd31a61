"""Addresses of receivers."""

from __future__ import annotations

import pytest
from redirty.collector.errors import UsageError
from redirty.collector.mirror.transport.listener import parse_address
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
