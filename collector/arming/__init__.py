"""Methods of write-protecting all pages of a target, and the choice among them."""
