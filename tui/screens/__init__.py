"""The screens of redirty top: their panels and keys."""
