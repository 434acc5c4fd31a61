"""Arguments that are common to several commands."""
