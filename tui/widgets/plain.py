"""Text from outside in Textual's widgets: what it contains is shown, and is neither markup nor a command."""

from __future__ import annotations

from redirty.collector import text
from textual.content import Content

TYPED = r"[^\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]*"
"""What may be typed or pasted into an Input (its `restrict`)."""


def plain(shown: str) -> Content:
    """Return a text for a widget."""
    return Content(text.lines(shown))
