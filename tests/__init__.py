"""Tests and benchmarks of redirty."""

import signal

# A shell that runs this in the background has these ignored, and what is started here would leave them
# so, as redirty does: it could not be told to end.
for _number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        _usual = signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL
        signal.signal(_number, _usual)
