"""Rates and times as people type them, and as they read them."""

from __future__ import annotations

import math
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
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_rate(text: str) -> float:
    """Bytes per second from 10Gbit, 1.25GB, 200MiB.

    Errors: UsageError, also for a number with no unit: nobody can tell bits from bytes in it.
    """
    match = _RATE.fullmatch(text.strip())
    if not match:
        if re.fullmatch(r"[\d.]+\s*[kKMGT]?i?", text.strip()):
            raise UsageError(
                f"rate {text!r} has no unit: write 10Gbit, 1.25GB or 200MiB (per second)"
            )
        raise UsageError(
            f"rate {text!r} is not understood: write 10Gbit, 1.25GB or 200MiB (per second)"
        )
    number, prefix, unit = match.groups()
    rate = float(number) * _PREFIX[prefix or ""] / (1 if unit == "B" else 8)
    if rate <= 0:
        raise UsageError(f"rate {text!r} must be more than 0")
    if not math.isfinite(rate):
        raise UsageError(f"rate {text[:20]!r}... is too large: write 10Gbit, 1.25GB or 200MiB")
    return rate


def parse_size(text: str) -> float:
    """Bytes from 512MiB, 1.5GB, 4096B; also 0.

    Errors: UsageError.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"size {text!r} is not understood: write 512MiB or 1.5GB")
    size = float(match[1]) * _PREFIX[match[2] or ""]
    if not math.isfinite(size):
        raise UsageError(f"size {text[:20]!r}... is too large: write 512MiB or 1.5GB")
    return size


def parse_time(text: str, *, unit_needed: bool = False) -> float:
    """Seconds from 200ms, 1.5s, 2m; a bare number is seconds unless a unit is needed.

    Errors: UsageError.
    """
    match = _TIME.fullmatch(text.strip())
    if not match or (unit_needed and not match[2]):
        raise UsageError(f"time {text!r} is not understood: write 200ms or 1.5s")
    seconds = float(match[1]) * _SECONDS[match[2] or "s"]
    if not math.isfinite(seconds):  # more digits than a number can have
        raise UsageError(f"time {text[:20]!r}... is too long: write 200ms or 1.5s")
    return seconds


def show_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def show_pages(count: float) -> str:
    """Pages as a size."""
    return show_bytes(count * 4096)


def show_bits(bytes_per_s: float) -> str:
    """A link's rate: 1.25e9 bytes per second -> '10.0 Gbit/s'."""
    bits = bytes_per_s * 8
    for unit in ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"):
        if abs(bits) < 1000:
            return f"{bits:.0f} {unit}" if unit == "bit/s" else f"{bits:.1f} {unit}"
        bits /= 1000
    return f"{bits:.1f} Tbit/s"


def show_time(seconds: float) -> str:
    """0.0123 -> '12.3 ms'."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.0f} us"


def plural(n: float, one: str, several: str = "") -> str:
    """'1 round', '2 rounds', '2 processes'. several: where it is not the word with an s."""
    return f"{n} {one if n == 1 else several or one + 's'}"
