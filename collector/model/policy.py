"""When a mirror makes another pass, and when it stops the target: the rules that tools follow.

A policy is asked after each pass with what is left to copy. Sources: QEMU migration/migration.c and
ram.c (7.2); CRIU's pre-dump; Xen tools/libs/light/libxl_dom_save.c and tools/libs/guest
sg_save_domain.c (the legacy stop conditions: 5 rounds, 50 pages).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

QEMU_ZERO_PAGE_BYTES = 9  # its 8-byte header and the byte that is repeated
QEMU_PAGE_HEADER_BYTES = 8
QEMU_LOOK_S = 0.1  # BUFFER_DELAY: how often its thread comes to see whether what is left would fit


class Policy(Protocol):
    """name: as the user writes it. zero_page_bytes, header_bytes: what a page costs on the link
    beside its contents. endless: it goes on for ever when it does not converge."""

    @property
    def name(self) -> str: ...

    @property
    def zero_page_bytes(self) -> float: ...

    @property
    def header_bytes(self) -> float: ...

    @property
    def endless(self) -> bool: ...

    def sent_before_look(self, left_bytes: float, bandwidth: float) -> float:
        """Of so many bytes left, how many are sent before the page tables are looked at again."""

    def stop(self, number: int, left_bytes: float, bandwidth: float) -> bool:
        """Whether the target is stopped now, after pass `number` (from 1), with so much left."""


@dataclass(frozen=True)
class Qemu:
    """Passes until what is left fits the downtime limit. It looks at the dirty bitmap again as
    soon as what is left of a pass would fit, so a pass ends early."""

    downtime_s: float
    zero_page_bytes: float = QEMU_ZERO_PAGE_BYTES
    header_bytes: float = QEMU_PAGE_HEADER_BYTES
    endless: bool = True

    @property
    def name(self) -> str:
        return "qemu"

    def sent_before_look(self, left_bytes: float, bandwidth: float) -> float:
        """See Policy."""
        step = bandwidth * QEMU_LOOK_S
        steps = max(1.0, math.ceil((left_bytes - bandwidth * self.downtime_s) / step))
        return min(left_bytes, steps * step)

    def stop(self, number: int, left_bytes: float, bandwidth: float) -> bool:
        """See Policy."""
        return left_bytes <= bandwidth * self.downtime_s


@dataclass(frozen=True)
class Goal:
    """Passes until what is left fits the downtime goal: redirty's own."""

    downtime_s: float
    zero_page_bytes: float = 0.0
    header_bytes: float = 0.0
    endless: bool = True

    @property
    def name(self) -> str:
        return "redirty"

    def sent_before_look(self, left_bytes: float, bandwidth: float) -> float:
        """See Policy."""
        return left_bytes

    def stop(self, number: int, left_bytes: float, bandwidth: float) -> bool:
        """See Policy."""
        return left_bytes <= bandwidth * self.downtime_s


@dataclass(frozen=True)
class Fixed:
    """A set number of passes, then the rest: CRIU's pre-dumps, the 2009 module."""

    passes: int
    kind: str = "passes"
    zero_page_bytes: float = 0.0
    header_bytes: float = 0.0
    endless: bool = False

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.passes}"

    def sent_before_look(self, left_bytes: float, bandwidth: float) -> float:
        """See Policy."""
        return left_bytes

    def stop(self, number: int, left_bytes: float, bandwidth: float) -> bool:
        """See Policy."""
        return number >= self.passes


@dataclass(frozen=True)
class Xen:
    """At most five passes, fewer when fewer than 50 pages are left."""

    passes: int = 5
    few_bytes: float = 50 * 4096
    zero_page_bytes: float = 0.0
    header_bytes: float = 8.0
    endless: bool = False

    @property
    def name(self) -> str:
        return "xen"

    def sent_before_look(self, left_bytes: float, bandwidth: float) -> float:
        """See Policy."""
        return left_bytes

    def stop(self, number: int, left_bytes: float, bandwidth: float) -> bool:
        """See Policy."""
        return number >= self.passes or left_bytes < self.few_bytes
