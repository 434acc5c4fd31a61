"""Parse rates, sizes and times that users type, and format them for display."""

from __future__ import annotations

import re
from dataclasses import dataclass

from redirty.collector.errors import UsageError

_NUMBER = r"(\d+\.?\d*|\.\d+)"  # 1, 1.5, 1., .5
# Bits or bytes, which a single b or B tells apart; a lower-case prefix goes with a unit spelled out, or with none.
_RATE = re.compile(
    _NUMBER
    + r"\s*(?:(?P<prefix>[kKMGT]i?)?(?P<letter>[bB])(?:/s|ps)?"
    + r"|(?P<bits>[kKmMgGtT]i?)?(?:[bB][iI][tT][sS]?(?:/s|ps)?|(?<=[mgt])bps)"
    + r"|(?P<bare>[kKmMgGtT]))"
)
_EITHER = re.compile(_NUMBER + r"\s*[mgt]i?[bB](?:/s)?")  # 10gb: bits or bytes
_SIZE = re.compile(_NUMBER + r"\s*(?:(?P<prefix>[kKmMgGtT]i?)?[bB]|(?P<bare>[kKmMgGtT]i?))")
_TIME = re.compile(_NUMBER + r"\s*(us|ms|s|m|min|h)?")
_DAY_S = 86400.0
# No link, memory or time is beyond these; within them the model's figures are finite.
_MIN_RATE, _MAX_RATE = 1 / 8, 1e20
_MAX_SIZE = float(1 << 64)
_MIN_TIME_S, _MAX_TIME_S = 1e-9, 1e10
_TERA = 4  # the highest power of a prefix
_MIN_SHOWN, _MAX_SHOWN = 0.01, 9999.5  # numbers that are shown with the user's prefix
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class RateUnit:
    """The unit in which a rate was given.

    Attributes:
        letter: bit or B.
        binary: whether prefixes are powers of 1024.
        power: of the prefix: 0 none, 1 k, 2 M, 3 G, 4 T.
    """

    letter: str
    binary: bool
    power: int

    @property
    def base(self) -> float:
        """Return by how much one prefix is more than the one before."""
        return 1024.0 if self.binary else 1000.0

    @property
    def per_byte(self) -> int:
        """Return how many of the unit without a prefix are a byte."""
        return 8 if self.letter == "bit" else 1

    def scaled(self, bytes_per_s: float, power: int) -> float:
        """Return a rate in this unit, with another prefix."""
        return bytes_per_s * self.per_byte / self.base**power

    def bytes_per_s(self, number: float) -> float:
        """Return the rate that a number of this unit is, exactly where it is whole."""
        return number * self.base**self.power / self.per_byte


def _rate_of(text: str) -> tuple[float, RateUnit] | None:
    """Return the number and the unit of a rate; None when the text is none."""
    match = _RATE.fullmatch(text.strip())
    if not match:
        return None
    prefix = match["prefix"] or match["bits"] or match["bare"] or ""
    letter = "B" if match["letter"] == "B" else "bit"
    power = "KMGT".index(prefix[0].upper()) + 1 if prefix else 0
    return float(match[1]), RateUnit(letter, prefix.endswith("i"), power)


def rate_unit(text: str) -> RateUnit | None:
    """Return the unit of a rate as a user wrote it; None when the text is no rate."""
    found = _rate_of(text)
    return None if found is None else found[1]


def parse_rate(text: str, name: str) -> float:
    """Parse a rate such as 10Gbit, 10G, 40 Mbps, 1.25GB or 200MiB; return bytes per second.

    A prefix alone means bits, as on every network card. name: of the option or input, for messages.

    Raises: UsageError when it is not a rate, or when bits and bytes cannot be told apart.
    """
    found = _rate_of(text)
    if found is None:
        if _EITHER.fullmatch(text.strip()):
            raise UsageError(
                f"{name}: rate {text!r} may be bits or bytes; write 10Gbit or 10GB (per second)"
            )
        if re.fullmatch(r"[\d.]+\s*[kKMGT]?i?", text.strip()):
            raise UsageError(
                f"{name}: rate {text!r} has no unit; write 10Gbit, 1.25GB or 200MiB (per second)"
            )
        raise UsageError(
            f"{name}: invalid rate {text!r}; write 10Gbit, 1.25GB or 200MiB (per second)"
        )
    number, unit = found
    rate = unit.bytes_per_s(number)
    if rate <= 0:
        raise UsageError(f"{name} must be positive, got {text}")
    if not _MIN_RATE <= rate <= _MAX_RATE:
        size = "small" if rate < 1 else "large"
        raise UsageError(
            f"{name}: rate {text[:20]!r}... is too {size}; write 10Gbit, 1.25GB or 200MiB"
        )
    return rate


