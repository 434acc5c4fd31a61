"""The torture test: a mirror kept by the rules of the round protocol alone, while everything changes."""
