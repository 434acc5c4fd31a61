"""The documentation agrees with the program: links, options, examples."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redirty.collector.cli.main import VERBS

from tests.support.paths import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("*/README.md"))
    if "build" not in path.relative_to(ROOT).parts
) + sorted(ROOT.glob("tests/*/README.md"))
MANUAL = (DOCS / "redirty.1").read_text(encoding="utf-8")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*|-[a-zA-Z])(?![\w-])")


def without_code(text: str) -> str:
    """Return a page without its fenced blocks and inline code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as repositories and the site make them."""
    heads = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_resolves(page: Path) -> None:
    for target in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page.name}: {target}"


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^[a-z0-9/-]+$", index, flags=re.M))
    pages = {
        str(path.relative_to(DOCS).with_suffix(""))
        for path in DOCS.rglob("*.md")
        if "build" not in path.parts and path.name != "index.md"
    }
    assert listed == pages


# ---- modules ----

FOLDERS = ("bpfprogs", "collector", "docs", "news", "tests", "tui", "vagrant")
SOURCES = {
    str(path.relative_to(ROOT)).removesuffix(".py")
    for path in (*ROOT.glob("*"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*")))
    if not {"build", "__pycache__"} & set(path.relative_to(ROOT).parts)
}
NAMED = re.compile(r"(?:[a-z]\w*/)+[\w.*-]*|[a-z]\w*(?:\.bpf)?\.(?:py|c|h|S)")
# The change log names modules of its time, the tests' pages also files that they write.
CURRENT = [p for p in PAGES if p.name != "CHANGELOG.md" and p.parent.parent.name != "tests"]
NO_SOURCE = re.compile(r"(^|/)build(/|$)|^n/a$")
PLACEHOLDER = re.compile(r"[A-Z]{3,}")


def exists(name: str) -> bool:
    """Return whether a module, file or folder of this repository is called that; leading folders may be missing.

    A word in capitals stands for any name; `path/module.Class` names a class.
    """
    path, _, member = name.removesuffix("/").partition(".")
    if len(member) > 1 and member[0].isupper() and not PLACEHOLDER.match(member):
        found = [s for s in SOURCES if f"/{s}".endswith(f"/{path}")]
        texts = [(ROOT / f"{s}.py").read_text(encoding="utf-8") for s in found]
        return any(re.search(rf"^class {member}\b", text, re.M) for text in texts)
    pattern = re.escape(name.removesuffix("/").removesuffix(".py")).replace(r"\*", "[^/]+")
    anywhere = "" if name.split("/", maxsplit=1)[0] in FOLDERS else "(?:.*/)?"
    wanted = re.compile(anywhere + PLACEHOLDER.sub(r"[\\w-]+", pattern) + r"(?:\.(?:S|bpf\.c))?")
    return any(wanted.fullmatch(source) for source in SOURCES)


@pytest.mark.parametrize("page", CURRENT, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_file_and_folder_that_a_page_names_exists(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    quoted = re.findall(r"`([^`\n]+)`", text)
    names = [name for name in quoted if NAMED.fullmatch(name) and not NO_SOURCE.search(name)]
    for line in (line for line in text.split("\n- ") if " → " in line):  # a path through modules
        names += re.findall(r"`(\w+)`", line)
    assert not [name for name in names if not exists(name)]


def test_a_name_of_no_module_is_refused() -> None:
    for name in ("bpf/fault_logs", "arming/base.Absent", "tests/nowhere/", "quiesce.py", "absent"):
        assert not exists(name), name
    assert exists("arming/base.Armed")
    assert exists("collector/cli/COMMAND.py")


def test_the_front_page_and_the_guide_for_contributors_are_short() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 150, name


# ---- options ----


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments of one command."""
    parser = argparse.ArgumentParser(prog=f"redirty {command}", exit_on_error=False)
    parser.add_argument("-v", "--verbose", action="store_true")
    importlib.import_module(f"redirty.collector.cli.{VERBS[command][0]}").arguments(parser)
    return parser


def options_of(command: str) -> set[str]:
    """Return every option string that a command takes."""
    return {option for action in parser_of(command)._actions for option in action.option_strings}


# Options of every command, and of all commands that take a target: the man page has them in one place.
COMMON = {"-h", "--help", "-v", "--verbose"}
TARGET = {
    "-p",
    "--pid",
    "--tree",
    "--cgroup",
    "--unit",
    "--container",
    "--vm",
    "--arm",
    "--probe",
    "-q",
    "--quiet",
}
LINKED = {"--link", "--to", "--sample", "--bandwidth"}


