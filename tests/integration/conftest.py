"""Fixtures of tests that trace real programs on the running kernel."""

from __future__ import annotations

from tests.support.fixtures import cgroup, root, sleeper, start, target, tracer, tracing

__all__ = ["cgroup", "root", "sleeper", "start", "target", "tracer", "tracing"]
