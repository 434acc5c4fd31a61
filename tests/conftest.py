"""For all tests."""

from __future__ import annotations

from hypothesis import settings

# No test depends on how quick the machine is just then.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
