"""Whom to trace: processes, trees, cgroups, commands, virtual machines."""
