"""Output of commands while they run: progress lines for people, events for programs."""
