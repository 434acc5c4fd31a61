"""Targets: processes, trees, cgroups, commands and virtual machines to trace."""
