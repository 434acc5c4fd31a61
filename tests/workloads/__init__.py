"""Programs that write memory in known ways, and their drivers."""
