"""Programs that stop threads by ptrace, run as processes of their own with the bare library."""
