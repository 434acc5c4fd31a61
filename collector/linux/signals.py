"""Which signals end this program."""

from __future__ import annotations

import signal


def termination_signals() -> list[signal.Signals]:
    """The signals that end what goes on. SIGINT and SIGHUP are none where whoever started us had them
    ignored (nohup, a shell's background job)."""
    usual = (signal.SIGINT, signal.SIGHUP)
    return [signal.SIGTERM, *(n for n in usual if signal.getsignal(n) is not signal.SIG_IGN)]
