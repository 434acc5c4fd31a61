"""The image of a mirrored target on disk."""
