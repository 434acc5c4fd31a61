"""Page tables of a process: walks them, reports where they lie, moves them."""
