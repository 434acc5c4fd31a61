"""The live screen of redirty top."""
