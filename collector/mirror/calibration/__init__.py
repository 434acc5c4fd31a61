"""Measurements for a prediction: what this machine's copier and a stop of the target take here and now."""
