"""Settings for all tests."""

from __future__ import annotations

from hypothesis import settings

# No test depends on how fast the machine is at that moment.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
