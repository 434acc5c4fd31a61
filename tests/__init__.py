"""Tests and benchmarks of redirty."""

import signal

# A shell that runs this in the background ignores these signals; what the tests start would inherit that
# and keep it, as redirty does: no such signal could end it.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        _usual = signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL
        signal.signal(_number, _usual)
