"""The program redirty: reads the command line, runs a verb, turns errors into one line."""

from __future__ import annotations

import importlib
import io
import os
import sys

from redirty.collector import VERSION
from redirty.collector.errors import RedirtyError, one_line, why

TYPE_CHECKING = False  # typing's: what is imported here is imported before main() can answer ctrl-C
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from _typeshed import ReadableBuffer

# verb -> (module, one line); the module is only imported when its verb is used
VERBS = {
    "check": ("check", "what this kernel and user can do, with the reason when not"),
    "record": ("record", "trace a target's write faults into a recording"),
    "report": ("report", "sum a recording up on the terminal"),
    "predict": ("predict", "would mirroring a target's memory converge, and how soon"),
    "mirror": ("mirror", "copy a running target's memory, then stop it for the rest"),
    "receive": ("receive", "the other end of a mirror that goes over a network"),
    "export-criu": ("export_criu", "a mirror as CRIU's page images"),
    "export-guest": ("export_guest", "the guest's memory of a mirrored QEMU, as a raw image"),
    "top": ("top", "the live screen, or a recording replayed on it"),
    "pagetables": ("pagetables", "where page tables live, and moving them between NUMA nodes"),
    "demo": ("demo", "the main job on a built-in workload"),
}

_EPILOG = """\
examples:
  sudo redirty check                                what works here, and why not
  sudo redirty record -p 1234 -d 10 -o rec          ten rounds of one second
  sudo redirty record --tree 1234 100ms 50 -o rec   fifty rounds of 100 ms, with children
  sudo redirty record -o rec -- ./server --port 80  a command from its first instruction
  redirty report rec                                what was dirty, and again
  redirty predict rec --bandwidth 1Gbit             would mirroring it converge?
  sudo redirty top -p 1234                          the same and more, live
  sudo redirty pagetables -p 1234                   on which NUMA nodes its page tables lie

exit codes: 0 done, 1 it could not, 2 wrong usage, 3 the target ended early
(what was recorded is kept), 130 interrupted (likewise kept)
"""


def _parser(verb: str | None) -> argparse.ArgumentParser:
    """The parser, with the arguments of one verb: the others would cost their imports."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="redirty",
        description="Logs the write faults of a running workload with BPF: which pages it dirties, "
        "which it dirties again, and how fast.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"redirty {VERSION}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for name, (module, line) in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=line,
            description=line[0].upper() + line[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
        if name == verb:
            importlib.import_module(f"redirty.collector.cli.{module}").arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs redirty; the exit code. Without argv it is the program: streams and signals are its own."""
    heard: list[int] = []
    try:
        try:
            if argv is None:
                _mend_streams()
                heard = _listen()
            code = _run(list(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
        finally:
            _end_at_once(heard, 130)
    except BaseException as e:
        code = _said(e)
        try:
            sys.stdout.flush()
        except (OSError, RedirtyError):  # what was said comes first
            _drop_output()
    _end_at_once(heard, code)
    return code


def _run(words: list[str]) -> int:
    """Runs the verb; the exit code."""
    command: list[str] = []
    if "--" in words:
        at = words.index("--")
        words, command = words[:at], words[at + 1 :]
    verb = next((w for w in words if not w.startswith("-")), None)
    try:
        options = _parser(verb).parse_args(words)
    except SystemExit as e:  # argparse has said it
        return e.code if isinstance(e.code, int) else 2
    options.command = command
    if options.verbose or _debugging():
        import logging

        level = logging.DEBUG if _debugging() else logging.INFO
        logging.basicConfig(level=level, format="redirty: %(message)s", stream=sys.stderr)
        logging.getLogger("pyroute2").setLevel(logging.WARNING)
    run = importlib.import_module(f"redirty.collector.cli.{VERBS[options.verb][0]}").run
    code: int = run(options)
    return code


def _said(error: BaseException) -> int:
    """Says in one line why it ended; the exit code."""
    if isinstance(error, RedirtyError):
        print(f"redirty: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, BrokenPipeError):  # whoever read our output has enough
        _drop_output()
        return 0
    if isinstance(error, KeyboardInterrupt) or _interrupts:  # some imports turn one into the other
        print("redirty: interrupted", file=sys.stderr)
        return 130
    if _debugging() or not isinstance(error, Exception):
        raise error
    print(
        f"redirty: internal error: {type(error).__name__}: {one_line(str(error))} (a bug: please "
        "report it with the output of the same command under REDIRTY_DEBUG=1)",
        file=sys.stderr,
    )
    return 1


def _debugging() -> bool:
    return bool(os.environ.get("REDIRTY_DEBUG"))


# ---- streams ----


class _CannotWriteError(RedirtyError):
    """Not an OSError: those may be of anything that is read or written."""


class _Stdout(io.FileIO):
    """A write that fails says so."""

    def write(self, data: ReadableBuffer) -> int:
        """See io.FileIO. Errors: _CannotWriteError; BrokenPipeError."""
        try:
            written = super().write(data)
        except BrokenPipeError:
            raise
        except OSError as e:
            raise _CannotWriteError(f"cannot write to stdout: {why(e)}") from None
        if written is None:
            raise _CannotWriteError("cannot write to stdout: it is full, and set not to wait")
        return written


class _Stderr(io.FileIO):
    """What cannot be said is not said, and all else goes on."""

    def write(self, data: ReadableBuffer) -> int:
        """See io.FileIO."""
        try:
            super().write(data)
        except OSError:
            pass
        return memoryview(data).nbytes


def _mend_streams() -> None:
    """Descriptors 0, 1 and 2 are open from here on: no file of ours becomes one of them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = _text(_Stdout(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Stderr(2, "w", closefd=False), sys.stderr)


def _text(raw: io.FileIO, like: object) -> io.TextIOWrapper:
    """A stream of text that is as Python made it, if it did."""
    buffer = io.BufferedWriter(raw)
    if not isinstance(like, io.TextIOWrapper):
        return io.TextIOWrapper(buffer, "utf-8", "backslashreplace")
    by_line = like.line_buffering or like.write_through
    return io.TextIOWrapper(buffer, like.encoding, like.errors, line_buffering=by_line)


def _drop_output() -> None:
    """Nothing more is written to stdout, also not at the interpreter's end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ---- signals ----

_interrupts: list[int] = []


def _listen() -> list[int]:
    """SIGTERM and SIGHUP are as ctrl-C; which ones are heard. What was ignored when we were started
    (nohup, a shell's background job) stays so, but for SIGTERM."""
    import signal

    from redirty.collector.linux.signals import termination_signals

    heard: list[int] = [*termination_signals()]
    sys.unraisablehook = _unraisable
    for number in heard:
        signal.signal(number, _interrupt)
    return heard


def _end_at_once(heard: list[int], code: int) -> None:
    """What a signal does from now on: all is done, and the interpreter's end may take a while."""
    import signal

    for number in heard:
        signal.signal(number, lambda *_: os._exit(code))


def _interrupt(number: int, _frame: object) -> None:
    _interrupts.append(number)
    raise KeyboardInterrupt


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    """An interruption where Python would only print it, and go on: in a callback, while it imports."""
    if not issubclass(what.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(what)
        return
    os.write(2, b"redirty: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
