"""Stops threads of other processes by ptrace(2), through helper processes."""
