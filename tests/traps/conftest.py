"""What the traps' tests need: the fixtures of tests/host."""

from tests.host.conftest import root, sleeper, start, target, tracer, tracing

__all__ = ["root", "sleeper", "start", "target", "tracer", "tracing"]
