"""Ways of write-protecting all pages of a target, and choosing one."""
