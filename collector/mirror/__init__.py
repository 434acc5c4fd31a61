"""The pre-copy mirror: copies a running target's memory, and stops the target for the rest."""
