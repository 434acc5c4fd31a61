"""Page tables of a process: walk them, report where they lie, move them."""
