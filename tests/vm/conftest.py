"""Tables of what ran in emulated machines, at the end: whichever process of the tests ran them."""

from __future__ import annotations

from typing import Any

from tests.vm.matrix import TABLE


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints them."""
    for outcome in ("passed", "failed"):
        for found in terminalreporter.stats.get(outcome, []):
            for name, text in found.user_properties:
                if name == TABLE:
                    terminalreporter.section(found.nodeid)
                    terminalreporter.write(text)
