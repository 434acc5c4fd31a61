"""Readers: threads that turn a recording, a live target or all processes into frozen snapshots. No Textual here."""
