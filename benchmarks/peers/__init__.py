"""One program a peer: it answers JSON lines (see kit.py), in an environment of its own."""
