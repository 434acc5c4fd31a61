"""Helpers that several tests share: processes, oracles, waiting."""
