"""BPF programs: loads and attaches them, reads their maps. The only package that imports bcc."""
