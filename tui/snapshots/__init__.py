"""Frozen data for the screens, and pure functions that compute it from rounds."""
