"""Parse rates, sizes and times that users type, and format them for display."""

from __future__ import annotations

import re

from redirty.collector.errors import UsageError

_PREFIX = {"": 1.0}
_PREFIX |= {p: 1000.0**i for i, p in enumerate(("k", "M", "G", "T"), 1)}
_PREFIX |= {"K": 1000.0}
_PREFIX |= {f"{p}i": 1024.0**i for i, p in enumerate(("K", "M", "G", "T"), 1)}
_NUMBER = r"(\d+\.?\d*|\.\d+)"  # 1, 1.5, 1., .5
_RATE = re.compile(_NUMBER + r"\s*([kKMGT]i?)?(bit|bits|b|B)(?:/s|ps)?")
_SIZE = re.compile(_NUMBER + r"\s*([kKMGT]i?)?B")
_TIME = re.compile(_NUMBER + r"\s*(us|ms|s|m|min|h)?")
_DAY_S = 86400.0
# No link, memory or time is beyond these; within them the model's figures are finite.
_MIN_RATE, _MAX_RATE = 1 / 8, 1e20
_MAX_SIZE = float(1 << 64)
_MIN_TIME_S, _MAX_TIME_S = 1e-9, 1e10
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_rate(text: str, name: str) -> float:
    """Parse a rate such as 10Gbit, 1.25GB or 200MiB; return bytes per second.

    name: of the option or input, for messages.

    Raises: UsageError when it is not a rate, or has no unit: bits and bytes could not be told apart.
    """
    match = _RATE.fullmatch(text.strip())
    if not match:
        if re.fullmatch(r"[\d.]+\s*[kKMGT]?i?", text.strip()):
            raise UsageError(
                f"{name}: rate {text!r} has no unit; write 10Gbit, 1.25GB or 200MiB (per second)"
            )
        raise UsageError(
            f"{name}: invalid rate {text!r}; write 10Gbit, 1.25GB or 200MiB (per second)"
        )
    number, prefix, unit = match.groups()
    rate = float(number) * _PREFIX[prefix or ""] / (1 if unit == "B" else 8)
    if rate <= 0:
        raise UsageError(f"{name} must be positive, got {text}")
    if not _MIN_RATE <= rate <= _MAX_RATE:
        size = "small" if rate < 1 else "large"
        raise UsageError(
            f"{name}: rate {text[:20]!r}... is too {size}; write 10Gbit, 1.25GB or 200MiB"
        )
    return rate


def parse_size(text: str, name: str) -> float:
    """Parse a size such as 512MiB, 1.5GB or 4096B; return bytes, possibly 0.

    name: of the option or input, for messages.

    Raises: UsageError when it is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{name}: invalid size {text!r}; write 512MiB or 1.5GB")
    size = float(match[1]) * _PREFIX[match[2] or ""]
    if size > _MAX_SIZE:
        raise UsageError(f"{name}: size {text[:20]!r}... is too large; write 512MiB or 1.5GB")
    return size


def parse_time(text: str, name: str, *, unit_needed: bool = False) -> float:
    """Parse a time such as 200ms, 1.5s or 2m; return seconds.

    A bare number is in seconds, unless unit_needed. name: of the option or input, for messages.

    Raises: UsageError when it is not a time.
    """
    match = _TIME.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{name}: invalid time {text!r}; write 200ms or 1.5s")
    if unit_needed and not match[2]:
        raise UsageError(f"{name}: time {text!r} has no unit; write 200ms or 1.5s")
    seconds = float(match[1]) * _SECONDS[match[2] or "s"]
    if seconds > _MAX_TIME_S:
        raise UsageError(f"{name}: time {text[:20]!r}... is too long; write 200ms or 1.5s")
    return seconds


def parse_positive_time(
    text: str, name: str, max_s: float | None = None, *, unit_needed: bool = False
) -> float:
    """Parse a time above zero; return seconds. name: of the option or input, for messages.

    unit_needed: as for parse_time().

    Raises: UsageError when it is not a time, not positive, or above `max_s`.
    """
    seconds = parse_time(text, name, unit_needed=unit_needed)
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
