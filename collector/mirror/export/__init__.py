"""Other formats made from a finished mirror."""
