"""Would mirroring converge? Pure functions of a write curve: nothing here reads a file or a target."""
