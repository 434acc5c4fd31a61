"""Predictions compared with real migrations and pre-dumps: make bench-migration. See ../README.md."""
