"""Predictions against real migrations and pre-dumps: make bench-migration. See ../README.md."""
