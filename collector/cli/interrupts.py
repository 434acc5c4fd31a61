"""Termination signals of the program: each interrupts it as ctrl-C does."""

from __future__ import annotations

import os
import sys

received: list[int] = []  # signals, in order


def handle_signals() -> list[int]:
    """Let SIGTERM and SIGHUP interrupt the program as SIGINT does; return the signals handled.

    A signal that was ignored at the start (nohup, a background job of a shell) stays ignored, except SIGTERM.
    """
    import signal

    from redirty.collector.linux.signals import termination_signals

    handled: list[int] = [*termination_signals()]
    sys.unraisablehook = _unraisable
    for number in handled:
        signal.signal(number, _interrupt)
    return handled


def exit_on_signals(handled: list[int], code: int) -> None:
    """Exit immediately on these signals: all work is done, and the interpreter's shutdown may take a while."""
    import signal

    for number in handled:
        signal.signal(number, lambda *_: os._exit(code))


def _interrupt(number: int, _frame: object) -> None:
    received.append(number)
    raise KeyboardInterrupt


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    """Exit on an interruption that Python would only print, such as in a callback during an import."""
    if not issubclass(what.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(what)
        return
    os.write(2, b"redirty: interrupted\n")
    os._exit(130)
