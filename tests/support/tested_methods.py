"""The kind of probe and the arming method that a run of the tests covers.

Two environment variables choose them, so that the same tests run on other kernels:
REDIRTY_TEST_PROBE (auto, fentry, kprobe, tracepoint) and REDIRTY_TEST_ARM (auto, uffd, soft-dirty).
"""

from __future__ import annotations

import functools
import os

from redirty.collector.arming.methods import choose
from redirty.collector.ptrace.injector_client import Injector

PROBE = os.environ.get("REDIRTY_TEST_PROBE", "auto")
ARM = os.environ.get("REDIRTY_TEST_ARM", "auto")
METHOD_OPTIONS = ("--probe", PROBE, "--arm", ARM)


@functools.cache
def arm_method() -> str:
    """Return the arming method in use: the requested one, or the one that auto chooses here."""
    injector = Injector()
    try:
        return choose(ARM, injector)
    finally:
        injector.close()
