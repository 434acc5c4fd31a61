"""What several tests share: processes, oracles, waiting."""
