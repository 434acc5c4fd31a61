"""The start of a command as a target."""

from __future__ import annotations

from redirty.collector.errors import GoneError, TargetEndedError
from redirty.collector.target.command import Command
from redirty.collector.tracking.rounds import Recorder


def start_command(recorder: Recorder, command: Command) -> None:
    """Run a command so that it is armed and traced from its first instruction on.

    Raises: RedirtyError when it cannot be run; TargetEndedError when it ended immediately.
    """
    recorder.members.injector.hold_at_exec(command.pid)
    recorder.tracer.set_target(command.pid, command.pid, 0)
    command.release()
    try:
        descriptor = recorder.members.injector.wait_for_exec(
            command.pid, userfaultfd=recorder.members.method == "uffd"
        )
        command.check_started()
        recorder.members.adopt(command.pid, descriptor)
        recorder.begin()
    except GoneError:
        command.check_started()
        raise TargetEndedError(f"{command.argv[0]} ended at once") from None
    finally:
        recorder.members.injector.resume()
