"""Figures over rounds: page counts, write curves, streaks, zero pages, page frames."""
