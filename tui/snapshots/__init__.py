"""Frozen data for the screens, and pure folds over it."""
