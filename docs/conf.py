"""Settings of the site that `make docs` builds; without a network."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

_DOCS = Path(__file__).resolve().parent
_ROOT = _DOCS.parent
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "redirty"
release = _PROJECT["version"]
copyright = "the redirty authors"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["build"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"redirty {release}"
html_show_sourcelink = False
nitpicky = True

# The pages are read in the repository, too: there a link may lead out of docs/, on the site it cannot.
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def _inside(text: str, base: Path, page: Path) -> str:
    """Return a page's text with links to files outside docs/ replaced by the files' names.

    base: the directory that the links are relative to; page: the directory of the page on the site.
    """

    def link(match: re.Match[str]) -> str:
        file = (base / match[2]).resolve()
        if not file.is_relative_to(_DOCS):
            return f"{match[1]} (`{os.path.relpath(file, _ROOT)}`)"
        return f"[{match[1]}]({os.path.relpath(file, page)}{match[3] or ''})"

    return _LINK.sub(link, text)


def _read(app: Any, name: str, source: list[str]) -> None:
    """Prepare one page; the page on development is CONTRIBUTING.md."""
    file = _DOCS / f"{name}.md"
    if name == "development":
        text = (_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
        source[0] = _inside(text, _ROOT, file.parent)
    else:
        source[0] = _inside(source[0], file.parent, file.parent)


def setup(app: Any) -> None:
    """Connect to the generator."""
    app.connect("source-read", _read)
