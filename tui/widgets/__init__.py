"""Textual widgets that show a part of a snapshot."""
