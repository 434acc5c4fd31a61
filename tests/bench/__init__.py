"""What tracing costs: figures beside their floors, all from one run. See README.md."""