def manual_section(command: str) -> str:
    """Return a command's section of the man page, as plain text."""
    start = re.search(rf"^\.SS {re.escape(command.replace('-', chr(92) + '-'))}$", MANUAL, re.M)
    assert start, f"no section {command}"
    rest = MANUAL[start.end() :]
    end = re.search(r"^\.(SS|SH) ", rest, re.M)
    return plain(rest[: end.start() if end else None])


def plain(roff: str) -> str:
    """Return the text of a piece of a man page: no fonts, no escapes."""
    text = re.sub(r"\\f[RBIP]", "", roff).replace("\\-", "-")
    text = re.sub(r"^\.[A-Z]+ ?", "", text, flags=re.M)
    return text.replace('"', " ")


@pytest.mark.parametrize("command", VERBS)
def test_a_commands_page_has_its_options_and_no_others(command: str) -> None:
    page = (DOCS / "commands" / f"{command}.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith(("| `-", "`-h`"))]
    cells = " ".join(re.split(r"(?<!\\)\|", line)[1] if line[0] == "|" else line for line in lines)
    described = set(OPTION.findall(cells)) - {"--"}
    assert described == options_of(command)
    named = set(OPTION.findall(" ".join(re.findall(r"`([^`\n]*)`", page))))
    everyones = {option for other in VERBS for option in options_of(other)}
    foreign = {"-9", "-f", "--track-mem", "--prev-images-dir"}  # of kill, pkill, criu
    assert named <= everyones | foreign


@pytest.mark.parametrize("command", VERBS)
def test_a_commands_section_of_the_man_page_has_its_options(command: str) -> None:
    named = set(OPTION.findall(manual_section(command)))
    options = options_of(command)
    shared = COMMON | (TARGET if "--pid" in options else set())
    missing = options - named - shared
    assert not missing, f"not in the man page: {missing}"
    everyones = {option for other in VERBS for option in options_of(other)}
    assert named <= everyones | {"--track-mem", "--prev-images-dir"}


def test_options_of_all_targets_are_in_the_man_page() -> None:
    named = set(OPTION.findall(plain(MANUAL)))
    assert named >= TARGET - {"--quiet"}


# ---- examples ----


def examples() -> Iterator[tuple[str, str]]:
    """Yield (page, command line) of every redirty command in a block of code."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```(?:sh|console)?\n(.*?)^```", text, flags=re.S | re.M)
        blocks += re.findall(r"(?:^(?: {4,}|\t).*\n)+", text, flags=re.M)
        for block in blocks:
            for line in block.replace("\\\n", " ").splitlines():
                found = re.match(r"\s*(?:\$ )?(?:sudo )?(?:\.venv/bin/)?redirty (.*)", line)
                if found:
                    yield str(page.relative_to(ROOT)), found[1].partition(" | ")[0]
    for command in VERBS:
        epilog = parser_of(command).epilog or ""
        for line in epilog.splitlines():
            if found := re.match(r"\s+(?:sudo )?redirty (\S.*)", line):
                example = re.split(r"\s{3,}", found[1])[0]
                yield f"redirty {command} --help", example.partition(" | ")[0]


EXAMPLES = sorted(set(examples()))


def test_there_are_examples_of_every_command() -> None:
    assert {words.split()[0] for _, words in EXAMPLES} >= set(VERBS)


@pytest.mark.parametrize(("page", "words"), EXAMPLES)
def test_an_example_parses(page: str, words: str) -> None:
    command, *rest = shlex.split(words.replace("…", ""), comments=True)
    assert command in VERBS, f"{page}: {words}"
    if "--" in rest:
        rest = rest[: rest.index("--")]
    rest = ["1234" if word in ("PID", "P") else word for word in rest]
    parser_of(command).parse_args(rest)


def test_the_examples_in_python_run(tmp_path: Path) -> None:
    (tmp_path / "rec").symlink_to(ROOT / "tests/data/redis")
    blocks = [
        block
        for page in (DOCS / "getting-started.md", DOCS / "recording-format.md")
        for block in re.findall(
            r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M
        )
    ]
    assert blocks
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", DOCS, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "commands" / "mirror.html").is_file()
