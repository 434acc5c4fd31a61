"""Names of addresses in a target's code, from BCC's symbol cache (ELF symbols, perf maps)."""

from __future__ import annotations

from typing import Any


class Symbols:
    """Resolves addresses while their process lives, and caches the names."""

    def __init__(self, bpf: Any) -> None:
        self._bpf = bpf
        self._known: dict[tuple[int, int], str] = {}

    def name(self, pid: int, address: int) -> str:
        """Return the function at an address, else its file, else [unknown]."""
        key = (pid, address)
        if key not in self._known:
            raw: bytes = self._bpf.sym(address, pid, show_module=False)
            name = raw.decode(errors="replace")
            if name == "[unknown]":
                module: bytes = self._bpf.sym(address, pid, show_module=True)
                name = module.decode(errors="replace")
            self._known[key] = name.replace(";", ":")
        return self._known[key]
