"""Tests of the arguments --bandwidth, --link and --to."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from redirty.collector.cli.arguments.bandwidth import Bandwidth, add_bandwidth, bandwidth_of
from redirty.collector.errors import RedirtyError, UsageError
from redirty.collector.net import link as measured
from redirty.collector.net.link import LinkBandwidth

LINK = LinkBandwidth(
    "v5", 125e6, "eth0", 12.5e6, 25e6, "tbf 1: on v5", 5e6, 20e6, sampled_s=2.0, virtual=False
)


def requested(*words: str, required: bool = False) -> Bandwidth | None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_bandwidth(parser, "one of", required=required)
    return bandwidth_of(parser.parse_args(words))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Collect the measurements of links instead of measuring."""
    calls: list[dict[str, Any]] = []

    def link_bandwidth(**what: Any) -> LinkBandwidth:
        calls.append(what)
        return LINK

    monkeypatch.setattr(measured, "link_bandwidth", link_bandwidth)
    return calls


def test_a_typed_rate() -> None:
    found = requested("--bandwidth", "10Gbit")
    assert found == Bandwidth(1.25e9, "10.0 Gbit/s, as given")
    assert found.as_json() == {"bandwidth_bytes_per_s": 1.25e9, "link": None}
    assert requested() is None


def test_a_link(seen: list[dict[str, Any]]) -> None:
    found = requested("--link", "v5", "--sample", "2s")
    assert found is not None
    assert found.bytes_per_s == 20e6
    assert found.source == (
        "160.0 Mbit/s free of v5 through eth0: 1.0 Gbit/s, 100.0 Mbit/s in use over 2.0 s, "
        "limited to 200.0 Mbit/s by tbf 1: on v5 with 40.0 Mbit/s in use"
    )
    assert found.as_json()["link"]["speed_bytes_per_s"] == 125e6
    assert requested("--to", "host.example") is not None
    assert seen == [
        {"iface": "v5", "host": None, "seconds": 2.0},
        {"iface": None, "host": "host.example", "seconds": 1.0},
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bandwidth", "10"], "has no unit"),
        (["--bandwidth", "1GB", "--sample", "1s"], "needs --link or --to"),
        (["--sample", "1s"], "needs --link or --to"),
        (["--link", "v5", "--sample", "0"], "--sample must be positive, got 0"),
        (["--link", "v5", "--sample", "x"], "invalid time"),
    ],
)
def test_wrong_usage(words: list[str], message: str, seen: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match=message):
        requested(*words)
    assert not seen, "no link is measured in vain"


@pytest.mark.parametrize(
    "words", [["--link", "a", "--to", "b"], ["--bandwidth", "1GB", "--to", "b"]]
)
def test_only_one_of_them(words: list[str]) -> None:
    with pytest.raises(argparse.ArgumentError, match="not allowed with"):
        requested(*words)


def test_one_of_them_may_be_required() -> None:
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        requested(required=True)


def test_a_link_with_nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    full = LinkBandwidth("eth0", 1e6, "eth0", 1e6, None, None, None, 0.0, 1.0, virtual=False)
    monkeypatch.setattr(measured, "link_bandwidth", lambda **_: full)
    with pytest.raises(
        RedirtyError, match=r"no bandwidth is left: 0 bit/s free of eth0: 8.0 Mbit/s"
    ):
        requested("--link", "eth0")
