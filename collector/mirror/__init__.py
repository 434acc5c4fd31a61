"""The pre-copy copier: reads a running target's memory, decides, sends, receives, stops it for the rest."""
