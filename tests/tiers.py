"""Requirements of a test on its machine: a skip with the reason, or a failure where they must be met."""

from __future__ import annotations

import os
import shutil


def require(condition: object, reason: str) -> None:
    """Skip the test unless the condition holds; with REDIRTY_REQUIRE=1 fail it instead."""
    if condition:
        return
    import pytest  # takes seconds to import in an emulated machine, whose scripts use this module

    if os.environ.get("REDIRTY_REQUIRE") == "1":
        pytest.fail(f"required here: {reason}")
    pytest.skip(reason)


def require_root() -> None:
    """Require root, which tracing needs."""
    require(os.geteuid() == 0, "needs root")


def require_program(name: str, package: str) -> str:
    """Return the path of a program; require that it is installed."""
    path = shutil.which(name)
    require(path, f"needs {name} (Debian package {package})")
    return path or ""
