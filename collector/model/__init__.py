"""The convergence model: pure functions of a write curve. Nothing here reads a file or a target."""
