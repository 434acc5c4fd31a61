"""What a test needs from its machine: a skip with the reason, or a failure where it must be there."""

from __future__ import annotations

import os
import shutil


def require(condition: object, reason: str) -> None:
    """Skips the test unless the condition holds; with REDIRTY_REQUIRE=1 it fails instead."""
    if condition:
        return
    import pytest  # takes seconds in an emulated machine, where programs use what is here

    if os.environ.get("REDIRTY_REQUIRE") == "1":
        pytest.fail(f"required here: {reason}")
    pytest.skip(reason)


def require_root() -> None:
    """Tracing needs root."""
    require(os.geteuid() == 0, "needs root")


def require_program(name: str, package: str) -> str:
    """A program's path."""
    path = shutil.which(name)
    require(path, f"needs {name} (Debian package {package})")
    return path or ""
