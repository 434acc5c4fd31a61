"""The cost of tracing: figures next to their floors, all from one run. See README.md."""
