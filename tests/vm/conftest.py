"""Tables of what ran in emulated machines, printed at the end, whichever test process ran them."""

from __future__ import annotations

from typing import Any

from tests.vm.matrix import TABLE


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the tables."""
    for outcome in ("passed", "failed"):
        for found in terminalreporter.stats.get(outcome, []):
            for name, text in found.user_properties:
                if name == TABLE:
                    terminalreporter.section(found.nodeid)
                    terminalreporter.write(text)
