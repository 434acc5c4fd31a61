"""Programs of their own that use the bare library only: they stop threads by ptrace."""
