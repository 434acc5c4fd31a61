"""Readers: from a recording, a running session or the whole machine to frozen snapshots. No Textual here."""
