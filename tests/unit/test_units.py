"""Tests of parsing and formatting rates, sizes and times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redirty.collector import units
from redirty.collector.errors import UsageError


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [
        ("10Gbit", 1.25e9),
        ("10Gbit/s", 1.25e9),
        ("10Gbps", 1.25e9),
        ("1.25GB", 1.25e9),
        ("200MiB", 200 * 1024**2),
        ("200 MiB/s", 200 * 1024**2),
        ("1GiB", 1024**3),
        ("8bit", 1),
        ("8b", 1),
        ("1B", 1),
        ("1kB", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("16Kibit", 2048),
        ("0.5TB", 0.5e12),
        (" 34MiB ", 34 * 1024**2),
        (".5GB", 0.5e9),
        ("1.GB", 1e9),
    ],
)
def test_rates(text: str, bytes_per_second: float) -> None:
    assert units.parse_rate(text, "--bandwidth") == pytest.approx(bytes_per_second)


@pytest.mark.parametrize(
    "text",
    [
        "", "MiB", "-1MiB", "1e9B", "10GBit", "10 Mega", "1,5GB", "0MiB", "0.0GB", "nanB",
        "infB", "10GB/h", "0x10B", ".GB", "1.5.GB", "10mB", "1GiBB", "+1GB", "9" * 400 + "B",
    ],
)  # fmt: skip
def test_bad_rates(text: str) -> None:
    with pytest.raises(UsageError):
        units.parse_rate(text, "--bandwidth")


@pytest.mark.parametrize("digits", [30, 400, 5000])
def test_numbers_beyond_any_machine_are_refused(digits: int) -> None:
    """What is accepted keeps every figure of a prediction finite."""
    large, small = "9" * digits, "0." + "0" * digits + "1"
    with pytest.raises(UsageError, match="too large"):
        units.parse_rate(large + "TB", "--bandwidth")
    with pytest.raises(UsageError, match="too large"):
        units.parse_size(large + "TB", "--memory")
    with pytest.raises(UsageError, match="too long"):
        units.parse_time(large, "--wait")
    for parse, unit in ((units.parse_rate, "bit"), (units.parse_positive_time, "us")):
        with pytest.raises(UsageError, match=r"too s(mall|hort)|must be positive"):
            parse(small + unit, "--value")


@pytest.mark.parametrize("text", ["10", "10G", "1.5Gi", "200 M"])
def test_a_rate_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--bandwidth: rate .* has no unit; write 10Gbit"):
        units.parse_rate(text, "--bandwidth")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("200ms", 0.2),
        ("1.5s", 1.5),
        ("2m", 120),
        ("2min", 120),
        ("1h", 3600),
        ("250us", 0.00025),
        ("1", 1),
        ("0.25", 0.25),
        (" 3 s ", 3),
        ("0", 0),
        (".1", 0.1),
        (".5s", 0.5),
        ("1.", 1),
        ("1.s", 1),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert units.parse_time(text, "--duration") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "", "s", "-1s", "-.1", "1e3", "1 day", "1,5s", "nan", "inf", "-inf", "infinity", "1s2",
        "1S", ".", ".s", "..5", "1..", "1.5.", "+1", "9" * 400, "9" * 307 + "h",
    ],
    ids=lambda text: repr(text[:10]),
)  # fmt: skip
def test_bad_times(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--duration: .*; write 200ms or 1\.5s$"):
        units.parse_time(text, "--duration")


def test_a_time_may_require_a_unit() -> None:
    assert units.parse_time("300ms", "--max-pause", unit_needed=True) == pytest.approx(0.3)
    with pytest.raises(UsageError, match=r"^--max-pause: time '300' has no unit"):
        units.parse_time("300", "--max-pause", unit_needed=True)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (5 * 1024**2, "5.0 MiB"),
        (3.25 * 1024**3, "3.2 GiB"),
        (2048 * 1024**4, "2048.0 TiB"),
    ],
)
def test_formatted_sizes(count: float, text: str) -> None:
    assert units.show_bytes(count) == text


def test_pages_are_shown_as_sizes() -> None:
    assert units.show_pages(256) == "1.0 MiB"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.34, "12.3 s"), (0.0123, "12.3 ms"), (0.000456, "456 us"), (0, "0 us"), (1, "1.0 s")],
)
def test_formatted_times(seconds: float, text: str) -> None:
    assert units.show_time(seconds) == text


@given(st.integers(1, 10**9), st.sampled_from(["B", "KiB", "MiB", "GiB"]))
def test_a_rate_is_proportional_to_its_number(number: int, unit: str) -> None:
    assert units.parse_rate(f"{number}{unit}", "rate") == pytest.approx(
        number * units.parse_rate(f"1{unit}", "rate")
    )
