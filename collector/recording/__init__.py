"""A recording: a session that traces a target, and the files that it writes."""
