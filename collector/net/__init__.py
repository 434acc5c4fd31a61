"""Network interfaces and process events, by netlink. The only package that imports pyroute2."""
