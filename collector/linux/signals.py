"""Signals that end this program."""

from __future__ import annotations

import signal


def termination_signals() -> list[signal.Signals]:
    """Return the signals that end this program.

    SIGINT and SIGHUP are left out where whoever started it had them ignored (nohup, a shell's
    background job).
    """
    usual = (signal.SIGINT, signal.SIGHUP)
    return [signal.SIGTERM, *(n for n in usual if signal.getsignal(n) is not signal.SIG_IGN)]
