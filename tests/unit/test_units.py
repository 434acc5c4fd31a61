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
        ("10gbit", 1.25e9),
        ("10 GBit/s", 1.25e9),
        ("10G", 1.25e9),
        ("10g", 1.25e9),
        ("10gbps", 1.25e9),
        ("200 M", 25e6),
        ("40 Mbps", 5e6),
        ("40mbit/s", 5e6),
        ("1.25GB/s", 1.25e9),
        ("1.25GBps", 1.25e9),
    ],
)
def test_rates(text: str, bytes_per_second: float) -> None:
    assert units.parse_rate(text, "--bandwidth") == pytest.approx(bytes_per_second)


@pytest.mark.parametrize(
    "text",
    [
        "", "MiB", "-1MiB", "1e9B", "10 Mega", "10M/s", "1,5GB", "0MiB", "0.0GB", "nanB",
        "infB", "10GB/h", "10mibps", "0x10B", ".GB", "1.5.GB", "10mB", "1GiBB", "+1GB", "9" * 400 + "B",
    ],
)  # fmt: skip
def test_bad_rates(text: str) -> None:
    with pytest.raises(UsageError):
        units.parse_rate(text, "--bandwidth")


@pytest.mark.parametrize("digits", [30, 400, 5000])
def test_numbers_beyond_any_machine_are_refused(digits: int) -> None:
    """Keep every figure of a prediction finite: larger numbers are refused."""
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


@pytest.mark.parametrize("text", ["10gb", "1.5 mB", "100mib/s"])
def test_a_rate_that_may_be_bits_or_bytes_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--bandwidth: rate .* may be bits or bytes; write 10G"):
        units.parse_rate(text, "--bandwidth")


@pytest.mark.parametrize("text", ["10", "1.5Gi", "200 Mi"])
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
    assert units.parse_time(text, "--duration", bare_seconds=True) == pytest.approx(seconds)


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


@pytest.mark.parametrize("text", ["300", "0.5", " 2 "])
def test_a_time_without_a_unit_is_refused_with_both_meanings(text: str) -> None:
    n = text.strip()
    with pytest.raises(
        UsageError, match=rf"^--downtime: time '{n}' has no unit; write {n}ms or {n}s$"
    ):
        units.parse_time(text, "--downtime")
    assert units.parse_time(f"{n} ms", "--downtime") == pytest.approx(float(n) / 1000)
    assert units.parse_time("0", "--stop-cost") == 0, "is the same in any unit"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8G", 8 << 30),
        ("512m", 512 << 20),
        ("512MiB", 512 << 20),
        ("1.5GB", 1.5e9),
        ("1.5gb", 1.5e9),
        ("4096B", 4096),
        ("4 kiB", 4096),
        ("2Gi", 2 << 30),
    ],
)
def test_sizes(text: str, size: float) -> None:
    assert units.parse_size(text, "--memory") == pytest.approx(size)


@pytest.mark.parametrize("text", ["", "8", "1Gbit", "x", "G", "1e3B", "-1G"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--memory: invalid size"):
        units.parse_size(text, "--memory")


@pytest.mark.parametrize(
    ("given", "bytes_per_s", "text"),
    [
        ("10Gbit", 53.75e6, "0.43 Gbit/s"),
        ("10gbit", 1.25e9, "10 Gbit/s"),
        ("10G", 12.5e4, "1 Mbit/s"),
        ("500Mbit", 62.5e6, "500 Mbit/s"),
        ("500 Mbps", 12.5e9, "100 Gbit/s"),
        ("200MiB", 200 * 1024**2, "200 MiB/s"),
        ("200MiB", 1.3 * 1024**2, "1.3 MiB/s"),
        ("1.25GB", 31.25e6, "0.031 GB/s"),
        ("1GiB", 2048.0, "2 KiB/s"),
        ("8b", 100.0, "800 bit/s"),
    ],
)
def test_a_rate_is_shown_in_the_unit_it_was_given_in(
    given: str, bytes_per_s: float, text: str
) -> None:
    assert units.show_rate(bytes_per_s, units.rate_unit(given)) == text


def test_a_rate_that_nobody_gave_is_shown_in_bits() -> None:
    assert units.show_rate(1.25e9, None) == "10.0 Gbit/s"
    assert units.rate_unit("fast") is None


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


_WRITTEN = st.builds(
    "{}{}{}{}".format,
    st.one_of(st.integers(8, 9999), st.floats(10, 999).map(lambda n: f"{n:.3f}")),
    st.sampled_from(["", " "]),
    st.sampled_from(["", "k", "M", "G", "T", "Ki", "Mi", "Gi"]),
    st.sampled_from(["bit", "b", "B", "bit/s", "bps", "B/s"]),
)


@given(_WRITTEN)
def test_what_is_shown_is_a_rate_of_the_same_value_and_unit(text: str) -> None:
    rate, unit = units.parse_rate(text, "rate"), units.rate_unit(text)
    assert unit is not None
    again = units.show_rate(rate, unit)
    found = units.rate_unit(again)
    assert found is not None
    assert (found.letter, found.binary or found.power == 0) == (
        unit.letter, unit.binary or found.power == 0,
    )  # fmt: skip
    assert units.parse_rate(again, "rate") == pytest.approx(rate, rel=0.05, abs=0.6)


@given(st.floats(1e-6, 1e9))
def test_what_is_shown_of_a_time_is_a_time_of_the_same_value(seconds: float) -> None:
    shown = units.show_time(seconds)
    assert units.parse_time(shown, "time") == pytest.approx(seconds, rel=0.06, abs=6e-7)


@given(st.text("0123456789. kKmMgGtTiIbBitsSps/h", max_size=12))
def test_every_text_is_a_value_or_one_line_of_usage(text: str) -> None:
    for parse in (units.parse_rate, units.parse_size, units.parse_time, units.parse_positive_time):
        try:
            assert 0 <= parse(text, "--x") < float("inf")
        except UsageError as e:
            assert str(e).startswith("--x") and "\n" not in str(e)
