"""The commands: one module each, with arguments(parser) and run(options)."""
