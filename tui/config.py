"""Reads the user's keys and theme from a TOML file.

theme = "textual-light"
[keys]
pause = "space,x"      # names of keys: see redirty(1)
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import tomllib
from pathlib import Path

from redirty.collector.checked_files import read_regular
from redirty.collector.errors import UsageError, why
from redirty.tui.app import Appearance

_MAX_BYTES = 1 << 20


def default_path() -> Path:
    """Return $XDG_CONFIG_HOME/redirty/top.toml; the default directory is ~/.config."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111
    return Path(home) / "redirty" / "top.toml"


def read(path: Path | None) -> Appearance:
    """Read a configuration file. path: None: the default one, if it exists.

    Raises:
        UsageError: the file cannot be read, or has an invalid value.
    """
    file = path or default_path()
    try:
        content = tomllib.loads(read_regular(file, _MAX_BYTES).decode("utf-8"))
    except FileNotFoundError:
        if path is None:
            return Appearance()
        raise UsageError(f"--config: {file} does not exist; name another file") from None
    except OSError as e:
        raise UsageError(f"cannot read {file}: {why(e)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise UsageError(f"{file}: not valid TOML: {e}") from None
    unknown = content.keys() - {"theme", "keys"}
    if unknown:
        raise UsageError(f"{file}: unknown setting {min(unknown)!r}; known are theme and [keys]")
    return Appearance(_theme(file, content.get("theme", "")), _keys(file, content.get("keys", {})))


def _theme(file: Path, theme: object) -> str:
    from textual.theme import BUILTIN_THEMES

    if theme and theme not in BUILTIN_THEMES:
        raise UsageError(
            f"{file}: unknown theme {theme!r}; known are {', '.join(sorted(BUILTIN_THEMES))}"
        )
    return str(theme)


def _keys(file: Path, keys: object) -> dict[str, str]:
    known = key_names()
    if not isinstance(keys, dict):
        raise UsageError(f"{file}: [keys] must be a table of name = 'key'")
    for name, key in keys.items():
        if name not in known:
            raise UsageError(f"{file}: [keys]: unknown name {name!r}; known are {', '.join(known)}")
        if not isinstance(key, str) or not key.strip():
            raise UsageError(f"{file}: [keys]: {name} must be a string like 'space' or 'ctrl+p,x'")
    return {str(name): str(key) for name, key in keys.items()}


def key_names() -> list[str]:
    """Return the names of all bindings that can be changed: those of the program, its screens and widgets."""
    import redirty.tui.screens
    import redirty.tui.widgets
    from redirty.tui.app import TopApp

    owners: dict[type, None] = {TopApp: None}
    for package in (redirty.tui.screens, redirty.tui.widgets):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for item in vars(importlib.import_module(module.name)).values():
                if isinstance(item, type) and item.__module__.startswith("redirty.tui"):
                    owners[item] = None
    found: dict[str, None] = {}
    for owner in owners:
        for base in reversed(owner.__mro__):
            for binding in base.__dict__.get("BINDINGS", ()):
                if getattr(binding, "id", None):
                    found[binding.id] = None
    return list(found)
