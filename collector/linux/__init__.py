"""Interfaces of the Linux kernel: files of /proc, system calls, namespaces. No policy."""
