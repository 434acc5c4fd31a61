"""A mirror kept by the rules of the round protocol alone, while everything changes: python -m tests.torture."""
