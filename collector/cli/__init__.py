"""The commands: a module for each, with arguments() to declare and run() to carry out."""
