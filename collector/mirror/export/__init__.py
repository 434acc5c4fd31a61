"""Exports of a committed mirror to other formats."""
