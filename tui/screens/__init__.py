"""Screens of redirty top: what is on them, and their keys."""
