"""The processes that read what a target controls. They need nothing but Python's standard library."""
