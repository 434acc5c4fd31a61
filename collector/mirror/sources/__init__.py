"""Where the contents of pages are read from."""
