"""The program redirty: parses the command line, runs a command, turns errors into one line."""

from __future__ import annotations

import importlib
import os
import sys

from redirty.collector import VERSION
from redirty.collector.cli import interrupts, streams
from redirty.collector.errors import RedirtyError, UsageError, failure_of_the_machine, one_line

TYPE_CHECKING = False  # not typing's: what is imported here delays the answer to ctrl-C
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

# command -> (module, one line); the module is imported only when its command is used
VERBS = {
    "check": ("check", "show what this kernel and user can do, and why not"),
    "record": ("record", "trace a target's write faults into a recording"),
    "report": ("report", "summarize a recording on the terminal"),
    "predict": ("predict", "predict whether a mirror converges, and how soon"),
    "mirror": ("mirror", "copy a running target's memory, then stop it to copy the rest"),
    "receive": ("receive", "receive a mirror over the network"),
    "export-criu": ("export_criu", "convert a mirror to CRIU page images"),
    "export-guest": ("export_guest", "convert the guest memory of a mirrored QEMU to a raw image"),
    "top": ("top", "show a target live, or replay a recording"),
    "pagetables": ("pagetables", "show where page tables are, or move them to another NUMA node"),
    "demo": ("demo", "record a built-in workload and check the result"),
    "completion": ("completion", "print a script that completes command lines in a shell"),
}

_JSON = "redirty.collector.json_text"
_SHOWN = 100  # characters of a word that is no command

_EPILOG = """\
examples:
  sudo redirty check                                what works here, and why not
  sudo redirty record -p 1234 -d 10 -o rec          ten rounds of one second
  sudo redirty record --tree 1234 100ms 50 -o rec   fifty rounds of 100 ms, with children
  sudo redirty record -o rec -- ./server --port 80  a command from its first instruction
  redirty report rec                                what was dirtied and re-dirtied
  redirty predict rec --bandwidth 1Gbit             would a mirror converge?
  sudo redirty top -p 1234                          the same and more, live
  sudo redirty pagetables -p 1234                   which NUMA nodes hold its page tables

exit codes: 0 success, 1 failure, 2 wrong usage, 3 the target ended early (what was
recorded is kept), 130 interrupted (likewise kept)
"""


def _parser(verb: str | None) -> argparse.ArgumentParser:
    """Build the parser, with the arguments of one command only: the others would cost their imports."""
    import argparse

    from redirty.collector.cli.arguments.parser import Parser

    parser = Parser(
        prog="redirty",
        description="Log the write faults of a running workload with BPF: which pages it dirties, which "
        "it re-dirties, and how fast.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"redirty {VERSION}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for name, (_, line) in VERBS.items():
        sub = verbs.add_parser(name, help=line, **_settings(line))
        if name == verb:
            _add_arguments(sub, name)
    return parser


def parser_of(verb: str) -> argparse.ArgumentParser:
    """Build the parser of one command."""
    from redirty.collector.cli.arguments.parser import Parser

    parser = Parser(prog=f"redirty {verb}", **_settings(VERBS[verb][1]))
    _add_arguments(parser, verb)
    return parser


def _settings(line: str) -> dict[str, Any]:
    """Return the settings of a command's parser. line: what it does."""
    import argparse

    return {
        "description": line[0].upper() + line[1:] + ".",
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,  # an abbreviation's meaning changes when an option is added
    }


def _add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", help="log more on stderr")
    importlib.import_module(f"redirty.collector.cli.{VERBS[verb][0]}").arguments(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """Run redirty; return its exit code.

    argv: the arguments; None: those of the process, whose streams and signals are then set up.
    """
    handled: list[int] = []
    words = list(sys.argv[1:] if argv is None else argv)
    if _JSON in sys.modules:  # of an earlier call in this process
        sys.modules[_JSON].answer.printed = False
    try:
        try:
            if argv is None:
                streams.repair_streams()
                handled = interrupts.handle_signals()
            code = _run(words)
            sys.stdout.flush()
        finally:
            interrupts.exit_on_signals(handled, 130)
    except BaseException as e:
        code = _report(e, as_json=_wants_json(words))
        try:
            sys.stdout.flush()
        except (OSError, RedirtyError):  # the first error is the one to report
            streams.drop_output()
        if argv is None and isinstance(e, ImportError | MemoryError):
            # A library that was loaded in part may crash in the interpreter's end.
            os._exit(code)
    interrupts.exit_on_signals(handled, code)
    return code


def _run(words: list[str]) -> int:
    """Run the command; return its exit code."""
    command: list[str] = []
    if "--" in words:
        at = words.index("--")
        words, command = words[:at], words[at + 1 :]
    verb = next((w for w in words if not w.startswith("-")), None)
    if verb == "help":  # as other programs have it: help, help COMMAND
        words = [*[w for w in words if w != "help"][:1], "--help"]
        verb = words[0] if len(words) > 1 else None
    if verb is not None and verb not in VERBS:
        from redirty.collector.cli.arguments.parser import did_you_mean

        raise UsageError(
            f"there is no command {verb[:_SHOWN]!r}{did_you_mean(verb, VERBS)}; 'redirty --help' lists the commands"
        )
    try:
        options = _parser(verb).parse_args(words)
    except SystemExit as e:  # argparse has printed the reason
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


def _print_json(error: RedirtyError) -> None:
    """Print an error as an answer, unless stdout is the reason for it."""
    try:
        answer = importlib.import_module(_JSON).answer
        answer.print_error(one_line(str(error)), error.exit_code)
        sys.stdout.flush()
    except (OSError, RedirtyError):
        streams.drop_output()


def _wants_json(words: list[str]) -> bool:
    """Return whether a command line asks for JSON; what follows -- is another command's."""
    return "--json" in (words[: words.index("--")] if "--" in words else words)


def _report(error: BaseException, *, as_json: bool) -> int:
    """Print one line that says why the program ended; return the exit code. as_json: also print it as an answer."""
    if isinstance(error, RedirtyError):
        print(f"redirty: {one_line(str(error))}", file=sys.stderr)
        if as_json:
            _print_json(error)
        return error.exit_code
    if isinstance(error, BrokenPipeError):  # the reader of the output is gone
        streams.drop_output()
        return 0
    # Some imports turn an interruption into another error.
    if isinstance(error, KeyboardInterrupt) or interrupts.received:
        print("redirty: interrupted", file=sys.stderr)
        return 130
    if _debugging() or not isinstance(error, Exception):
        raise error
    failure = failure_of_the_machine(error)
    if failure is not None:
        print(f"redirty: {one_line(str(failure))}", file=sys.stderr)
        return 1
    print(
        f"redirty: internal error: {type(error).__name__}: {one_line(str(error))} (a bug: please "
        "report it with the output of the same command under REDIRTY_DEBUG=1)",
        file=sys.stderr,
    )
    return 1


def _debugging() -> bool:
    return bool(os.environ.get("REDIRTY_DEBUG"))


if __name__ == "__main__":
    sys.exit(main())
