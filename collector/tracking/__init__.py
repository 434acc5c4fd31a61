"""The round protocol: the target's address spaces, armed and drained round by round."""
