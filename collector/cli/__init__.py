"""The commands: one module a verb, each with arguments() to declare and run() to do."""
