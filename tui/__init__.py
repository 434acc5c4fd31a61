"""redirty top: a live screen in the terminal or in a browser."""
