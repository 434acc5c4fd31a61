"""What every trap's test has in common."""

from __future__ import annotations

from typing import NoReturn

import pytest


def not_applicable(reason: str) -> NoReturn:
    """Ends a test that cannot be shown on this kernel, for the kernel's own reason: no failure."""
    pytest.skip(f"n/a: {reason}")
