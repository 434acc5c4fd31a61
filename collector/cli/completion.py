"""redirty completion: prints a script that lets a shell complete redirty's command lines."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

SHELLS = ("bash", "zsh", "fish")
# What a value is, by the name it has in the help.
_DIRECTORIES, _FILES, _INTERFACES, _PROCESSES = "directories", "files", "interfaces", "processes"
_KINDS = {
    "DIR": _DIRECTORIES,
    "PATH": _DIRECTORIES,
    "DIR|HOST:PORT": _DIRECTORIES,
    "FILE": _FILES,
    "IFACE": _INTERFACES,
    "PID": _PROCESSES,
}
_NO_VALUE = "none"
_ANY_VALUE = "any"


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        names: as it is written: -p, --pid.
        help: one line.
        value: what follows it: none, any, directories, files, interfaces, processes, or words.
        words: the possible values, if it is words.
    """

    names: tuple[str, ...]
    help: str
    value: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verb:
    """A command. value: what its arguments are, as in Option."""

    name: str
    help: str
    options: tuple[Option, ...]
    value: str
    words: tuple[str, ...] = ()


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to complete")
    parser.epilog = (
        "make install puts the scripts where each shell looks for them. For this shell alone:\n\n"
        "  source <(redirty completion bash)\n"
        "  source <(redirty completion zsh)\n"
        "  redirty completion fish | source"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from redirty.collector.cli.main import VERBS, parser_of

    verbs = [verb_of(name, line, parser_of(name)) for name, (_, line) in VERBS.items()]
    script = {"bash": bash, "zsh": zsh, "fish": fish}[options.shell]
    print("\n".join(script(verbs)))
    return 0


def verb_of(name: str, line: str, parser: argparse.ArgumentParser) -> Verb:
    """Return a command as its parser has it."""
    options: list[Option] = []
    value, words = _NO_VALUE, tuple[str, ...]()
    for action in parser._actions:
        kind, chosen = _value_of(action)
        if action.option_strings:
            options.append(Option(tuple(action.option_strings), _line(action.help), kind, chosen))
        elif value == _NO_VALUE:
            value, words = kind, chosen
    return Verb(name, line, tuple(options), value, words)


def _value_of(action: argparse.Action) -> tuple[str, tuple[str, ...]]:
    if action.nargs == 0:
        return _NO_VALUE, ()
    if action.choices is not None:
        return "words", tuple(map(str, action.choices))
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    return _KINDS.get(metavar, _ANY_VALUE), ()


def _line(text: str | None) -> str:
    """Return a help text in one line, without what is in parentheses: a menu has little room."""
    return re.sub(r"\s*\([^()]*\)", "", " ".join((text or "").replace("%%", "%").split()))


# ---- bash ----

_BASH_VALUES = {
    _DIRECTORIES: 'COMPREPLY=($(compgen -d -- "$word")); compopt -o filenames',
    _FILES: 'COMPREPLY=($(compgen -f -- "$word")); compopt -o filenames',
    _INTERFACES: 'COMPREPLY=($(compgen -W "$(ls /sys/class/net)" -- "$word"))',
    _PROCESSES: 'COMPREPLY=($(compgen -W "$(cd /proc && echo [0-9]*)" -- "$word"))',
    _ANY_VALUE: "COMPREPLY=()",
}


def bash(verbs: list[Verb]) -> Iterator[str]:
    """Yield the lines of the script for bash."""
    yield "# bash completion for redirty"
    yield "_redirty() {"
    yield '    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} verb="" one'
    yield '    for one in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do'
    yield '        [[ $one == -- ]] && { COMPREPLY=($(compgen -c -- "$word")); return; }'
    yield "        [[ -z $verb && $one != -* ]] && verb=$one"
    yield "    done"
    yield '    case "$verb $before" in'
    for verb in verbs:
        for option in verb.options:
            if option.value != _NO_VALUE:
                names = "|".join(shlex.quote(f"{verb.name} {name}") for name in option.names)
                yield f"    {names}) {_bash_value(option.value, option.words)}; return ;;"
    yield "    esac"
    yield '    case "$verb" in'
    yield f'    "") COMPREPLY=($(compgen -W "{" ".join(v.name for v in verbs)} --help --version" -- "$word")) ;;'
    for verb in verbs:
        names = " ".join(name for option in verb.options for name in option.names)
        yield f"    {verb.name})"
        yield f'        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "{names}" -- "$word"))'
        yield f"        else {_bash_value(verb.value, verb.words)}; fi ;;"
    yield "    esac"
    yield "}"
    yield "complete -F _redirty redirty"


def _bash_value(value: str, words: tuple[str, ...]) -> str:
    if words:
        return f'COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$word"))'
    return _BASH_VALUES.get(value, "COMPREPLY=()")


# ---- zsh ----

_ZSH_VALUES = {
    _DIRECTORIES: "_files -/",
    _FILES: "_files",
    _INTERFACES: "_net_interfaces",
    _PROCESSES: "_pids",
    _ANY_VALUE: "",
}


def zsh(verbs: list[Verb]) -> Iterator[str]:
    """Yield the lines of the script for zsh."""
    yield "#compdef redirty"
    yield "_redirty() {"
    yield "    local context state line"
    yield "    _arguments -C '--help[show the help]' '--version[show the version]' '1: :->verb' '*:: :->rest'"
    yield "    case $state in"
    yield "    verb)"
    yield "        local -a verbs=("
    for verb in verbs:
        yield f"            {_zsh_quoted(f'{verb.name}:{verb.help}')}"
    yield "        )"
    yield "        _describe command verbs ;;"
    yield "    rest)"
    yield "        case $line[1] in"
    for verb in verbs:
        yield f"        {verb.name})"
        yield "            _arguments \\"
        for option in verb.options:
            for name in option.names:
                yield f"                {_zsh_quoted(_zsh_option(name, option))} \\"
        yield f"                {_zsh_quoted('*: :' + _zsh_value(verb.value, verb.words))} ;;"
    yield "        esac ;;"
    yield "    esac"
    yield "}"
    yield 'if [ "$funcstack[1]" = _redirty ]; then _redirty "$@"; else compdef _redirty redirty; fi'


def _zsh_option(name: str, option: Option) -> str:
    text = re.sub(r"([\[\]:\\])", r"\\\1", option.help)
    value = "" if option.value == _NO_VALUE else f": :{_zsh_value(option.value, option.words)}"
    return f"*{name}[{text}]{value}"


def _zsh_value(value: str, words: tuple[str, ...]) -> str:
    return f"({' '.join(words)})" if words else _ZSH_VALUES.get(value, "")


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# ---- fish ----

_FISH_VALUES = {
    _DIRECTORIES: "-xa '(__fish_complete_directories)'",
    _FILES: "-r",
    _INTERFACES: "-xa '(command ls /sys/class/net)'",
    _PROCESSES: "-xa '(__fish_complete_pids)'",
    _ANY_VALUE: "-x",
}


def fish(verbs: list[Verb]) -> Iterator[str]:
    """Yield the lines of the script for fish."""
    yield "# fish completion for redirty"
    yield "complete -c redirty -f"
    first = "-n __fish_use_subcommand"
    yield f"complete -c redirty {first} -l help -d 'show the help'"
    yield f"complete -c redirty {first} -l version -d 'show the version'"
    for verb in verbs:
        yield f"complete -c redirty {first} -a {verb.name} -d {_fish_quoted(verb.help)}"
        within = f"-n '__fish_seen_subcommand_from {verb.name}'"
        arguments_ = _fish_value(verb.value, verb.words)
        if arguments_.startswith("-xa"):
            yield f"complete -c redirty {within} {arguments_.replace('-xa', '-a')}"
        for option in verb.options:
            names = " ".join(
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
                for name in option.names
            )
            value = (
                "" if option.value == _NO_VALUE else f" {_fish_value(option.value, option.words)}"
            )
            yield f"complete -c redirty {within} {names}{value} -d {_fish_quoted(option.help)}"


def _fish_value(value: str, words: tuple[str, ...]) -> str:
    return f"-xa {_fish_quoted(' '.join(words))}" if words else _FISH_VALUES.get(value, "")


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
