"""Sources of pages: address spaces, and the files and shared memory that they map."""
