"""Reads what a target controls by processes of their own, which can be given up when they crash or hang."""
