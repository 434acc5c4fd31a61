"""The round protocol: address spaces of the target, armed and drained round by round."""
