"""Errors of the helpers. Bare library only."""


class TraceeError(Exception):
    """A thread or process cannot be used as requested; it keeps running. code: an errno."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code