def parse_size(text: str, name: str) -> float:
    """Parse a size such as 512MiB, 1.5GB, 8G or 4096B; return bytes, possibly 0.

    A prefix alone is a power of 1024, as for a guest's memory. name: of the option or input, for messages.

    Raises: UsageError when it is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{name}: invalid size {text!r}; write 512MiB or 1.5GB")
    prefix = match["bare"] or match["prefix"] or ""
    base = 1024.0 if match["bare"] or prefix.endswith("i") else 1000.0
    size = float(match[1]) * base ** ("KMGT".index(prefix[0].upper()) + 1 if prefix else 0)
    if size > _MAX_SIZE:
        raise UsageError(f"{name}: size {text[:20]!r}... is too large; write 512MiB or 1.5GB")
    return size


def parse_time(text: str, name: str, *, bare_seconds: bool = False) -> float:
    """Parse a time such as 200ms, 1.5s or 2m; return seconds.

    bare_seconds: a number without a unit is in seconds, as vmstat's interval; else only 0 needs none. name: of the
    option or input, for messages.

    Raises: UsageError when it is not a time.
    """
    match = _TIME.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{name}: invalid time {text!r}; write 200ms or 1.5s")
    seconds = float(match[1]) * _SECONDS[match[2] or "s"]
    if seconds > _MAX_TIME_S:
        raise UsageError(f"{name}: time {text[:20]!r}... is too long; write 200ms or 1.5s")
    if not (match[2] or bare_seconds) and seconds >= _MIN_TIME_S:
        number = match[1]
        raise UsageError(f"{name}: time {number!r} has no unit; write {number}ms or {number}s")
    return seconds


def parse_positive_time(
    text: str, name: str, max_s: float | None = None, *, bare_seconds: bool = False
) -> float:
    """Parse a time above zero; return seconds. name: of the option or input, for messages.

    bare_seconds: as for parse_time().

    Raises: UsageError when it is not a time, not positive, or above `max_s`.
    """
    seconds = parse_time(text, name, bare_seconds=bare_seconds)
    if seconds <= 0:
        raise UsageError(f"{name} must be positive, got {text}")
    if seconds < _MIN_TIME_S:
        raise UsageError(f"{name}: time {text[:20]!r}... is too short; write 200ms or 1.5s")
    if max_s is not None and seconds > max_s:
        raise UsageError(f"{name} must be at most {max_s / _DAY_S:.0f} days, got {text}")
    return seconds


def show_bytes(count: float) -> str:
    """Format bytes: 1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def show_pages(count: float) -> str:
    """Format a number of pages as a size."""
    # Imports numpy, which the parsing of a command line must not wait for.
    from redirty.collector.pageset import PAGE_SIZE

    return show_bytes(count * PAGE_SIZE)


def show_bits(bytes_per_s: float) -> str:
    """Format the rate of a link in bits: 1.25e9 bytes per second -> '10.0 Gbit/s'."""
    bits = bytes_per_s * 8
    for unit in ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"):
        if abs(bits) < 1000:
            return f"{bits:.0f} {unit}" if unit == "bit/s" else f"{bits:.1f} {unit}"
        bits /= 1000
    return f"{bits:.1f} Tbit/s"


def show_rate(bytes_per_s: float, unit: RateUnit | None) -> str:
    """Format the rate of a link in the unit of the user, with another prefix where its number would be unhandy.

    unit: None: bits.
    """
    if unit is None:
        return show_bits(bytes_per_s)
    power = unit.power
    while power < _TERA and unit.scaled(bytes_per_s, power) >= _MAX_SHOWN:
        power += 1
    while power > 0 and unit.scaled(bytes_per_s, power) < _MIN_SHOWN:
        power -= 1
    value = unit.scaled(bytes_per_s, power)
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    number = f"{value:.{digits}f}"
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    prefix = ("", "Ki" if unit.binary else "k", "M", "G", "T")[power]
    i = "i" if unit.binary and power > 1 else ""
    return f"{number} {prefix}{i}{unit.letter}/s"


def show_time(seconds: float) -> str:
    """Format a duration in seconds: 0.0123 -> '12.3 ms'."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.0f} us"


def plural(n: float, one: str, several: str = "") -> str:
    """Format a count with its noun: '1 round', '2 rounds'.

    several: the plural where it is not the singular with an s.
    """
    return f"{n} {one if n == 1 else several or one + 's'}"
