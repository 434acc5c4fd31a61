"""Turns snapshots into rows of styled text: pure functions, no Textual."""
